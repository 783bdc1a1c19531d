"""ResNet against a slow float64 transcription, and against published sizes and counts."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.lib.stride_tricks import sliding_window_view

from simclr_jax.models import resnet
from simclr_jax.models.norm import BatchNorm
from simclr_jax.models.resnet import ResNet

# --- numpy, float64: a tree is {'params': ..., 'batch_stats': ...}, each with the same names


def sub(tree, name):
    return {kind: values.get(name, {}) for kind, values in tree.items()}


def windows(x, size, stride, before, after, fill=0.0):
    """[B, H', W', C, size, size]"""
    x = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=fill)
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def conv(x, tree, name, stride=1):
    kernel = tree['params'][name]['kernel']
    size = kernel.shape[0]
    patches = windows(x, size, stride, size // 2, size // 2)
    return np.einsum('bhwcij,ijcd->bhwd', patches, kernel)


def norm(x, tree, name):
    params, stats = tree['params'][name], tree['batch_stats'][name]
    return (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['scale'] + params['bias']


def relu(x):
    return np.maximum(x, 0)


def conv_norm_relu(x, tree, suffix, stride=1):
    return relu(norm(conv(x, tree, f'conv{suffix}', stride), tree, f'norm{suffix}'))


def selective_kernel(x, tree, stride):
    x = relu(norm(conv(x, tree, 'conv', stride), tree, 'norm'))
    first, second = np.split(x, 2, axis=-1)
    pooled = (first + second).mean((1, 2), keepdims=True)
    squeezed = relu(norm(conv(pooled, tree, 'squeeze_conv'), tree, 'squeeze_norm'))
    a, b = np.split(conv(squeezed, tree, 'mixing_conv'), 2, axis=-1)
    return (first * np.exp(a) + second * np.exp(b)) / (np.exp(a) + np.exp(b))


def shortcut(x, tree, stride, resnet_d):
    if 'shortcut_conv' not in tree['params']:
        return x
    if resnet_d and stride == 1:
        x = np.nanmean(windows(x, 2, 1, 0, 1, fill=np.nan), (-2, -1))
    elif resnet_d:
        x = windows(x, 2, 2, 0, 1).mean((-2, -1))
    x = conv(x, tree, 'shortcut_conv', 1 if resnet_d else stride)
    return norm(x, tree, 'shortcut_norm')


def block(x, tree, stride, sk):
    if 'conv3' not in tree['params']:
        y = conv_norm_relu(x, tree, '1', stride)
        y = norm(conv(y, tree, 'conv2'), tree, 'norm2')
    else:
        y = conv_norm_relu(x, tree, '1')
        y = (selective_kernel(y, sub(tree, 'conv2'), stride) if sk
             else conv_norm_relu(y, tree, '2', stride))
        y = norm(conv(y, tree, 'conv3'), tree, 'norm3')
    return relu(y + shortcut(x, tree, stride, sk))


def reference(x, tree, stem, max_pool, sk):
    stem_tree = {kind: {name.removeprefix('stem_'): value for name, value in values.items()}
                 for kind, values in tree.items()}
    if stem == 'imagenet' and sk:
        x = conv_norm_relu(x, stem_tree, '1', 2)
        x = conv_norm_relu(x, stem_tree, '2')
        x = conv_norm_relu(x, stem_tree, '3')
    else:
        x = conv_norm_relu(x, stem_tree, '', 2 if stem == 'imagenet' else 1)
    if stem == 'imagenet':
        same_before = 0 if x.shape[1] % 2 == 0 else 1
        before = 1 if max_pool == 'torch' else same_before
        x = windows(x, 3, 2, before, 1, fill=-np.inf).max((-2, -1))
    for stage in range(1, 5):
        x = block(x, sub(tree, f'stage{stage}_block1'), 1 if stage == 1 else 2, sk)
    return x.mean((1, 2))


# --- our module

# Every test here compiles far longer than it runs.
quick_jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def random_variables(module, images, seed=0):
    """Variables of which no entry is special: no zero gamma, no unit variance."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == 'kernel':
            return rng.normal(0, 1 / math.sqrt(math.prod(leaf.shape[:-1])), leaf.shape)
        low, high = (0.5, 1.5) if kind in ('scale', 'var') else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, images.shape))


def shapes(module, images=(1, 64, 64, 3)):
    init = lambda key: module.init(key, jnp.zeros(images), train=False)
    return jax.eval_shape(init, jax.random.key(0))


def total(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('depth, stem, max_pool, sk_ratio, size', [
    (10, 'cifar', 'torch', 0.0, 9),
    (10, 'imagenet', 'torch', 0.0, 32),
    (10, 'imagenet', 'same', 0.0, 32),
    (14, 'imagenet', 'torch', 0.0, 33),
    (10, 'cifar', 'torch', 0.5, 9),
    (14, 'imagenet', 'same', 0.5, 36),  # odd sizes from stage 1 on, a squeeze above its minimum
])
def test_forward_equals_a_transcription(monkeypatch, depth, stem, max_pool, sk_ratio, size):
    monkeypatch.setitem(resnet.DEPTHS, 14, (resnet.BottleneckBlock, (1, 1, 1, 1)))
    module = ResNet(depth, width=0.25, stem=stem, max_pool=max_pool, sk_ratio=sk_ratio)
    images = np.random.default_rng(1).uniform(size=(2, size, size, 3))
    variables = random_variables(module, images)
    single = jax.tree.map(np.float32, variables)
    features = quick_jit(partial(module.apply, train=False))(single, np.float32(images))
    expected = reference(images, variables, stem, max_pool, sk_ratio > 0)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('depth, width, sk, millions', [
    (50, 1, False, 24), (50, 1, True, 35), (101, 2, False, 170), (152, 1, True, 89), (152, 3, True, 795)])
def test_variable_count_is_that_of_simclr_v2(depth, width, sk, millions):
    """SimCLRv2 (arXiv:2006.10029), Table 1: the encoder, running statistics included."""
    variables = shapes(ResNet(depth, width=width, sk_ratio=0.0625 if sk else 0.0))
    assert round(total(variables) / 1e6) == millions


def test_names_are_stable():
    params = shapes(ResNet(50))['params']
    blocks = {f'stage{stage}_block{block}' for stage, blocks in enumerate((3, 4, 6, 3), start=1)
              for block in range(1, blocks + 1)}
    assert set(params) == {'stem_conv', 'stem_norm'} | blocks
    layers = {'conv1', 'norm1', 'conv2', 'norm2', 'conv3', 'norm3'}
    assert set(params['stage1_block2']) == layers
    assert set(params['stage2_block1']) == layers | {'shortcut_conv', 'shortcut_norm'}


def test_project_first_adds_the_shortcut_that_torchvision_does_not_have():
    plain, official = ({path for path, _ in jax.tree_util.tree_leaves_with_path(
        shapes(ResNet(18, project_first=project))['params'])} for project in (False, True))
    added = {jax.tree_util.keystr(path, simple=True, separator='/') for path in official - plain}
    assert added == {f'stage1_block1/shortcut_{name}' for name in ('conv/kernel', 'norm/scale', 'norm/bias')}


@pytest.mark.parametrize('size, stride, length', [(3, 2, 8), (3, 2, 9), (7, 2, 8), (1, 2, 8), (3, 1, 8)])
def test_conv_padding_same_is_tensorflows(size, stride, length):
    module = resnet.Conv(4, size, stride, padding='same')
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, length, length, 3)), rng.normal(size=(size, size, 3, 4))
    rows = -(-length // stride)
    pad = max((rows - 1) * stride + size - length, 0)
    expected = np.einsum('bhwcij,ijcd->bhwd', windows(x, size, stride, pad // 2, pad - pad // 2), kernel)
    ours = quick_jit(module.apply)({'params': {'kernel': np.float32(kernel)}}, np.float32(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('block_type, last', [
    (resnet.BasicBlock, 'norm2'), (resnet.BottleneckBlock, 'norm3')])
def test_a_block_whose_last_gamma_is_zero_is_the_identity(block_type, last):
    batch_norm = partial(BatchNorm, use_running_average=True)
    module = block_type(4, 1, 0.0, resnet.Conv,
                        batch_norm, batch_norm)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 5, 4 * block_type.expansion)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1.0, leaf.shape).astype(np.float32),
                             jax.eval_shape(module.init, jax.random.key(0), x))
    variables['params'][last]['bias'][:] = 0
    variables['batch_stats'][last]['mean'][:] = 0
    apply = quick_jit(module.apply)
    assert np.abs(apply(variables, x) - nn.relu(x)).max() > 0.1
    variables['params'][last]['scale'][:] = 0
    np.testing.assert_array_equal(apply(variables, x), nn.relu(x))


@pytest.mark.parametrize('zero', [True, False])
def test_only_the_last_gamma_of_each_block_starts_at_zero(zero):
    module = ResNet(18, width=1 / 16, stem='cifar', zero_init_last_gamma=zero)

    @quick_jit  # returning the gammas only spares compiling every other initialiser
    def gammas(key):
        params = module.init(key, jnp.zeros((1, 8, 8, 3)), train=False)['params']
        return {path[:-1]: leaf for path, leaf in flatten_dict(params).items()
                if path[-1] == 'scale'}

    for path, gamma in gammas(jax.random.key(0)).items():
        is_last = path[-1] == 'norm2'
        np.testing.assert_array_equal(gamma, 0.0 if zero and is_last else 1.0)


def test_kernels_start_at_unit_fan_in_variance():
    module = resnet.Conv(256, 3)
    variables = quick_jit(module.init)(jax.random.key(0), jnp.zeros((1, 3, 3, 64)))
    kernel = variables['params']['kernel']
    assert kernel.std() * math.sqrt(9 * 64) == pytest.approx(1.0, rel=0.01)
    assert abs(kernel).max() * math.sqrt(9 * 64) < 2.3  # truncated at two deviations, rescaled


def test_bfloat16_is_for_activations_only():
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    settings = dict(depth=10, width=0.125, stem='cifar')
    variables = jax.tree.map(np.float32, random_variables(ResNet(**settings), images))
    half = ResNet(**settings, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype('float32')}

    features, seen = quick_jit(partial(half.apply, train=False, capture_intermediates=True,
                                       mutable='intermediates'))(variables, images)
    inner = {name: value for name, value in seen['intermediates'].items() if name != '__call__'}
    assert {leaf.dtype for leaf in jax.tree.leaves(inner)} == {jnp.dtype('bfloat16')}
    full = quick_jit(partial(ResNet(**settings).apply, train=False))(variables, images)
    assert features.dtype == full.dtype == jnp.float32
    np.testing.assert_allclose(features, full, atol=0.02 * np.abs(full).max())


def test_rematerialised_blocks_have_the_same_names_outputs_statistics_and_gradients(monkeypatch):
    monkeypatch.setitem(resnet.DEPTHS, 6, (resnet.BottleneckBlock, (1, 1)))
    images = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    kept, again = (ResNet(6, width=1 / 8, stem='cifar', remat=remat) for remat in (False, True))
    variables = jax.tree.map(np.float32, random_variables(kept, images))
    assert shapes(again) == shapes(kept)

    def run(module):
        def loss(params):
            features, updated = module.apply({**variables, 'params': params}, images, train=True,
                                             mutable=['batch_stats'])
            return jnp.square(features).sum(), (features, updated)

        recomputed = str(jax.make_jaxpr(loss)(variables['params'])).count('= remat')
        return recomputed, quick_jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])

    (none, kept), (blocks, again) = run(kept), run(again)
    assert (none, blocks) == (0, 2)
    # Rounding is that of an array's largest terms: XLA fuses the two programs in different ways.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max()),
                 again, kept)


@pytest.mark.parametrize('settings, message', [
    ({'depth': 42}, 'depth is 42.*10, 18, 34, 50, 101, 152, 200'),
    ({'depth': 18, 'stem': 'mnist'}, "stem is 'mnist'.*imagenet, cifar"),
    ({'depth': 18, 'max_pool': 'valid'}, "max_pool is 'valid'.*torch, same"),
    ({'depth': 18, 'conv_padding': 'valid'}, "conv_padding is 'valid'.*symmetric, same"),
    ({'depth': 18, 'width': 0.01}, 'width is 0.01'),
])
def test_an_unknown_setting_is_named_with_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        shapes(ResNet(**settings))


@pytest.mark.parametrize('images, shown', [
    (np.zeros((8, 8, 3), np.float32), r'float32\[8, 8, 3\]'), (np.zeros((1, 8, 8, 3), np.uint8), 'uint8')])
def test_a_single_image_and_integer_pixels_are_refused(images, shown):
    with pytest.raises(ValueError, match=f'ResNet takes floats .* not {shown}.*divide uint8 by 255.*images'):
        jax.eval_shape(partial(ResNet(18).init, train=False), jax.random.key(0), images)
