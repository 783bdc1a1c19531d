"""Safetensors files: read with every doubt refused."""

import json
import os
import pathlib
import stat
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
import numpy as np
import safetensors
import safetensors.numpy

from simclr_jax import storage
from simclr_jax.weights.tree import refuse

_COUNTERS = 'num_batches_tracked'       # torch's int64 counts of batches, of no use to the network


def check_file(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a Path, if a file that holds something is there.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is a directory, a pipe, a link that leads nowhere, or empty.
    """
    path = pathlib.Path(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f'{path} does not exist: name a file of weights.') from None
    except OSError as error:        # a loop of links, a name that is too long, no permission
        raise ValueError(f'{path} cannot be opened: {error.strerror}.') from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{path} is not a file: name a file of weights.')
    if not status.st_size:
        raise ValueError(f'{path} is empty: name a file of weights.')
    return path


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata in the header of a safetensors file; raises as `read_tensors`."""
    with _open(check_file(path)) as file:
        return dict(file.metadata() or {})


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, floats of 32 or 16 bits, and the metadata in its header.

    Torch's counters of batches (`*.num_batches_tracked`) stay as they are.

    Raises:
        FileNotFoundError, ValueError: as `check_file`; or it is no safetensors file, is cut short, or
            holds another type.
    """
    path = check_file(path)
    with _open(path) as file:
        names = list(file.keys())
        dtypes = {name: file.get_slice(name).get_dtype() for name in names}
        refuse(str(path), {'not float32': [
            f'{name} {dtype}' for name, dtype in dtypes.items()
            if dtype not in (('I64',) if name.endswith(_COUNTERS) else ('F32', 'F16', 'BF16'))]})
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def write_tensors(path: str | os.PathLike, arrays: Mapping[str, np.ndarray],
                  metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
        OSError: it cannot be written; nothing is left there, and what was there stays.
    """
    # The library takes the bytes as they lie in memory.
    dense = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    storage.write_atomically(path, safetensors.numpy.save(dense, dict(metadata)))


def read_json(text: str, file: str) -> dict:
    """A JSON object out of a header; ValueError names `file` where it is none."""
    def no_constant(name):
        raise ValueError(f'{name} is not a number')

    try:
        value = json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file}: its header is not valid JSON ({_first_line(error)}).') from None
    if not isinstance(value, dict):
        raise ValueError(f'{file}: its header is not a JSON object.')
    return value


def _open(path):
    try:
        return safetensors.safe_open(path, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a complete safetensors file: {_first_line(error)}.') from None


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip('.')
