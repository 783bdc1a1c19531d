"""Any file of weights that is known here, told by what it is."""

import os

from simclr_jax import storage
from simclr_jax.weights.read.byol import read_byol
from simclr_jax.weights.read.official import is_official, read_official
from simclr_jax.weights.read.torch import read_torch
from simclr_jax.weights.tensors import is_flax_file, read_flax
from simclr_jax.weights.tree import Imported

_TORCH = ('.pth', '.pt', '.tar', '.bin', '.ckpt')
_PICKLES = ('.pkl', '.pickle', '.dill')
KINDS = ('a workdir of simclr_jax, an exported directory, a .safetensors file, a PyTorch .pth/.pt/.tar, '
         'an official SimCLR checkpoint or SavedModel, or a pickle of BYOL')


def read_weights(path: str | os.PathLike) -> Imported:
    """Reads an encoder from a file or directory that is not a workdir; nothing in it is executed.

    Known: `task=export`'s directory and its .flax.safetensors; files of PyTorch (.pth, .pt, .tar, .bin, .ckpt,
    .safetensors), see `read_torch`; official SimCLR v1 and v2 checkpoints and SavedModels of TensorFlow; BYOL's
    released pickles (.pkl).

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is none of these, is damaged, or does not fit a network: the sentence names what
            is missing, unexpected or of another shape.
    """
    if storage.is_remote(path):
        return _read_remote(os.fspath(path))
    path = os.fspath(path)
    try:
        os.stat(path)
    except OSError as error:
        if not os.path.exists(path + '.index'):         # TensorFlow names a checkpoint by its prefix
            reason = 'There is nothing at' if isinstance(error, FileNotFoundError) else f'{error.strerror}:'
            raise FileNotFoundError(f'{reason} {path}. Weights are read from {KINDS}.') from None
    if is_official(path):
        return read_official(path)
    if os.path.isdir(path):
        inside = [os.path.join(path, name) for name in ('encoder.flax.safetensors', 'encoder.safetensors')]
        path, *_ = [file for file in inside if os.path.isfile(file)] or ['']
        if not path:
            raise ValueError(f'{os.path.dirname(inside[0])} is a directory without weights: give {KINDS}.')
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _PICKLES:
        return read_byol(path)
    if suffix == '.safetensors':
        if is_flax_file(path):
            return read_flax(path)
    elif suffix not in _TORCH:
        raise ValueError(f'{path} has a name of no known kind: weights are read from {KINDS}.')
    return read_torch(path)


def _read_remote(path: str) -> Imported:
    """By a copy on this machine: torch, safetensors and TensorFlow read local files."""
    here = storage.local_copy(path)
    if here == path:
        raise FileNotFoundError(f'There is nothing at {path}. Weights are read from {KINDS}.')
    try:
        return read_weights(here)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace(here, path)) from error
