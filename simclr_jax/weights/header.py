"""What a file of weights says of itself, as JSON in the header of a safetensors file.

{'format': 1, 'layout': 'flax' or 'torch', 'encoder': every field of models.resnet.ResNet, or name, arguments
and the norms' settings of an encoder of another make, 'head': every field of models.heads.ProjectionHead,
'mean', 'std', 'image_size', 'crop_proportion', 'source', 'card'}, and format 2 'resize', 'antialias' and
'resize_to': see tree.Imported. Every field is written
out, so that no default can change what a file means.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.views.resize import METHODS
from simclr_jax.weights.tensors import read_json
from simclr_jax.weights.tree import Imported, is_resnet

KEY = 'simclr_jax'      # of the metadata
_FORMATS = (1, 2)       # 2 has entries of _RESIZE
_RESIZE = {'resize': 'bicubic', 'antialias': False, 'resize_to': 0}
_MOST_LAYERS = 100     # of a head
# A head has the encoder's where it has none of its own, as in models.network.make_network.
_OF_OTHERS = {'name': str, 'arguments': dict}       # of an encoder of another make
_SHARED = ('norm_groups', 'norm_momentum', 'norm_epsilon', 'dtype')


def to_header(imported: Imported, layout: str, **more: Any) -> str:
    """The JSON text of `imported`, all but its arrays.

    Raises:
        ValueError: a field is unknown, of another type, or `card` is not made of JSON values.
    """
    encoder = _checked('encoder', _whole(imported.encoder), ResNet, imported.source)
    shared = {name: encoder[name] for name in _SHARED}
    resize = {name: getattr(imported, name) for name, default in _RESIZE.items()}
    if resize == _RESIZE:       # so that versions that know no other read it
        resize = {}
    head = _checked('head', {**_defaults(ProjectionHead), **shared, **imported.head}, ProjectionHead,
                    imported.source)
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
    for name, module in (('encoder', ResNet), ('head', ProjectionHead)):
        _checked(name, header[name], module, file)
    num_layers = header['head'].get('num_layers', 0)
    if num_layers > _MOST_LAYERS:       # they would be built before they are compared
        raise ValueError(f'{file}: head.num_layers is {num_layers}, more than {_MOST_LAYERS}.')
    return header | {name: tuple(header[name]) for name in ('mean', 'std')}


def imported_fields(header: Mapping[str, Any]) -> dict[str, Any]:
    """Those of its entries that are fields of tree.Imported."""
    names = {field.name for field in dataclasses.fields(Imported)}
    return {name: value for name, value in header.items() if name in names}


def _defaults(module):
    return {field.name: field.default for field in _fields(module) if field.default is not dataclasses.MISSING
            } | {'dtype': 'float32'}


def _whole(encoder):
    """Every field of a ResNet; of an encoder of another make those that speak for it, and for the heads."""
    if is_resnet(encoder):
        return {**_defaults(ResNet), **encoder}
    return {name: encoder.get(name, _defaults(ResNet).get(name)) for name in (*_OF_OTHERS, *_SHARED)}


def _fields(module):
    return [field for field in dataclasses.fields(module) if field.name not in ('parent', 'name')]


def _checked(what: str, values: Mapping[str, Any], module: type, file: str) -> dict[str, Any]:
    """The fields, each known and of its default's type."""
    other = module is ResNet and not is_resnet(values)
    known = {*_OF_OTHERS, *_SHARED} if other else {field.name for field in _fields(module)}
    types = {'depth': int, **_OF_OTHERS}
    types |= {name: type(default) for name, default in _defaults(module).items()}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f'{file}: {what}.{name} is unknown to this version of simclr_jax; it has '
                             f'{", ".join(sorted(known))}.')
        if not (type(value) is types[name] or types[name] is float and type(value) is int):
            raise ValueError(f'{file}: {what}.{name} is {value!r} and should be {types[name].__name__}.')
    if module is ResNet and not other and 'depth' not in values:
        raise ValueError(f'{file}: encoder.depth is missing.')
    return dict(values)


def _number(value):
    return type(value) in (int, float) and math.isfinite(value)


def _numbers(value):
    """Whether it has a number for each channel of an image."""
    return isinstance(value, list) and 0 < len(value) <= 16 and all(map(_number, value))
