"""Networks and encoders from the fields of a configuration, and an encoder's fields again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.config.names import importable_name, resolve
from simclr_jax.models import abilities
from simclr_jax.models.convnext import ConvNeXt
from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.vit import ViT

ENCODERS = {'vit': ViT, 'convnext': ConvNeXt}       # those with a name, beside resnet
_DTYPES = ('float32', 'bfloat16')
_RESNET_FIELDS = tuple(field.name for field in dataclasses.fields(ResNet)
                       if field.name not in ('parent', 'name', 'depth', 'dtype', 'norm_strided'))
_NORM_SETTINGS = ('norm_groups', 'norm_momentum', 'norm_epsilon')


def auto_dtype(device: Any) -> str:
    """'bfloat16' for activations on a jax device that computes in it, else 'float32'.

    Not on a CPU (six times slower there), nor on GPUs of before Ampere, such as V100 and T4.
    """
    if device.platform == 'tpu':
        return 'bfloat16'
    if device.platform == 'cpu':
        return 'float32'
    try:
        return 'bfloat16' if float(getattr(device, 'compute_capability', 8)) >= 8 else 'float32'
    except (TypeError, ValueError):         # of AMD: gfx90a
        return 'bfloat16'


def make_network(*, encoder: Mapping[str, Any], head: Mapping[str, Any],
                 predictor: Mapping[str, Any] | None = None, module: nn.Module | None = None,
                 num_classes: int = 0, probe_layer: int = 0, mean: Sequence[float] = (0.0, 0.0, 0.0),
                 std: Sequence[float] = (1.0, 1.0, 1.0), encoder_chunks: int = 1) -> Network:
    """Builds a `Network` from plain values, as they stand in a configuration.

    Args:
        encoder: see `make_encoder`.
        head: fields of `ProjectionHead`; dtype and norm settings default to the encoder's.
        predictor: as head; None or mode 'none' builds none.
        module: the encoder itself; `encoder` then speaks for the heads alone, and for norm_groups.
        num_classes, probe_layer, mean, std, encoder_chunks: see `Network`.

    Raises:
        ValueError: for an unknown dtype, or what is no encoder.
    """
    shared = {key: encoder[key] for key in (*_NORM_SETTINGS, 'dtype') if key in encoder}

    def make_head(fields):
        return ProjectionHead(**_with_dtype({**shared, **fields}))

    has_predictor = predictor and predictor.get('mode') != 'none'
    return Network(encoder=make_encoder(encoder) if module is None else abilities.check_encoder(module),
                   head=make_head(head), predictor=make_head(predictor) if has_predictor else None,
                   num_classes=num_classes, probe_layer=probe_layer, mean=tuple(mean), std=tuple(std),
                   encoder_chunks=encoder_chunks, norm_groups=encoder.get('norm_groups', 1))


def make_encoder(fields: Mapping[str, Any]) -> nn.Module:
    """The encoder of a configuration's block.

    Args:
        fields: name 'resnet' (or none): fields of `ResNet`, with dtype as a string ('float32' or
            'bfloat16'). Name 'vit', 'convnext' or 'package.module:Name', a linen or nnx module: `arguments`
            are its keyword arguments, and dtype is one where it takes it and `arguments` do not have it.

    Raises:
        ValueError: there is no such module, it does not take these arguments, or is no encoder.
    """
    fields = _with_dtype(fields)
    name, arguments = fields.pop('name', 'resnet'), dict(fields.pop('arguments', {}))
    if name == 'resnet':
        if arguments:
            raise ValueError('encoder.arguments are for vit, convnext, or an encoder of your own, named by '
                             'encoder.name; a resnet is configured by the other fields of encoder.')
        return ResNet(**fields)
    if not name:
        raise ValueError('encoder.name is empty: the run was given an encoder that a config cannot name, of '
                         '__main__ or with arguments that are not JSON values. Give it again as encoder=.')
    kind = ENCODERS.get(name) or resolve(name, 'encoder.name', ('resnet', *ENCODERS))
    try:
        module = abilities.build(kind, arguments)
    except TypeError as error:
        raise ValueError(f'encoder.arguments do not fit {name}: {error}.') from None
    if module is None:
        raise ValueError(f'encoder.name is {name!r}, which is not a class of Flax modules.')
    return abilities.check_encoder(module if 'dtype' in arguments
                                   else abilities.with_dtype(module, fields['dtype']))


def describe_encoder(module: nn.Module) -> dict[str, Any]:
    """The fields of a configuration's block with which `make_encoder` builds this module again.

    The name is '' where there are none: the class cannot be imported (it is of __main__, or local to a
    function), or a field that is not at its default has no JSON value.
    """
    kind, values = abilities.arguments_of(abilities.check_encoder(module))
    if kind is ResNet and values is not None:
        defaults = {name: getattr(ResNet, name) for name in _RESNET_FIELDS}
        return {'name': 'resnet', 'arguments': {}, **defaults, **values}
    known = {each: name for name, each in ENCODERS.items()}
    name = known.get(kind) or importable_name(kind) if values is not None else ''
    return {'name': name, 'arguments': values if name else {}}


def encoder_notes(network: Network, fields: Mapping[str, Any]) -> list[str]:
    """What a run should say of an encoder that is not ours, and of the block that it was given for."""
    name, notes = abilities.class_name(network.encoder), []
    if fields.get('dtype') == 'bfloat16' and not abilities.has_dtype(network.encoder):
        notes.append(f'encoder.dtype is bfloat16, but {name} has no field dtype: its activations keep the '
                     'type that it gives them, and only those of the heads are bfloat16.')
    if not fields.get('name', 'resnet'):
        notes.append(f'{name} cannot be named in config.json (it is of __main__ or local to a function, or '
                     'its arguments are not JSON values): load_encoder and the evaluations need it as encoder=.')
    return notes


def _with_dtype(fields):
    """The fields with their dtype, a string, as a jax dtype."""
    name = fields.get('dtype', 'float32')
    if name == 'auto':
        name = auto_dtype(jax.devices()[0])
    if name not in _DTYPES:
        raise ValueError(f'encoder.dtype is {name!r}: it takes auto, {", ".join(_DTYPES)}.')
    return {**fields, 'dtype': jnp.dtype(name)}
