"""BYOL step by step against float64 numpy, and the choices that its ablations turn off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.config import base_config, use_method
from simclr_jax.methods import make_method
from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.training.optimizers import make_optimizer
from simclr_jax.training.steps import make_init_state, make_train_step
from tests.methods.small_network import (
    SIZE,
    Encoder,
    assert_trees_close,
    finite_differences,
    float64,
    make_batch,
)

N = 5  # images of a batch


def make_network(predictor=True, groups=1, num_classes=0):
    """The published projector and predictor on the encoder above, 6 and 3 wide."""
    config = base_config()
    use_method(config, 'byol', hidden_width=6, out_dim=3)
    return Network(encoder=Encoder(norm_groups=groups), num_classes=num_classes,
                   head=ProjectionHead(**config.head.to_dict(), norm_groups=groups),
                   predictor=ProjectionHead(**config.predictor.to_dict(), norm_groups=groups)
                   if predictor else None)


def start(network, **settings):
    """(method, params, batch_stats, method_state)"""
    method = make_method('byol', network=network, num_train_steps=5, **settings)
    return method, *jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


# The networks in numpy. `groups`: the rows that BatchNorm normalises together.

def normalised(x, params, groups):
    y = np.empty_like(x)
    for rows in groups:
        y[rows] = (x[rows] - x[rows].mean(0)) / np.sqrt(x[rows].var(0) + 1e-5)
    return y * params['scale'] + params['bias']


def mlp(params, x, groups):
    """byol/utils/networks.py: Linear, BatchNorm, ReLU, Linear without bias."""
    x = x @ params['dense1']['kernel'] + params['dense1']['bias']
    return np.maximum(normalised(x, params['norm1'], groups), 0) @ params['dense2']['kernel']


def project(params, images, groups=(slice(None),)):
    x = np.float64(images).reshape(len(images), -1) @ params['encoder']['dense']['kernel']
    x = np.tanh(normalised(x, params['encoder']['norm'], groups))
    return mlp(params['head'], x, groups)


def predict(params, images, groups=(slice(None),)):
    z = project(params, images, groups)
    return mlp(params['predictor'], z, groups) if 'predictor' in params else z


def regression_loss(x, y):
    """byol/utils/helpers.py, for each row."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return ((x - y) ** 2).sum(1)


def paper_loss(params, target, batch):
    """Eq. 2 both ways, each view normalised by itself."""
    view1, view2 = batch['view1'], batch['view2']
    return np.mean(regression_loss(predict(params, view1), project(target, view2))
                   + regression_loss(predict(params, view2), project(target, view1)))


def first_norm(batch_stats):
    """The running mean and variance [2, C] of the encoder."""
    norm = batch_stats['encoder']['norm']
    return np.stack([norm['mean'], norm['var']])


def first_moments(params, batch):
    """Mean and variance [2, C] before the encoder's BatchNorm, the mean over the two views."""
    x = [np.float64(batch[view]).reshape(N, -1) @ params['encoder']['dense']['kernel']
         for view in ('view1', 'view2')]
    return np.mean([(rows.mean(0), rows.var(0)) for rows in x], axis=0)


def test_every_step_is_algorithm_1():
    """byol_experiment.py _update_fn with utils/optimizers.py LARS, in float64."""
    base, decay, num_steps = 0.6, 0.01, 5
    rate = lambda step: 0.1 * (1 + step)
    optimizer = make_optimizer('lars', rate_in_momentum=False, weight_decay=decay, trust_coefficient=0.1,
                               exclude=())
    method = make_method('byol', network=make_network(), num_train_steps=num_steps, momentum=base)
    state = jax.jit(make_init_state(method, optimizer, seed=0, image_size=SIZE))()
    train_step = jax.jit(make_train_step(method, optimizer, rate, seed=0))

    online, target = float64(state.params), float64(state.method_state['target']['params'])
    velocity = jax.tree.map(np.zeros_like, online)
    running, followed = (first_norm(state.variables(name)['batch_stats']) for name in ('online', 'target'))
    for step in range(num_steps):
        batch = make_batch(step, N)
        loss = paper_loss(online, target, batch)
        gradient = finite_differences(lambda params: paper_loss(params, target, batch), online)
        running = 0.9 * running + 0.1 * first_moments(online, batch)
        followed = 0.9 * followed + 0.1 * first_moments(target, batch)

        def lars(v, g, w):
            if w.ndim > 1:
                g = g + decay * w
                g = g * 0.1 * np.linalg.norm(w) / np.linalg.norm(g)
            return 0.9 * v + g

        velocity = jax.tree.map(lars, velocity, gradient, online)
        online = jax.tree.map(lambda w, v: w - rate(step) * v, online, velocity)
        # After the optimiser, with the number of the step just made: the first one has the base value.
        tau = 1 - (1 - base) * (np.cos(np.pi * step / num_steps) + 1) / 2
        target = jax.tree.map(lambda old, new: tau * old + (1 - tau) * new, target,
                              {name: online[name] for name in target})

        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
        np.testing.assert_allclose(metrics['regression_loss'], loss, rtol=1e-4)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-3)
        assert_trees_close(state.params, online)
        assert_trees_close(state.variables('target')['params'], target)
        assert_trees_close(first_norm(state.batch_stats), running)
        assert_trees_close(first_norm(state.variables('target')['batch_stats']), followed)


@pytest.fixture(scope='module')
def probed():
    """BYOL with an online probe of three classes."""
    return start(make_network(num_classes=3))


def test_the_target_starts_from_other_weights_and_has_no_predictor_or_probe(probed):
    _, params, _, method_state = probed
    target = method_state['target']['params']
    assert set(params) == {'encoder', 'head', 'predictor', 'probe'}
    assert set(target) == {'encoder', 'head'}
    for part, name in (('encoder', 'dense'), ('head', 'dense1'), ('head', 'dense2')):
        ours, theirs = (np.asarray(tree[part][name]['kernel']).ravel() for tree in (params, target))
        assert np.abs(ours - theirs).min() > 0
        assert 0.3 < np.std(theirs) / np.std(ours) < 3


def test_no_gradient_reaches_target_or_probe_features(probed):
    method, params, stats, method_state = probed

    @jax.jit
    def gradients(label):
        def loss(params, target):
            return method.loss(params, stats, {'target': target}, {**make_batch(0, N), 'label': label},
                               jax.random.key(0))[0]
        return jax.grad(loss, argnums=(0, 1))(params, method_state['target'])

    some, target = gradients(jnp.array([0, 1, 2, 0, 1]))
    others, _ = gradients(jnp.array([2, 2, 1, 1, 0]))
    assert all(not leaf.any() for leaf in jax.tree.leaves(target))
    for name in ('encoder', 'head', 'predictor'):
        assert any(leaf.any() for leaf in jax.tree.leaves(some[name]))
        jax.tree.map(np.testing.assert_array_equal, some[name], others[name])
    assert not np.array_equal(some['probe']['kernel'], others['probe']['kernel'])


def test_without_stop_gradient_both_branches_are_the_online_network_and_learn():
    method, params, stats, method_state = start(make_network(), stop_gradient=False, momentum=0.0)
    batch = make_batch(1, N)
    (value, _), gradient = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(
        params, stats, method_state, batch, jax.random.key(0))
    params = float64(params)
    both = lambda params: paper_loss(params, params, batch)
    np.testing.assert_allclose(value, both(params), rtol=1e-4)
    assert_trees_close(gradient, finite_differences(both, params), atol=1e-4)
    fixed = float64(params)
    stopped = finite_differences(lambda params: paper_loss(params, fixed, batch), params)
    assert np.abs(stopped['head']['dense2']['kernel'] - gradient['head']['dense2']['kernel']).max() > 1e-2


def test_without_predictor_the_projection_itself_regresses():
    method, params, stats, method_state = start(make_network(predictor=False))
    assert set(params) == {'encoder', 'head'}
    value, _ = jax.jit(method.loss)(params, stats, method_state, make_batch(2, N), jax.random.key(0))
    expected = paper_loss(float64(params), float64(method_state['target']['params']), make_batch(2, N))
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_norm_groups_are_contiguous_images_with_both_their_views():
    n, groups = 6, 2
    method, params, stats, method_state = start(make_network(groups=groups))
    batch = make_batch(3, n)
    value, _ = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    images = np.stack([batch['view1'], batch['view2']], axis=1).reshape(2 * n, SIZE, SIZE, 3)
    halves = np.split(np.arange(2 * n), groups)
    prediction = predict(float64(params), images, halves)
    goal = project(float64(method_state['target']['params']), images, halves)
    other = np.arange(2 * n) ^ 1  # the row of the other view
    np.testing.assert_allclose(value, 2 * regression_loss(prediction, goal[other]).mean(), rtol=1e-4)


@pytest.mark.parametrize('momentum', [-0.1, 1.1])
def test_a_momentum_beyond_0_and_1_is_refused(momentum):
    with pytest.raises(ValueError, match=f'method.momentum is {momentum}'):
        make_method('byol', network=make_network(), num_train_steps=5, momentum=momentum)
