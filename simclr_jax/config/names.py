"""Objects by the name that a config gives them: `package.module:Name`."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

HOW_TO_CHANGE_METHOD = (
    'A method has its own settings and heads, so that method.name alone does not change it: take its recipe '
    '(--config=byol), the argument `method` of one that has it (--config=smoke:method=byol), or call '
    "simclr_jax.config.use_method(config, 'byol') in a recipe file.")


def is_path(name: str) -> bool:
    """Whether `name` is of the form `package.module:Name`: dots, letters, digits and one colon."""
    module, _, attribute = name.partition(':')
    return all(part.isidentifier() for part in (*module.split('.'), *attribute.split('.')))


def resolve(name: str, field: str, known: Sequence[str] = ()) -> Any:
    """The object behind `package.module:Name`; modules of the current directory are found too.

    Args:
        name: of the object; dots after the colon reach into classes.
        field: of the config, for the message: 'encoder.name'.
        known: the words that the field takes beside such names, likewise.

    Raises:
        ValueError: it is no such name, the module cannot be imported, or it has no such object.
    """
    if not is_path(name):
        words = f'it takes {", ".join(known)}, and ' if known else ''
        raise ValueError(f"{field} is {name!r}: {words}a part of your own is written 'package.module:Name'.")
    module_name, _, attributes = name.partition(':')
    if os.getcwd() not in sys.path:      # the console command does not add it, `python -m` does
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except Exception as error:      # of the module itself, too
        kind = '' if isinstance(error, ImportError) else f'{type(error).__name__}: '
        raise ValueError(f'{field} is {name!r}: {module_name} cannot be imported ({kind}{error}). Run the command '
                         'from the directory that holds it, or install it.') from error
    for attribute in attributes.split('.'):
        if not hasattr(found, attribute):
            raise ValueError(f'{field} is {name!r}: {module_name} has no {attributes}.')
        found = getattr(found, attribute)
    return found


def importable_name(thing: Any) -> str:
    """'package.module:Name' of a class or function, '' where `resolve` would not find it by one."""
    module, name = getattr(thing, '__module__', ''), getattr(thing, '__qualname__', '')
    known = sys.modules.get(module)
    for part in name.split('.'):
        known = getattr(known, part, None)
    return f'{module}:{name}' if module != '__main__' and known is thing and thing is not None else ''


def plain(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as one of JSON, for config.json; what JSON has not, as `other` makes it."""
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain(each, other) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, other) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else other(value)
