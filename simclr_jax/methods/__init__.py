"""Self-supervised methods, each three pure functions behind one name."""

from simclr_jax.methods.base import Aux, Method
from simclr_jax.methods.simclr import simclr

_METHODS = {'simclr': simclr}


def make_method(name: str, **arguments) -> Method:
    """The method called `name`, built from its own keyword arguments; ValueError names the known ones."""
    if name not in _METHODS:
        raise ValueError(f'method.name is {name!r}; the methods are {", ".join(sorted(_METHODS))}.')
    return _METHODS[name](**arguments)


__all__ = ['Aux', 'Method', 'make_method']
