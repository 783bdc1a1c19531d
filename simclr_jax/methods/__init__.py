"""Self-supervised methods, each three pure functions behind one name."""

import inspect
from collections.abc import Callable
from typing import Any

from simclr_jax.config.names import HOW_TO_CHANGE_METHOD, importable_name, is_path, plain, resolve
from simclr_jax.methods.base import Aux, Method
from simclr_jax.methods.byol import byol
from simclr_jax.methods.instance_discrimination import instance_discrimination
from simclr_jax.methods.moco import moco
from simclr_jax.methods.nnclr import nnclr
from simclr_jax.methods.redundancy import barlow_twins, vicreg
from simclr_jax.methods.simclr import simclr
from simclr_jax.methods.simsiam import simsiam

_METHODS = {function.__name__: function for function in (
    barlow_twins, byol, instance_discrimination, moco, nnclr, simclr, simsiam, vicreg)}
_OF_RUN = ('network', 'num_train_steps', 'num_examples', 'mesh')        # arguments that every run gives


def make_method(name: str | Callable[..., Method], *, num_examples: int | None = None, **arguments) -> Method:
    """The method called `name`, built from its own keyword arguments.

    Args:
        name: byol, moco, simclr, ...; 'package.module:Name' of a function of your own, or the function itself.
        num_examples: of the training split; given to a function whose signature names it.
        **arguments: network, num_train_steps, mesh, and the other fields of the config's block.

    Raises:
        ValueError: there is no such method, it does not take these arguments, or it makes no `Method`.
    """
    if isinstance(name, str) and name not in _METHODS and not is_path(name):
        raise ValueError(f'method.name is {name!r}; the methods are {", ".join(sorted(_METHODS))}, or '
                         "'package.module:Name'.")
    build = name if callable(name) else _METHODS.get(name) or resolve(name, 'method.name')
    if not callable(build):
        raise ValueError(f'method.name is {name!r}, which is a {type(build).__name__}: it takes a function.')
    signature = inspect.signature(build)
    if 'num_examples' in signature.parameters and num_examples is not None:
        arguments['num_examples'] = num_examples
    try:
        signature.bind(**arguments)
    except TypeError as error:
        how = f' {HOW_TO_CHANGE_METHOD}' if name in _METHODS else ''
        raise ValueError(f'The method block of the config does not fit method {name!r}: {error}.{how}') from None
    method = build(**arguments)
    if not isinstance(method, Method):
        raise ValueError(f'method.name is {name!r}, which returns {type(method).__name__}: a method is a '
                         'simclr_jax.methods.Method(init, loss, after_update).')
    return method


def describe_method(build: Callable[..., Method]) -> dict[str, Any]:
    """The config's block of a method that Python gives: its name, and its own arguments, as bound or by default.

    A function among them stands there by its name, '' where it has none. ValueError: it is no function.
    """
    if not callable(build):
        raise ValueError(f'method is {build!r}: it takes a function (network, *, num_train_steps, mesh) -> Method; '
                         'names stand in config.method.')
    own = {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()
           if parameter.default is not parameter.empty} | getattr(build, 'keywords', {})
    return {'name': importable_name(getattr(build, 'func', build))} | plain(
        {name: value for name, value in own.items() if name not in _OF_RUN},
        lambda value: value.tolist() if hasattr(value, 'tolist') else importable_name(value))       # of an array


__all__ = ['Aux', 'Method', 'barlow_twins', 'byol', 'describe_method', 'instance_discrimination', 'make_method', 'moco',
           'nnclr', 'simclr', 'simsiam', 'vicreg']
