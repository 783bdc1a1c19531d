"""BYOL's released checkpoints (deepmind-research, byol/): pickles of Haiku parameters, as encoders.

A pickle is a program: it names functions, and loading calls them. Here a name never leads to what it names.
Those that arrays, dicts and named tuples need become records of the call; every other one is refused.
"""

import math
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.weights.tree import CLASSIFIER, Imported, expected, fit, refuse, resnet_depth

# byol/byol_experiment.py _ByolExperimentState
_STATE_FIELDS = ('online_params', 'target_params', 'online_state', 'target_state', 'opt_state')
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # byol/utils/dataset.py normalize_images
_NORM = {'scale': 'scale', 'bias': 'offset', 'mean': '~/mean_ema/average', 'var': '~/var_ema/average'}


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
    records = _flat(params, file) | _flat(state, file)
    records = {name: record for name, record in records.items()
               if not name.startswith('predictor/') and not name.endswith(('_ema/hidden', '_ema/counter'))}
    arrays = _arrays(records, file)
    root = next((name.split('/')[0] for name in arrays if re.match(r'res_net\d*/', name)), None)
    if root is None:
        raise ValueError(f'{file} holds no Haiku ResNet: none of its modules is named res_net50 or the like.')
    encoder, head = _encoder(arrays, root, file), _projector(arrays)
    names = {path: _name(path, root) for path in expected(encoder, head, file)}
    names |= zip(CLASSIFIER, ('classifier/w', 'classifier/b'))
    paths = {_plain(name): path for path, name in names.items()}
    ours = {paths.get(name, name): array for name, array in arrays.items()}
    variables, classifier = fit(ours, encoder=encoder, head=head, file=file,
                                name_of=lambda path: names.get(path, path))
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


def _flat(modules: Any, file: str) -> dict[str, Any]:
    """{plain name of a module/leaf: record of an array}"""
    if not (isinstance(modules, dict) and all(isinstance(name, str) and isinstance(leaves, dict)
                                              for name, leaves in modules.items())):
        raise ValueError(f'{file} holds parameters in an unknown form, not {{module: {{name: array}}}}.')
    return {_plain(f'{module}/{leaf}'): value for module, leaves in modules.items()
            for leaf, value in leaves.items()}


def _arrays(records: Mapping[str, Any], file: str) -> dict[str, np.ndarray]:
    arrays, broken = {}, []
    for name, record in records.items():
        try:
            array = _to_array(record)
        except ValueError:
            broken.append(name)
            continue
        if name.endswith(('/scale', '/offset', '_ema/average')) and array.shape[-1:] == (array.size,):
            array = array.reshape(-1)       # Haiku keeps [1, 1, 1, C]
        arrays[name] = array
    refuse(file, {'not complete arrays of numbers': broken})
    return arrays


def _encoder(arrays: Mapping[str, np.ndarray], root: str, file: str) -> dict[str, Any]:
    """Fields of models.resnet.ResNet."""
    if f'{root}/final_batchnorm/scale' in arrays:
        raise ValueError(f'{file} holds a pre-activation ResNet (resnet_v2=True), which is not supported.')
    bottleneck = f'{root}/block_group_0/block_0/conv_2/w' in arrays
    depth = resnet_depth(arrays, re.escape(root) + r'/block_group_(\d)/block_(\d{1,3})/', first=0,
                         bottleneck=bottleneck, file=file)
    stem = arrays.get(f'{root}/initial_conv/w', np.zeros(0))
    refuse(file, {'missing, or no convolution': [f'{root}/~/initial_conv/w'] if stem.ndim != 4 else []})
    return {'depth': depth, 'width': stem.shape[3] / 64, 'stem': 'imagenet', 'sk_ratio': 0.0,
            'zero_init_last_gamma': bottleneck, 'max_pool': 'same', 'conv_padding': 'same',
            'project_first': not bottleneck, 'norm_momentum': 0.9, 'norm_epsilon': 1e-5, 'dtype': 'float32'}


def _projector(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of byol/utils/networks.py MLP: Linear, BatchNorm, ReLU, Linear without bias."""
    if not any(name.startswith('projector/') for name in arrays):
        return {'mode': 'none'}
    hidden, out = (arrays.get(f'projector/{layer}/w', np.zeros((0, 0))) for layer in ('linear', 'linear_1'))
    return {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': hidden.shape[-1], 'out_dim': out.shape[-1],
            'norm': True, 'final_norm': False, 'bias': True, 'final_bias': False}


def _name(path: str, root: str) -> str:
    """A path of weights.tree.expected -> the name in the file."""
    _, part, *layers, leaf = path.split('/')
    if part == 'head':
        layer = {'dense1': 'linear', 'dense2': 'linear_1', 'norm1': 'batch_norm'}[layers[0]]
        leaves = {'kernel': 'w', 'bias': 'b'} if layers[0].startswith('dense') else _NORM
        return f'projector/{layer}/{leaves[leaf]}'
    block = re.fullmatch(r'stage(\d)_block(\d+)', layers[0])
    where = f'{root}/~'
    if block:
        where += f'/block_group_{int(block[1]) - 1}/~/block_{int(block[2]) - 1}/~'
    match = re.fullmatch(r'(?:stem_)?(?:shortcut_)?(conv|norm)(\d?)', layers[-1])
    assert match, f'{path} is of no ResNet'
    kind, number = {'conv': 'conv', 'norm': 'batchnorm'}[match[1]], match[2]
    layer = f'{kind}_{int(number) - 1}' if number else f'{"shortcut" if block else "initial"}_{kind}'
    return f'{where}/{layer}/{"w" if leaf == "kernel" else _NORM[leaf]}'


def _step(checkpoint):
    try:
        return int(_to_array(checkpoint.get('step')))
    except (TypeError, ValueError):
        return None


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


def _to_array(value: Any) -> np.ndarray:
    """The array or number that a record is of; ValueError where it is none, or has too many or few bytes."""
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
            state = value.args[2] if by_dill else value.state
            _, shape, dtype, fortran, data = state
            order = 'F' if fortran else 'C'
        code, byte_order = dtype.args[0], dtype.state[1] if dtype.state else '='
        if dtype.name != 'numpy.dtype' or not _DTYPE.fullmatch(code) or byte_order not in list('<>=|'):
            raise ValueError
        dtype = np.dtype(code).newbyteorder(byte_order)
        if not isinstance(data, (bytes, bytearray)) or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError
        array = np.frombuffer(data, dtype).reshape(shape, order=order)
        return array.astype(dtype.newbyteorder('='), order='C')
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ValueError('is not an array of numbers, or incomplete') from None
