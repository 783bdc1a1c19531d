"""BYOL step by step against float64 numpy, and the choices that its ablations turn off."""

import jax
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.training.optimizers import make_optimizer
from simclr_jax.training.steps import make_init_state, make_train_step
from tests.methods.small_network import (
    SIZE,
    assert_trees_close,
    finite_differences,
    float64,
    lars,
    make_batch,
    make_network,
    predict,
    project,
    start,
    unit,
)

N, WIDTH = 5, 6     # images of a batch, and the units of a hidden layer


def regression_loss(x, y):
    """byol/utils/helpers.py, for each row."""
    return ((unit(x) - unit(y)) ** 2).sum(1)


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
    method = make_method('byol', network=make_network('byol', WIDTH)[0], num_train_steps=num_steps, momentum=base)
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
        velocity = lars(velocity, gradient, online, decay)
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


def test_the_target_starts_from_other_weights():
    _, params, _, method_state = start('byol', width=WIDTH)
    for part, name in (('encoder', 'dense'), ('head', 'dense1'), ('head', 'dense2')):
        ours, theirs = (np.asarray(tree[part][name]['kernel']).ravel()
                        for tree in (params, method_state['target']['params']))
        assert np.abs(ours - theirs).min() > 0
        assert 0.3 < np.std(theirs) / np.std(ours) < 3


def test_without_stop_gradient_both_branches_are_the_online_network_and_learn():
    method, params, stats, method_state = start('byol', width=WIDTH, stop_gradient=False, momentum=0.0)
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
    method, params, stats, method_state = start(
        'byol', make_network('byol', WIDTH)[0].clone(predictor=None))
    assert set(params) == {'encoder', 'head'}
    value, _ = jax.jit(method.loss)(params, stats, method_state, make_batch(2, N), jax.random.key(0))
    expected = paper_loss(float64(params), float64(method_state['target']['params']), make_batch(2, N))
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_norm_groups_are_contiguous_images_with_both_their_views():
    n, groups = 6, 2
    method, params, stats, method_state = start('byol', width=WIDTH, groups=groups)
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
        start('byol', momentum=momentum)
