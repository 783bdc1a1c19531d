"""Safetensors files: read with every doubt refused; the header of ours; this project's own layout.

The header is JSON: {'format': 1, 'layout': 'flax' or 'torch', 'encoder': every field of models.resnet.ResNet, or
name, arguments and the norms' settings of an encoder of another make, 'head': every field of
models.network.ProjectionHead, 'mean', 'std', 'image_size', 'crop_proportion', 'source', 'card'}, and format 2
'resize', 'antialias' and 'resize_to': see tree.Imported. Every field is written out, so that no default can change
what a file means.

In the layout 'flax' the names are those of the tree ('params/encoder/stem_conv/kernel', 'batch_stats/...'), a
classifier's 'classifier/kernel' and 'classifier/bias', the axes Flax's, so that in any JAX code two libraries read it:

    variables = flax.traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep='/')
"""

import dataclasses
import json
import math
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
import numpy as np
import safetensors
import safetensors.numpy

from simclr_jax import storage
from simclr_jax.models.network import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.views.resize import METHODS
from simclr_jax.weights.tree import Imported, all_arrays, fit, is_resnet, refuse

_COUNTERS = 'num_batches_tracked'       # torch's int64 counts of batches, of no use to the network
HEADER = 'simclr_jax'      # of the metadata
_FORMATS = (1, 2)       # 2 has entries of _RESIZE
_RESIZE = {'resize': 'bicubic', 'antialias': False, 'resize_to': 0}
_MOST_LAYERS = 100     # of a head
_OF_OTHERS = {'name': '', 'arguments': {}}       # of an encoder of another make
_SHARED = ('norm_groups', 'norm_momentum', 'norm_epsilon', 'dtype')


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
        raise ValueError(f'{file}: its header is not valid JSON ({storage.first_line(error)}).') from None
    if not isinstance(value, dict):
        raise ValueError(f'{file}: its header is not a JSON object.')
    return value


def _open(path):
    try:
        return safetensors.safe_open(path, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a complete safetensors file: {storage.first_line(error)}.') from None


def to_header(imported: Imported, layout: str, **more: Any) -> str:
    """The JSON text of `imported`, all but its arrays.

    Raises:
        ValueError: a field is unknown, of another type, or `card` is not made of JSON values.
    """
    encoder = imported.encoder
    if not is_resnet(encoder):      # whose other fields are a ResNet's
        encoder = {name: encoder[name] for name in (*_OF_OTHERS, *_SHARED) if name in encoder}
    encoder = _checked('encoder', encoder, imported.source)
    # A head has the encoder's where it has none of its own, as in models.building.make_network.
    shared = {name: encoder[name] for name in _SHARED}
    resize = {name: getattr(imported, name) for name, default in _RESIZE.items()}
    if resize == _RESIZE:       # so that versions that know no other read it
        resize = {}
    head = _checked('head', {**shared, **imported.head}, imported.source)
    try:
        return json.dumps({
            'format': 2 if resize else 1, 'layout': layout, **resize, 'encoder': encoder, 'head': head,
            'mean': list(map(float, imported.mean)), 'std': list(map(float, imported.std)),
            'image_size': int(imported.image_size), 'crop_proportion': float(imported.crop_proportion),
            'source': imported.source, 'card': imported.card, **more}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f'the card of {imported.source} is not made of JSON values: {error}.') from None


def from_header(text: str, file: str, *, layout: str) -> dict[str, Any]:
    """The header again, checked, of a file that must have this layout.

    Raises:
        ValueError: it is not what `to_header` writes; names `file` and the field.
    """
    header = read_json(text, file)
    if header.get('format') not in _FORMATS:
        raise ValueError(f'{file} has format {header.get("format")!r}, this version reads format 1 and 2: '
                         'read it with the version of simclr_jax that wrote it.')
    header = _RESIZE | header
    checks = {
        'layout': lambda value: value == layout,
        'encoder': lambda value: isinstance(value, dict), 'head': lambda value: isinstance(value, dict),
        'mean': lambda value: _numbers(value) and (
            not _numbers(header.get('std')) or len(value) == len(header['std'])),
        'std': lambda value: _numbers(value) and min(value) > 0,
        'image_size': lambda value: type(value) is int and value > 0,
        'crop_proportion': lambda value: _number(value) and 0 < value <= 1,
        'source': lambda value: isinstance(value, str), 'card': lambda value: isinstance(value, dict),
        'resize': METHODS.__contains__, 'antialias': lambda value: isinstance(value, bool),
        'resize_to': lambda value: type(value) is int and (not value or value >= header['image_size']),
    }
    for name, holds in checks.items():
        if not holds(header.get(name)):
            raise ValueError(f'{file}: its header has {name} = {header.get(name)!r}, which is not valid.')
    for name in ('encoder', 'head'):
        _checked(name, header[name], file)
    num_layers = header['head'].get('num_layers', 0)
    if num_layers > _MOST_LAYERS:       # they would be built before they are compared
        raise ValueError(f'{file}: head.num_layers is {num_layers}, more than {_MOST_LAYERS}.')
    return header | {name: tuple(header[name]) for name in ('mean', 'std')}


def imported_fields(header: Mapping[str, Any]) -> dict[str, Any]:
    """Those of its entries that are fields of tree.Imported."""
    names = {field.name for field in dataclasses.fields(Imported)}
    return {name: value for name, value in header.items() if name in names}


def _checked(what: str, values: Mapping[str, Any], file: str) -> dict[str, Any]:
    """All fields of the 'encoder' or the 'head': `values`, each known and of its default's type, and the defaults."""
    module = ResNet if what == 'encoder' else ProjectionHead
    defaults = {field.name: field.default for field in dataclasses.fields(module)
                if field.name not in ('parent', 'name')} | {'dtype': 'float32'}
    if module is ResNet and is_resnet(values):
        defaults['depth'] = 0
        if 'depth' not in values:
            raise ValueError(f'{file}: encoder.depth is missing.')
    elif module is ResNet:
        defaults = _OF_OTHERS | {name: defaults[name] for name in _SHARED}
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(f'{file}: {what}.{name} is unknown to this version of simclr_jax; it has '
                             f'{", ".join(sorted(defaults))}.')
        kind = type(defaults[name])
        if not (type(value) is kind or kind is float and type(value) is int):
            raise ValueError(f'{file}: {what}.{name} is {value!r} and should be {kind.__name__}.')
    return defaults | dict(values)


def _number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _numbers(value):
    """Whether it has a number for each channel of an image."""
    return isinstance(value, list) and 0 < len(value) <= 16 and all(map(_number, value))


def write_flax(path: str | os.PathLike, imported: Imported) -> None:
    """Writes `imported` to one file, whole or not at all.

    Raises:
        ValueError: the variables do not fit the network or are not finite; nothing is written.
        OSError: the file cannot be written.
    """
    write_tensors(path, all_arrays(imported), {HEADER: to_header(imported, 'flax')})


def read_flax(path: str | os.PathLike) -> Imported:
    """What `write_flax` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or does not fill the network that its header describes.
    """
    arrays, metadata = read_tensors(path)
    fields = from_header(metadata.get(HEADER, '{}'), str(path), layout='flax')
    variables, classifier = fit(arrays, encoder=fields['encoder'], head=fields['head'], file=str(path),
                                image_size=fields['image_size'], channels=len(fields['mean']))
    return Imported(variables=variables, classifier=classifier, **imported_fields(fields))


def is_flax_file(path: str | os.PathLike) -> bool:
    """Whether `path` is a safetensors file that says it is of this layout."""
    try:
        with _open(check_file(path)) as file:
            return read_json((file.metadata() or {}).get(HEADER, '{}'), str(path)).get('layout') == 'flax'
    except (ValueError, OSError):
        return False
