"""BYOL's released checkpoints (deepmind-research, byol/): pickles of Haiku parameters, as encoders.

A pickle is a program: it names functions, and loading calls them. Here a name never leads to what it names.
Those that arrays, dicts and named tuples need become records of the call; every other one is refused.
"""

import math
import os
import pickle
import re
from typing import Any

import numpy as np

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.naming import by_path, head_fields, resnet_fields, resnet_layers, tensor_names
from simclr_jax.weights.tree import CLASSIFIER, Imported, fit, refuse

# byol/byol_experiment.py _ByolExperimentState
_STATE_FIELDS = ('online_params', 'target_params', 'online_state', 'target_state', 'opt_state')
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # byol/utils/dataset.py normalize_images
_BLOCK = {'shortcut_conv': 'shortcut_conv', 'shortcut_norm': 'shortcut_batchnorm', 'conv1': 'conv_0',
          'norm1': 'batchnorm_0', 'conv2': 'conv_1', 'norm2': 'batchnorm_1', 'conv3': 'conv_2', 'norm3': 'batchnorm_2'}
_NORM = {'scale': '/scale', 'bias': '/offset', 'mean': '/~/mean_ema/average', 'var': '/~/var_ema/average'}


def read_byol(path: str | os.PathLike) -> Imported:
    """A checkpoint of BYOL's: the online ResNet, its projector, and the classifier trained alongside.

    Args:
        path: a pickle of {'experiment_state': (online_params, ...), 'step': ...}, each of the parameters and
            states {'res_net50/~/initial_conv': {'w': array}}, as byol/utils/checkpointing.py writes it.

    Returns:
        Convolutions and max-pool pad as Haiku's SAME does. The predictor, the target network and the
        optimizer's state are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, names code to run, or does not fit; see `weights.tree.fit`.
    """
    file = os.fspath(path)
    checkpoint = _load(file)
    params, state = _online(checkpoint, file)
    arrays = _arrays(params, file) | _arrays(state, file)
    root = next((name.split('/')[0] for name in arrays if re.match(r'res_net\d*/', name)), None)
    if root is None:
        raise ValueError(f'{file} holds no Haiku ResNet: none of its modules is named res_net50 or the like.')
    if f'{root}/final_batchnorm/scale' in arrays:
        raise ValueError(f'{file} holds a pre-activation ResNet (resnet_v2=True), which is not supported.')
    names = _names(root)
    arrays = by_path(arrays, {path: _plain(name) for path, name in names.items()})
    encoder = resnet_fields(arrays, names, file)
    bottleneck = DEPTHS[encoder['depth']][0] is BottleneckBlock
    encoder |= {'stem': 'imagenet', 'zero_init_last_gamma': bottleneck, 'max_pool': 'same', 'conv_padding': 'same',
                'project_first': not bottleneck, 'norm_momentum': 0.9, 'norm_epsilon': 1e-5, 'dtype': 'float32'}
    # byol/utils/networks.py MLP: Linear, BatchNorm, ReLU, Linear without bias
    head = head_fields(arrays, 2 * any(path.startswith('params/head/') for path in arrays), norm=True, final_norm=False,
                       bias=True, final_bias=False)
    variables, classifier = fit(arrays, encoder=encoder, head=head, file=file, names=names)
    return Imported(encoder=encoder, head=head, variables=variables, mean=_MEAN, std=_STD, image_size=224,
                    crop_proportion=0.875, classifier=classifier,
                    source=f'BYOL ResNet-{encoder["depth"]} ({encoder["width"]:g}x)',
                    card={'layout': 'Haiku pickle', 'step': _step(checkpoint)})


def _plain(name):
    """A Haiku name without the marks of what was made in a constructor, and of a second first layer."""
    return re.sub(r'/initial_(conv|batchnorm)_1/', r'/initial_\1/', name.replace('/~/', '/'))


def _online(checkpoint, file):
    """The online network's parameters and state."""
    state = checkpoint.get('experiment_state') if isinstance(checkpoint, dict) else None
    if isinstance(state, _Record):
        state = dict(zip(state.fields or _STATE_FIELDS, state.args))
    if not isinstance(state, dict) or not {'online_params', 'online_state'} <= set(state):
        raise ValueError(f'{file} is a pickle, but not of BYOL\'s pretraining: it holds no experiment_state '
                         'with online_params and online_state.')
    return state['online_params'], state['online_state']


def _arrays(modules: Any, file: str) -> dict[str, np.ndarray]:
    """{plain name of a module/leaf: array} of what is read"""
    if not (isinstance(modules, dict) and all(isinstance(name, str) and isinstance(leaves, dict)
                                              for name, leaves in modules.items())):
        raise ValueError(f'{file} holds parameters in an unknown form, not {{module: {{name: array}}}}.')
    records = {_plain(f'{module}/{leaf}'): record for module, leaves in modules.items()
               for leaf, record in leaves.items()}
    arrays: dict[str, Any] = {
        name: _to_array(record) for name, record in records.items()
        if not name.startswith('predictor/') and not name.endswith(('_ema/hidden', '_ema/counter'))}
    refuse(file, {'not complete arrays of numbers': [name for name, array in arrays.items() if array is None]})
    # Haiku keeps the vectors of norms as [1, 1, 1, C].
    return {name: array.reshape(-1) if name.endswith(('/scale', '/offset', '_ema/average'))
            and array.shape[-1:] == (array.size,) else array for name, array in arrays.items()}


def _names(root: str) -> dict[str, str]:
    """{path of weights.tree.expected: name in the file}"""
    of_resnet = resnet_layers(
        {'stem_conv': f'{root}/~/initial_conv', 'stem_norm': f'{root}/~/initial_batchnorm'},
        lambda group, block: {layer: f'{root}/~/block_group_{group}/~/block_{block}/~/{place}'
                              for layer, place in _BLOCK.items()})
    of_head = {'head/dense1': 'projector/linear', 'head/norm1': 'projector/batch_norm',
               'head/dense2': 'projector/linear_1'}
    return tensor_names(of_resnet | of_head, {'kernel': '/w', 'bias': '/b'}, _NORM) | dict(
        zip(CLASSIFIER, ('classifier/w', 'classifier/b')))


def _step(checkpoint):
    step = _to_array(checkpoint.get('step'))
    return int(step) if step is not None and step.ndim == 0 else None


# ---- the pickle --------------------------------------------------------------------------------------

_BYTES = ('_codecs.encode', 'builtins.bytes', '__builtin__.bytes')          # how protocol 2 writes bytes
_DICTS = ('collections.OrderedDict', 'haiku._src.data_structures.FlatMapping',
          'haiku._src.data_structures.FlatMap', 'haiku._src.data_structures.frozendict')
_RECORDED = re.compile(
    r'numpy\.(dtype|ndarray)|numpy\._?core\.(_?multiarray(_umath)?\.(_reconstruct|scalar)|numeric\._frombuffer)'
    r'|dill\._dill\.(_import_module|_create_array|_create_namedtuple|_get_attr)'
    # Code that may have written a checkpoint (google3: BYOL's released ones).
    r'|(byol|google3|optax|jax|jaxlib)\..*')
_DTYPE = re.compile(r'[<>=|]?([fiu][1248]|b1)')


class _Forbidden(Exception):
    """The pickle names something that is not allowed."""


class _Unpickler(pickle.Unpickler):

    def find_class(self, module, name):
        return _stand_in(f'{module}.{name}')


def _stand_in(name):
    """What is called in the place of `name`: a class of its own, or dict."""
    if name in _DICTS:
        return dict
    if name not in _BYTES and not _RECORDED.fullmatch(name):
        raise _Forbidden(name)
    return type('_Record', (_Record,), {'__slots__': (), 'name': name})


class _Record:
    """Of a call that was not made.

    Attributes:
        name: what was called.
        args: its positional arguments.
        state: what would have been set on its result.
        fields: the names of `args`, where the pickle gives them.
    """

    __slots__ = ('args', 'state')
    name, fields = '', ()

    def __new__(cls, *args, **kwargs):
        if cls.name in _BYTES:
            return _encoded(*args)
        if cls.name == 'dill._dill._create_namedtuple':         # (name, fields, module)
            return type('_Record', (_Record,), {'__slots__': (), 'fields': tuple(map(str, args[1]))})
        if cls.name == 'dill._dill._get_attr':      # (module, name): how dill names functions written in C
            module, name = args
            if getattr(module, 'name', '') != 'dill._dill._import_module' or not isinstance(name, str):
                raise _Forbidden(f'dill._dill._get_attr of {name!r}')
            return _stand_in(f'{module.args[0]}.{name}')
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state):
        self.state = state


def _encoded(text='', encoding='latin1'):
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError('bytes in an unknown form')
    return text.encode('latin1')


def _load(path: str) -> Any:
    """What a pickle holds: dicts, lists, tuples, numbers, strings; records of the rest, see `_to_array`."""
    try:
        with open(path, 'rb') as file:
            return _Unpickler(file).load()
    except _Forbidden as error:
        raise ValueError(f'{path} asks for {error}, which weights do not need and which could run code: '
                         'nothing of it was loaded.') from None
    except FileNotFoundError:
        raise FileNotFoundError(f'there is no file {path}.') from None
    except Exception as error:      # a damaged pickle can raise anything
        raise ValueError(f'{path} cannot be read as a pickle of weights: it is damaged, incomplete or '
                         f'something else ({type(error).__name__}: {str(error)[:200]}).') from error


def _to_array(value: Any) -> np.ndarray | None:
    """The array or number that a record is of; None where it is none, or has too many or few bytes."""
    if isinstance(value, (bool, int, float)):
        return np.asarray(value)
    try:
        order = 'C'
        if value.name.endswith('.scalar'):
            (dtype, data), shape = value.args, ()
        elif value.name.endswith('._frombuffer'):
            data, dtype, shape, order = value.args
        else:                   # dill's _create_array has the state among its arguments, and no attributes
            by_dill = value.name == 'dill._dill._create_array' and not any(value.args[3:])
            _, shape, dtype, fortran, data = value.args[2] if by_dill else value.state
            order = 'F' if fortran else 'C'
        code, byte_order = dtype.args[0], dtype.state[1] if dtype.state else '='
        if dtype.name != 'numpy.dtype' or not _DTYPE.fullmatch(code) or byte_order not in list('<>=|'):
            return None
        dtype = np.dtype(code).newbyteorder(byte_order)
        if not isinstance(data, (bytes, bytearray)) or math.prod(shape) * dtype.itemsize != len(data):
            return None
        array = np.frombuffer(data, dtype).reshape(shape, order=order)
        return array.astype(dtype.newbyteorder('='), order='C')
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
