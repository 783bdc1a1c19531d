"""What an encoder of any make can do: its optional abilities, one function each.

An ability is a field of the module, or a method of its class, which the protocols here name. Where a module
has none the functions say so or return it as it is; nothing else reads an attribute of an encoder.
"""

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from flax.core import FrozenDict
from jax.typing import DTypeLike

from simclr_jax.config.names import plain

if TYPE_CHECKING:
    from flax.nnx import bridge


class GroupsRows(Protocol):
    """A module whose BatchNorms take groups of rows, see `norm.BatchNorm`: two fields."""

    norm_groups: int
    norm_strided: bool

    def clone(self, **fields: Any) -> nn.Module:
        """The module with other fields."""
        ...


@runtime_checkable
class HasStages(Protocol):
    """A module that can be frozen up to a stage: a method of its class, asked without variables."""

    def stage_of(self, module: str) -> int:
        """The stage, 0 (the stem) to 4, of a module by its name in the parameters of the encoder."""
        ...


def has_groups(module: Any) -> TypeGuard[GroupsRows]:
    """Whether the BatchNorms of `module` can take groups of rows."""
    return {'norm_groups', 'norm_strided'} <= _field_names(module)


def with_groups(module: nn.Module, groups: int, *, strided: bool) -> nn.Module:
    """The module with other groups of rows; itself where it has no such fields."""
    return module.clone(norm_groups=groups, norm_strided=strided) if has_groups(module) else module


def has_dtype(module: nn.Module) -> bool:
    """Whether the dtype of the activations can be chosen: a field `dtype`, or an argument of an nnx class."""
    if _is_bridged(module):
        return 'dtype' in inspect.signature(module.nnx_class.__init__).parameters
    return 'dtype' in _field_names(module)


def with_dtype(module: nn.Module, dtype: DTypeLike) -> nn.Module:
    """The module with activations of another dtype; itself where that cannot be chosen."""
    if not has_dtype(module):
        return module
    if _is_bridged(module):
        return module.clone(kwargs=FrozenDict({**module.kwargs, 'dtype': dtype}))
    return module.clone(dtype=dtype)


def has_stages(module: Any) -> TypeGuard[HasStages]:
    """Whether the module can be frozen up to a stage."""
    return issubclass(type(module), HasStages)      # of the class: a bridged module answers to any name


def maps_of(collections: Mapping[str, Any]) -> dict[str, jax.Array]:
    """{name: map} of all that an encoder has sown into 'maps' or, as is usual in Flax, 'intermediates'."""
    found = {}
    for collection in MAPS:
        sown = collections.get(collection, {}).get('encoder', {})
        for path, values in traverse_util.flatten_dict(sown, sep='/').items():
            last = values[-1] if isinstance(values, tuple) and values else None
            if isinstance(last, jax.Array | jax.ShapeDtypeStruct):
                found[path] = last
    return found


MAPS = ('maps', 'intermediates')


def class_name(module: nn.Module) -> str:
    """The name of its class, for messages."""
    return (module.nnx_class if _is_bridged(module) else type(module)).__name__


def check_encoder(module: Any) -> nn.Module:
    """The module, if its class and signature fit; ValueError says what it lacks."""
    if isinstance(module, _nnx_module()):
        name = type(module).__name__
        raise ValueError(f'The encoder is an nnx module: give flax.nnx.bridge.to_linen({name}, ...), which '
                         'makes it again for each run.')
    if not isinstance(module, nn.Module):
        raise ValueError(f'The encoder is {module!r}: it takes a Flax module, such as MyEncoder(width=64).')
    kind = module.nnx_class if _is_bridged(module) else type(module)
    parameters = inspect.signature(kind.__call__).parameters.values()
    if not any(each.name == 'train' or each.kind is each.VAR_KEYWORD for each in parameters):
        raise ValueError(f'The encoder {kind.__name__} is called as encoder(images, train=True or False), '
                         'but its method __call__ has no argument `train`.')
    return module


def _nnx_module() -> tuple[type, ...]:
    """The class of nnx modules; nothing where nobody has imported flax.nnx, which takes 0.3 s of every start."""
    nnx = sys.modules.get('flax.nnx')
    return (nnx.Module,) if nnx else ()


def _is_bridged(module: Any) -> 'TypeGuard[bridge.ToLinen]':
    bridge = sys.modules.get('flax.nnx.bridge')
    return bridge is not None and isinstance(module, bridge.ToLinen)


def _field_names(module: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(module)} if dataclasses.is_dataclass(module) else set()


def build(kind: Any, arguments: Mapping[str, Any]) -> nn.Module | None:
    """A linen module of class `kind`, or an nnx one bridged; None where it is no class of modules."""
    if not isinstance(kind, type) or not issubclass(kind, (nn.Module, *_nnx_module())):
        return None
    if issubclass(kind, nn.Module):
        return kind(**arguments)
    signature = inspect.signature(kind.__init__)
    from flax.nnx import bridge
    skip_rng = 'rngs' not in signature.parameters
    signature.bind(None, **arguments, **({} if skip_rng else {'rngs': None}))
    return bridge.ToLinen(kind, kwargs=FrozenDict(arguments), skip_rng=skip_rng)


def arguments_of(module: nn.Module) -> tuple[type, dict[str, Any] | None]:
    """The class of a module and the arguments, as JSON values, that make it again; None where they are none.

    dtype is always among them, other fields of a linen module where they differ from their default.
    """
    try:
        if _is_bridged(module):
            kind: Any = module.nnx_class
            return kind, None if module.args else plain(module.kwargs, _name_of_dtype)
        values = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)
                  if field.init and field.name not in ('parent', 'name')
                  and (field.name == 'dtype' or getattr(module, field.name) is not field.default)}
        return type(module), plain(values, _name_of_dtype)
    except TypeError:
        return type(module), None


def _name_of_dtype(value: Any) -> str:
    """TypeError: it is none, and so no value of JSON."""
    if isinstance(value, np.dtype | type) and not np.dtype(value).hasobject:
        return np.dtype(value).name
    raise TypeError(f'{value!r} is not a JSON value')
