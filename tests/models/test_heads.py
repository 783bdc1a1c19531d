"""ProjectionHead written out in numpy, and as the heads of other methods."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.network import ProjectionHead

# Every test here compiles far longer than it runs.
quick_jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def init(head, features):
    return quick_jit(partial(head.init, train=False))(jax.random.key(0), features)


def apply(head, variables, features):
    train = partial(head.apply, train=True, mutable=['batch_stats'])
    return quick_jit(train)(variables, features)


def run(head, features):
    """(layers, params as float64) of a freshly initialised head in training."""
    variables = init(head, features)
    # Offsets and biases start at zero: make them show.
    variables['params'] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 0.3 if path[-1].key == 'bias' else leaf, variables['params'])
    layers, _ = apply(head, variables, features)
    return layers, jax.tree.map(np.float64, variables['params'])


def normalised(x, params):
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * params['scale']
    return y + params.get('bias', 0.0)


def assert_layers(layers, expected):
    assert len(layers) == len(expected)
    for layer, value in zip(layers, expected, strict=True):
        assert layer.dtype == jnp.float32
        np.testing.assert_allclose(layer, value, rtol=1e-4, atol=1e-5)


FULL, NO_BIAS = {'scale', 'bias'}, {'scale'}
HEADS = {       # settings, and the parameters that they make
    'nonlinear': ({'num_layers': 3, 'out_dim': 4}, {
        'dense1': {'kernel'}, 'norm1': FULL, 'dense2': {'kernel'}, 'norm2': FULL, 'dense3': {'kernel'},
        'norm3': NO_BIAS}),
    'linear': ({'mode': 'linear', 'out_dim': 4}, {'dense1': {'kernel'}, 'norm1': NO_BIAS}),
    "MoCo's": ({'num_layers': 2, 'out_dim': 4, 'norm': False, 'final_norm': False, 'bias': True, 'final_bias': True},
               {'dense1': {'kernel', 'bias'}, 'dense2': {'kernel', 'bias'}}),
    "BYOL's": ({'num_layers': 2, 'hidden_width': 10, 'out_dim': 4, 'bias': True, 'final_norm': False},
               {'dense1': {'kernel', 'bias'}, 'norm1': FULL, 'dense2': {'kernel'}})}


@pytest.mark.parametrize('name', HEADS)
def test_each_layer_is_dense_norm_and_relu_of_the_one_before(name, features):
    settings, names = HEADS[name]
    layers, params = run(ProjectionHead(**settings), features)
    assert {part: set(leaves) for part, leaves in params.items()} == names
    expected, count = [features], len(layers) - 1
    for layer in range(1, count + 1):
        dense = params[f'dense{layer}']
        x = expected[-1] @ dense['kernel'] + dense.get('bias', 0)
        x = normalised(x, params[f'norm{layer}']) if f'norm{layer}' in params else x
        expected.append(x if layer == count else np.maximum(x, 0))
    assert_layers(layers, expected)
    hidden = settings.get('hidden_width', 6)
    assert [layer.shape[1] for layer in layers] == [6, *[hidden] * (count - 1), 4]


def test_no_head_returns_the_features_alone(features):
    head = ProjectionHead(mode='none')
    assert not init(head, features)
    assert_layers(head.apply({}, features, train=True), [features])


def test_norm_settings_reach_every_norm(features):
    settings = dict(num_layers=2, out_dim=4, norm_momentum=0.5, norm_epsilon=1e-2)
    grouped = ProjectionHead(**settings, norm_groups=2)
    variables = init(grouped, features)

    def train(head, rows):
        layers, updated = apply(head, variables, rows)
        return layers[-1], updated['batch_stats']

    z, stats = train(grouped, features)
    halves = [train(ProjectionHead(**settings), rows) for rows in np.split(features, 2)]
    np.testing.assert_allclose(z, np.concatenate([half[0] for half in halves]), rtol=1e-4)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-4, atol=1e-7),
                 stats, halves[0][1], halves[1][1])
    hidden = np.float64(features) @ np.float64(variables['params']['dense1']['kernel'])
    expected = 0.5 + 0.5 * np.mean([rows.var(0) for rows in np.split(hidden, 2)], 0)
    np.testing.assert_allclose(stats['norm1']['var'], expected, rtol=1e-5)


def test_kernels_start_small():
    variables = init(ProjectionHead(mode='linear', out_dim=256), np.zeros((2, 256)))
    kernel = variables['params']['dense1']['kernel']
    assert kernel.std() == pytest.approx(0.01, rel=0.02)
    assert abs(kernel.mean()) < 1e-4


def test_bfloat16_is_for_products_only(features):
    head = ProjectionHead(num_layers=2, out_dim=4, dtype=jnp.bfloat16)
    variables = init(head, features)
    layers, updated = apply(head, variables, features)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((variables, layers, updated))}
    assert dtypes == {jnp.dtype('float32')}
    single, _ = apply(ProjectionHead(num_layers=2, out_dim=4), variables, features)
    difference = np.abs(layers[-1] - single[-1]).max()
    assert 1e-4 < difference < 0.1  # rounded, so the products did run in bfloat16


@pytest.mark.parametrize('settings, message', [
    ({'mode': 'cubic'}, "mode of a head is 'cubic'.*none, linear, nonlinear"),
    ({'num_layers': 0}, 'num_layers of a nonlinear head is 0: it takes 1'),
])
def test_an_impossible_head_is_refused(features, settings, message):
    with pytest.raises(ValueError, match=message):
        init(ProjectionHead(**settings), features)
