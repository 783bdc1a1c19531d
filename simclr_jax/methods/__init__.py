"""Self-supervised methods, each three pure functions behind one name."""

import inspect

from simclr_jax.methods.base import Aux, Method
from simclr_jax.methods.byol import byol
from simclr_jax.methods.moco import moco
from simclr_jax.methods.simclr import simclr

_METHODS = {'byol': byol, 'moco': moco, 'simclr': simclr}


def make_method(name: str, **arguments) -> Method:
    """The method called `name`, built from its own keyword arguments; ValueError names the known ones."""
    if name not in _METHODS:
        raise ValueError(f'method.name is {name!r}; the methods are {", ".join(sorted(_METHODS))}.')
    try:
        inspect.signature(_METHODS[name]).bind(**arguments)
    except TypeError as error:
        raise ValueError(f'The method block of the config does not fit method {name!r}: {error}.') from None
    return _METHODS[name](**arguments)


__all__ = ['Aux', 'Method', 'make_method']
