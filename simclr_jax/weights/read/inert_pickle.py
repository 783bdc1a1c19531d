"""Arrays out of a pickle without running any of it.

A pickle is a program: it names functions, and loading calls them. Here no name leads to what it names. A few
that arrays, dicts and named tuples need lead to classes of this file, which keep what they are given;
every other one is refused. The arrays are then made from those records, with their sizes checked.
"""

import math
import os
import pickle
import re
from typing import Any

import numpy as np

# Code that may have written a checkpoint (google3: BYOL's released ones): its classes become records, and
# are never imported.
_RECORDED = ('byol', 'google3', 'optax', 'jax', 'jaxlib')
_DTYPE = re.compile(r'[<>=|]?([fiu][1248]|b1)')


class Record:
    """Of a call `module.name(*args)` that was not made.

    Attributes:
        args: its positional arguments.
        state: what would have been set on its result.
        fields: the names of `args`, where the pickle says them.
    """

    __slots__ = ('args', 'state')
    fields = ()

    def __new__(cls, *args, **kwargs):
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state):
        self.state = state


class Mapping(dict):
    """In place of dict and of the mappings of Haiku, which are made from one dict or from pairs."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError('a mapping with a state')


class _Bytes(Record):
    """codecs.encode(text, 'latin1') and bytes(): how protocol 2 writes bytes."""

    def __new__(cls, text='', encoding='latin1'):
        if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
            raise pickle.UnpicklingError('bytes in an unknown form')
        return text.encode('latin1')


class _NamedTuple(Record):
    """dill's _create_namedtuple(name, fields, module): a record that knows the names of its arguments."""

    def __new__(cls, name, fields, *_):
        if not isinstance(fields, (tuple, list)) or not all(isinstance(field, str) for field in fields):
            raise pickle.UnpicklingError('a named tuple without names')
        return type('Record', (Record,), {'__slots__': (), 'fields': tuple(fields)})


class _Array(Record):
    """numpy's _reconstruct, whose state is (version, shape, dtype, whether in Fortran order, bytes)."""


class _Buffer(Record):
    """numpy's _frombuffer(bytes, dtype, shape, order), of protocol 5."""


class _Scalar(Record):
    """numpy's scalar(dtype, bytes)."""


class _Dtype(Record):
    """numpy.dtype('f4', ...), whose state is (version, byte order, ...)."""


class _Module(Record):
    """dill's _import_module(name); nothing is imported."""


class _Attribute(Record):
    """dill's _get_attr(module, name), by which it names functions written in C."""

    def __new__(cls, module, name):
        if not isinstance(module, _Module) or not isinstance(name, str):
            raise _Forbidden(f'dill._dill._get_attr of {name!r}')
        return _stand_in(str(module.args[0]), name)


class _DillArray(Record):
    """dill's _create_array(_reconstruct, arguments, state of the array, its attributes)."""

    def __new__(cls, function, args, state, attributes=None):
        if function is not _Array or attributes:
            raise pickle.UnpicklingError('an array in an unknown form')
        array = _Array(*args)
        array.state = state
        return array


_KNOWN = {('collections', 'OrderedDict'): Mapping, ('_codecs', 'encode'): _Bytes,
          ('builtins', 'bytes'): _Bytes, ('__builtin__', 'bytes'): _Bytes,
          ('numpy', 'ndarray'): Record, ('numpy', 'dtype'): _Dtype,
          ('dill._dill', '_create_namedtuple'): _NamedTuple, ('dill._dill', '_import_module'): _Module,
          ('dill._dill', '_get_attr'): _Attribute, ('dill._dill', '_create_array'): _DillArray}
_KNOWN |= {(f'numpy.{core}.{module}', name): stand_in
           for core in ('core', '_core') for module in ('multiarray', '_multiarray_umath')
           for name, stand_in in (('_reconstruct', _Array), ('scalar', _Scalar))}
_KNOWN |= {(f'numpy.{core}.numeric', '_frombuffer'): _Buffer for core in ('core', '_core')}
_KNOWN |= {('haiku._src.data_structures', name): Mapping for name in ('FlatMapping', 'FlatMap', 'frozendict')}


def _stand_in(module, name):
    if (module, name) in _KNOWN:
        return _KNOWN[module, name]
    if module.split('.')[0] in _RECORDED:
        return Record
    raise _Forbidden(f'{module}.{name}')


class _Unpickler(pickle.Unpickler):

    def find_class(self, module, name):
        return _stand_in(module, name)


class _Forbidden(Exception):
    """The pickle names something that is not allowed."""


def load(path: str | os.PathLike) -> Any:
    """What a pickle holds: dicts, lists, tuples, numbers, strings; records of the rest, see `to_array`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no pickle, is damaged, or names anything that is not known to be harmless.
    """
    try:
        with open(path, 'rb') as file:
            return _Unpickler(file).load()
    except _Forbidden as error:
        raise ValueError(f'{path} asks for {error}, which weights do not need and which could run code: '
                         'nothing of it was loaded.') from None
    except FileNotFoundError:
        raise FileNotFoundError(f'there is no file {path}.') from None
    except Exception as error:      # a damaged pickle can raise anything
        raise ValueError(f'{path} cannot be read as a pickle of weights: it is damaged, not whole, or '
                         f'something else ({type(error).__name__}: {str(error)[:200]}).') from error


def to_array(value: Any) -> np.ndarray:
    """The array or number of which `value` is the record, in this machine's byte order; not to be written to.

    Raises:
        ValueError: it is none, or its bytes are not as many as its shape and dtype say.
    """
    if isinstance(value, (bool, int, float)):
        return np.asarray(value)
    try:
        if isinstance(value, _Array):
            _, shape, dtype, fortran, data = value.state
        elif isinstance(value, _Buffer):
            data, dtype, shape, order = value.args
            fortran = order == 'F'
        elif isinstance(value, _Scalar):
            (dtype, data), shape, fortran = value.args, (), False
        else:
            raise ValueError
        dtype = _to_dtype(dtype)
        if not (isinstance(data, (bytes, bytearray)) and isinstance(shape, tuple)
                and all(isinstance(size, int) and size >= 0 for size in shape)
                and math.prod(shape) * dtype.itemsize == len(data)):
            raise ValueError
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ValueError('is no array of numbers, or not whole') from None
    array = np.frombuffer(data, dtype).reshape(shape, order='F' if fortran else 'C')
    return array.astype(dtype.newbyteorder('='), order='C', copy=False)


def _to_dtype(record):
    code, order = record.args[0], record.state[1] if record.state else '='
    if not isinstance(record, _Dtype) or not _DTYPE.fullmatch(code) or order not in ('<', '>', '=', '|'):
        raise ValueError
    return np.dtype(code).newbyteorder(order)
