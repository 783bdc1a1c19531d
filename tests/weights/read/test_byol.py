"""BYOL's pickles give the features of Haiku's ResNet, written out in numpy; hostile ones run nothing."""

import builtins
import collections
import os
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from simclr_jax.models.building import make_network
from simclr_jax.weights.read.byol import read_byol
from tests.weights.tiny_encoders import BOTTLENECKS, depth_of_bottlenecks

# --- haiku/_src/nets/resnet.py and byol/utils/networks.py, in float64

BLOCKS = {18: (2, 2, 2, 2), BOTTLENECKS: (2, 1, 1, 1)}


def windows(x, size, stride, fill):
    """Of x padded as SAME: the output has ceil(input / stride) rows, what is odd is padded below."""
    pads = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in x.shape[1:3]]
    x = np.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)], constant_values=fill)
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def conv(x, params, stride):
    patches = windows(x, params['w'].shape[0], stride, 0.0)
    return np.einsum('bhwcij,ijcd->bhwd', patches, params['w'].astype(np.float64), optimize=True)


def norm(x, name, params, state):
    mean, var = (state[f'{name}/~/{which}_ema']['average'] for which in ('mean', 'var'))
    scale, offset = params[name]['scale'], params[name]['offset']
    return (x - mean) / np.sqrt(var.astype(np.float64) + 1e-5) * scale + offset


def block(x, path, stride, depth, params, state):
    strides = (1, stride, 1) if depth == BOTTLENECKS else (stride, 1)
    y = x
    for index, step in enumerate(strides):
        y = norm(conv(y, params[f'{path}/conv_{index}'], step), f'{path}/batchnorm_{index}', params, state)
        y = y if index == len(strides) - 1 else np.maximum(y, 0)
    if f'{path}/shortcut_conv' in params:
        x = conv(x, params[f'{path}/shortcut_conv'], stride)
        x = norm(x, f'{path}/shortcut_batchnorm', params, state)
    return np.maximum(x + y, 0)


def haiku_forward(images, depth, params, state):
    """(features, head layer 1, projection)"""
    root = f'res_net{depth}/~'
    x = (images - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = norm(conv(x, params[f'{root}/initial_conv'], 2), f'{root}/initial_batchnorm', params, state)
    x = windows(np.maximum(x, 0), 3, 2, -np.inf).max((-2, -1))
    for group, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            path = f'{root}/block_group_{group}/~/block_{index}/~'
            x = block(x, path, 2 if group and not index else 1, depth, params, state)
    features = x.mean((1, 2))
    first, second = params['projector/linear'], params['projector/linear_1']
    hidden = np.maximum(norm(features @ first['w'] + first['b'], 'projector/batch_norm', params, state), 0)
    return features, hidden, hidden @ second['w']


# --- the file


def byol_variables(depth, channels=4, seed=0):
    """(params, state) of byol_experiment.py's network, channels of the first stage instead of 64."""
    rng = np.random.default_rng(seed)
    params, state = {}, {}

    def add_conv(name, *shape):
        kernel = rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        params[name] = {'w': kernel.astype(np.float32)}

    def add_norm(name, size, axes=3):
        shape = (1,) * axes + (size,)
        draw = lambda low, high: rng.uniform(low, high, shape).astype(np.float32)
        params[name] = {'scale': draw(0.5, 1.5), 'offset': draw(-0.3, 0.3)}
        for which, average in (('mean', draw(-0.3, 0.3)), ('var', draw(0.5, 1.5))):
            state[f'{name}/~/{which}_ema'] = {'counter': np.int32(7), 'hidden': 9 * average,
                                              'average': average}

    def add_linear(name, inputs, outputs, bias=True):
        add_conv(name, inputs, outputs)
        if bias:
            params[name]['b'] = rng.uniform(-0.3, 0.3, outputs).astype(np.float32)

    root = f'res_net{depth}/~'
    add_conv(f'{root}/initial_conv', 7, 7, 3, channels)
    add_norm(f'{root}/initial_batchnorm', channels)
    inputs = channels
    for group, count in enumerate(BLOCKS[depth]):
        width = channels * 2 ** group
        outputs = 4 * width if depth == BOTTLENECKS else width
        sizes = [(1, width), (3, width), (1, outputs)] if depth == BOTTLENECKS else [(3, width), (3, width)]
        for index in range(count):
            path = f'{root}/block_group_{group}/~/block_{index}/~'
            if index == 0:
                add_conv(f'{path}/shortcut_conv', 1, 1, inputs, outputs)
                add_norm(f'{path}/shortcut_batchnorm', outputs)
            for layer, (size, out) in enumerate(sizes):
                add_conv(f'{path}/conv_{layer}', size, size, inputs, out)
                add_norm(f'{path}/batchnorm_{layer}', out)
                inputs = out
    for name, width in (('projector', inputs), ('predictor', 6)):
        add_linear(f'{name}/linear', width, 10)
        add_norm(f'{name}/batch_norm', 10, axes=1)
        add_linear(f'{name}/linear_1', 10, 6, bias=False)
    add_linear('classifier', inputs, 3)
    return params, state


@pytest.fixture
def foreign(monkeypatch):
    """Classes under the names that they have in BYOL's files, only while a test writes a pickle."""
    def module(name):
        for index in range(1, name.count('.') + 2):
            parent = '.'.join(name.split('.')[:index])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        return sys.modules[name]

    class FlatMapping(dict):
        def __reduce__(self):
            return FlatMapping, (dict(self),)

    fields = ['online_params', 'target_params', 'online_state', 'target_state', 'opt_state']
    state = collections.namedtuple('_ByolExperimentState', fields)
    lars = collections.namedtuple('ScaleByLarsState', ['mu'])
    for cls, name in ((FlatMapping, 'haiku._src.data_structures'), (state, 'byol.byol_experiment'),
                      (lars, 'byol.utils.optimizers')):
        cls.__module__, cls.__qualname__ = name, cls.__name__
        setattr(module(name), cls.__name__, cls)
    return FlatMapping, state, lars


def write(path, foreign, params, state, protocol=2):
    """As byol/utils/checkpointing.py writes it, which uses protocol 2."""
    flat, experiment, lars = foreign
    tree = lambda modules: flat({name: flat(leaves) for name, leaves in modules.items()})
    target = tree(jax.tree.map(lambda array: array + 1, params))
    online = tree(params), target, tree(state), tree(state), [lars(target)]
    content = {'experiment_state': experiment(*online), 'step': np.int64(1000), 'rng': np.zeros(2, np.uint32)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.fixture(scope='module')
def small():
    return byol_variables(18)


@pytest.mark.parametrize('depth, shape', [(18, (46, 33)), (BOTTLENECKS, (33, 46))])
def test_every_layer_equals_haikus(tmp_path, foreign, depth, shape):
    params, state = byol_variables(depth)
    write(tmp_path / 'byol.pkl', foreign, params, state)
    with depth_of_bottlenecks(BLOCKS[BOTTLENECKS]):
        check_layers(read_byol(tmp_path / 'byol.pkl'), depth, shape, params, state)


def check_layers(imported, depth, shape, params, state):
    images = np.random.default_rng(1).uniform(size=(2, *shape, 3)).astype(np.float32)
    expected = haiku_forward(images, depth, params, state)
    network = make_network(encoder=imported.encoder, head=imported.head, mean=imported.mean, std=imported.std)
    layers = jax.jit(lambda tree, images: network.apply(tree, images, train=False).layers)(
        imported.variables, images)
    for ours, theirs in zip(layers, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_array_equal(imported.classifier['kernel'], params['classifier']['w'])
    np.testing.assert_array_equal(imported.classifier['bias'], params['classifier']['b'])
    assert imported.source == f'BYOL ResNet-{depth} (0.0625x)' and imported.card['step'] == 1000
    assert (imported.image_size, imported.crop_proportion) == (224, 0.875)


def test_all_ways_to_pickle_give_the_same_arrays(tmp_path, foreign, small):
    params, state = small
    write(tmp_path / '2.pkl', foreign, params, state)
    reference = read_byol(tmp_path / '2.pkl')
    odd = {name: {leaf: np.asfortranarray(array) if leaf == 'w' else array.astype('>f4')
                  for leaf, array in leaves.items()} for name, leaves in params.items()}
    write(tmp_path / '5.pkl', foreign, params, state, protocol=5)
    write(tmp_path / 'odd.pkl', foreign, odd, state, protocol=4)
    renamed = (tmp_path / '2.pkl').read_bytes().replace(b'cnumpy._core.', b'cnumpy.core.')
    (tmp_path / 'numpy1.pkl').write_bytes(renamed)
    for name in ('5', 'odd', 'numpy1'):
        jax.tree.map(np.testing.assert_array_equal, read_byol(tmp_path / f'{name}.pkl').variables,
                     reference.variables)


class Call:
    """Pickles as a call of `function`, which may itself be such a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        raise AssertionError('called')      # pickle asks for what can be called


def dill_functions():
    """Stand-ins for dill's functions, which pickle by name as dill's own do."""
    dill = types.ModuleType('dill._dill')
    for name in ('_create_type', '_create_namedtuple', '_create_array', '_get_attr', '_import_module'):
        function = lambda *args: args
        function.__module__, function.__qualname__ = 'dill._dill', name
        setattr(dill, name, function)
    return {'dill': types.ModuleType('dill'), 'dill._dill': dill}


def test_dills_own_forms_are_understood(tmp_path, foreign, small, monkeypatch):
    """As dill 0.3.2, of the year of BYOL, writes arrays, bytes and named tuples."""
    for name, module in dill_functions().items():
        monkeypatch.setitem(sys.modules, name, module)
    dill = sys.modules['dill._dill']
    by_name = lambda module, name: Call(dill._get_attr, Call(dill._import_module, module), name)

    def dilled(array):
        _, args, state = array.__reduce__()
        return Call(dill._create_array, by_name('numpy.core._multiarray_umath', '_reconstruct'),
                    (args[0], (0,), Call(by_name('_codecs', 'encode'), 'b', 'latin1')), state, None)

    flat = foreign[0]
    params, state = ({name: flat({leaf: dilled(np.asarray(array)) for leaf, array in leaves.items()})
                      for name, leaves in tree.items()} for tree in small)
    experiment = Call(dill._create_namedtuple, '_State', ('online_state', 'online_params'), 'google3.byol')
    (tmp_path / 'dill.pkl').write_bytes(pickle.dumps(
        {'experiment_state': Call(experiment, flat(state), flat(params)), 'step': 8}, protocol=2))
    write(tmp_path / 'plain.pkl', foreign, *small)
    dilled, plain = read_byol(tmp_path / 'dill.pkl'), read_byol(tmp_path / 'plain.pkl')
    jax.tree.map(np.testing.assert_array_equal, dilled.variables, plain.variables)
    assert dilled.card['step'] == 8


def hostile_pickles(mark):
    touch = f'touch {mark}'
    dill = sys.modules['dill._dill']
    yield 'posix.system', pickle.dumps(Call(os.system, touch))
    yield 'builtins.eval', pickle.dumps({'step': Call(builtins.eval, f'open({str(mark)!r}, "w")')})
    yield '__builtin__.eval', pickle.dumps(Call(builtins.eval, '1'), protocol=2)
    yield 'builtins.getattr', pickle.dumps(Call(getattr, Call(__import__, 'os'), 'system'))
    yield 'dill._dill._create_type', pickle.dumps(Call(dill._create_type, 'A', (), {}))
    dilled = Call(dill._get_attr, Call(dill._import_module, 'os'), 'system')
    yield 'os.system', pickle.dumps(Call(dilled, touch))
    yield "dill._dill._get_attr of 'tofile'", pickle.dumps(Call(dill._get_attr, np.ones(2), 'tofile'))
    yield 'numpy.load', pickle.dumps(Call(np.load, 'a.npy'))
    yield 'os.system', b'cos\nsystem\n(S' + repr(touch).encode() + b'\ntR.'
    yield 'os.system', b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R.'
    yield 'os.system', b'(S' + repr(touch).encode() + b'\nios\nsystem\n.'
    # A dotted name that starts at an allowed module.
    yield 'numpy.dtype.__class__', b'\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.'


def test_hostile_pickles_are_refused_by_name_and_run_nothing(tmp_path, monkeypatch):
    for name, module in dill_functions().items():
        monkeypatch.setitem(sys.modules, name, module)
    mark, before = tmp_path / 'ran', set(sys.modules)
    for name, content in hostile_pickles(mark):
        (tmp_path / 'hostile.pkl').write_bytes(content)
        with pytest.raises(ValueError, match=f'hostile.pkl asks for {name}, .*could run code'):
            read_byol(tmp_path / 'hostile.pkl')
    assert not mark.exists() and set(sys.modules) == before


@pytest.mark.parametrize('content, message', [
    # A state set on a class, and on a function: neither changes anything here.
    (b'\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93}\x8c\x01a\x8c\x01bsb.', 'TypeError'),
    (b'\x80\x04\x8c\x07_codecs\x8c\x06encode\x93}\x8c\x0c__defaults__K\x01sb.', 'TypeError'),
    (b'\x80\x04\x8c\x07_codecs\x8c\x06encode\x93\x8c\x01a\x8c\x06rot_13\x86R.', 'bytes in an unknown form'),
    (b'\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93.', 'no experiment_state'),
    (b'\x80\x04N.', 'no experiment_state'), (b'\x80\x04]q\x00h\x00a.', 'no experiment_state'),
    (b'', 'EOFError'), (b'weights', 'UnpicklingError'),
])
def test_pickles_of_something_else_end_in_a_sentence(tmp_path, content, message):
    (tmp_path / 'odd.pkl').write_bytes(content)
    with pytest.raises(ValueError, match=rf'odd.pkl (cannot be read|is a pickle, but not).*{message}'):
        read_byol(tmp_path / 'odd.pkl')


@pytest.mark.parametrize('true, lie', [(b'K\x03\x85', b'K\x04\x85'), (b'f4', b'f8'), (b'f4', b'O8'),
                                       (b'f4', b'V4'), (b'\x01<', b'\x01?')])
def test_an_array_is_as_long_as_it_says_and_of_numbers(tmp_path, foreign, small, true, lie):
    write(tmp_path / 'byol.pkl', foreign, *small)
    content = (tmp_path / 'byol.pkl').read_bytes()
    if true == b'\x01<':       # the byte order
        true, lie = (b'X\x01\x00\x00\x00' + order[-1:] for order in (true, lie))
    assert true in content      # (3,) is the shape of classifier/b alone
    (tmp_path / 'byol.pkl').write_bytes(content.replace(true, lie))
    with pytest.raises(ValueError, match='not complete arrays of numbers: '):
        read_byol(tmp_path / 'byol.pkl')


ROOT = 'res_net18/~'
NORM = f'{ROOT}/block_group_1/~/block_0/~/batchnorm_1'


@pytest.mark.parametrize('name, leaf, value, message', [
    (NORM, 'scale', None, f'missing: {NORM}/scale'),
    (f'{NORM}/~/var_ema', 'average', None, f'missing: {NORM}/~/var_ema/average'),
    (NORM, 'extra', np.ones(2, 'f'), 'unexpected: .*batchnorm_1/extra'),
    ('decoder/linear', 'w', np.ones(2, 'f'), 'unexpected: decoder/linear/w'),
    (NORM, 'scale', np.ones((1, 1, 1, 7), 'f'), rf'another shape: {NORM}/scale \[7\] instead of \[8\]'),
    (NORM, 'scale', np.ones((1, 1, 1, 8)), f'not float32: {NORM}/scale float64'),
    (NORM, 'scale', np.full((1, 1, 1, 8), np.nan, 'f'), f'not finite: {NORM}/scale'),
    (f'{NORM}/~/var_ema', 'average', -np.ones((1, 1, 1, 8), 'f'), 'negative variances: .*/~/var_ema/average'),
    ('classifier', 'b', None, 'missing: classifier/b'),
    ('classifier', 'w', np.full((32, 3), np.inf, 'f'), 'not finite: classifier/w'),
    ('projector/linear_1', 'w', None, 'missing: projector/linear_1/w'),
    (f'{ROOT}/initial_conv', 'w', None, 'missing, or no convolution: .*/initial_conv/w'),
    (f'{ROOT}/final_batchnorm', 'scale', np.ones(2, 'f'), 'pre-activation ResNet'),
    (f'{ROOT}/block_group_1/~/block_2/~/conv_0', 'w', np.ones((3, 3, 8, 8), 'f'),
     'stages of 2, 3, 2, 2 basic blocks: no ResNet of depth'),
    (NORM, 'scale', np.array(['a'], object), 'not complete arrays of numbers: .*batchnorm_1/scale'),
    (NORM, 'scale', 'text', 'not complete arrays of numbers: .*batchnorm_1/scale'),
])
def test_whatever_does_not_fit_is_refused_by_name(tmp_path, foreign, small, name, leaf, value, message):
    params, state = ({module: dict(leaves) for module, leaves in tree.items()} for tree in small)
    leaves = (state if name.endswith('_ema') else params).setdefault(name, {})
    leaves[leaf] = value
    if value is None:
        del leaves[leaf]
    flat, experiment, _ = foreign
    content = {'experiment_state': experiment(flat(params), None, flat(state), None, None), 'step': 3}
    (tmp_path / 'byol.pkl').write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=f'byol.pkl .*{message}'):
        read_byol(tmp_path / 'byol.pkl')


def test_damaged_and_absent_files_end_in_a_sentence(tmp_path, foreign, small):
    write(tmp_path / 'byol.pkl', foreign, *small)
    whole = (tmp_path / 'byol.pkl').read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        (tmp_path / 'byol.pkl').write_bytes(whole[:length])
        with pytest.raises(ValueError, match='byol.pkl cannot be read .* damaged, incomplete'):
            read_byol(tmp_path / 'byol.pkl')
    with pytest.raises(FileNotFoundError, match='no file .*absent.pkl'):
        read_byol(tmp_path / 'absent.pkl')
    os.symlink(tmp_path / 'loop', tmp_path / 'loop')
    with pytest.raises(ValueError, match='loop cannot be read'):
        read_byol(tmp_path / 'loop')
