"""NT-Logistic and the margin loss, one pair at a time in float64, with the gradients of paper Table 2."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from simclr_jax.objectives.margin import margin_triplet
from simclr_jax.objectives.nt_logistic import nt_logistic
from simclr_jax.runtime import sharding

N, D, TAU, MARGIN = 16, 4, 0.2, 0.6
LOSSES = {'nt_logistic': (nt_logistic, {'temperature': TAU}), 'margin': (margin_triplet, {'margin': MARGIN})}


def views(seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(N, D))
    two = one + noise * rng.normal(size=(N, D))
    two[0] = -one[0]                                        # nothing is farther from these two
    return [np.float32(view / np.linalg.norm(view, axis=1, keepdims=True)) for view in (one, two)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pair_terms(name, u, positive, negatives):
    """(loss, d/du, d/dv+, [d/dv-]) of an anchor: Table 2, with the signs of a loss, in the mean over v-."""
    loss, du, dpositive, dnegatives = 0.0, np.zeros(D), np.zeros(D), []
    if name == 'nt_logistic':
        weight = sigmoid(-u @ positive / TAU) / TAU
        loss, du, dpositive = -np.log(sigmoid(u @ positive / TAU)), -weight * positive, -weight * u
    for negative in negatives:
        share = 1 / len(negatives)
        if name == 'nt_logistic':
            weight = share * sigmoid(u @ negative / TAU) / TAU
            loss += -share * np.log(sigmoid(-u @ negative / TAU))
            du, gradient = du + weight * negative, weight * u
        else:
            active = share * (u @ positive - u @ negative < MARGIN)
            loss += active * (u @ negative - u @ positive + MARGIN)
            du, gradient = du + active * (negative - positive), active * u
            dpositive = dpositive - active * u
        dnegatives.append(gradient)
    return loss, du, dpositive, dnegatives


def double_loop(name, one, two, mining):
    """Loss, gradients of both views [2, N, D], accuracy and mined share, one anchor after the other."""
    both = np.float64([one, two])
    total, gradients, hits, mined = 0.0, np.zeros_like(both), 0, 0
    for view in (0, 1):
        for i in range(N):
            u, own = both[view, i], both[1 - view, i]
            rows = [k for k in range(N) if k != i]
            hits += all(u @ own > u @ both[1 - view, k] for k in rows)
            if mining == 'semi_hard':
                rows = [k for k in rows if u @ both[1 - view, k] < u @ own]
                rows = sorted(rows, key=lambda k: -(u @ both[1 - view, k]))[:1]
            mined += bool(rows)
            loss, du, dpositive, dnegatives = pair_terms(name, u, own, [both[1 - view, k] for k in rows])
            total += loss
            gradients[view, i] += du
            gradients[1 - view, i] += dpositive
            for k, gradient in zip(rows, dnegatives):
                gradients[1 - view, k] += gradient
    return total / (2 * N), gradients / (2 * N), hits / (2 * N), mined / (2 * N)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('mining', ['none', 'semi_hard'])
@pytest.mark.parametrize('name', LOSSES)
def test_a_pairwise_loss_is_the_papers_pair_by_pair(name, mining, devices):
    function, options = LOSSES[name]
    one, two = views()
    mesh = sharding.make_mesh(jax.devices()[:devices]) if devices > 1 else None
    loss = jax.jit(jax.value_and_grad(
        lambda *arguments: function(*arguments, normalize=False, mining=mining, mesh=mesh, **options),
        argnums=(0, 1), has_aux=True))
    (value, metrics), gradients = loss(one, two)
    expected, expected_gradients, hits, mined = double_loop(name, one, two, mining)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradients, expected_gradients, atol=2e-7)
    assert metrics['contrastive_accuracy'] == hits and metrics['mined_share'] == mined
    assert 0 < hits < 1 and (mined == 1 if mining == 'none' else 0.5 < mined < 1)


@pytest.mark.parametrize('name', LOSSES)
def test_length_does_not_count_where_projections_are_normalised(name):
    function, options = LOSSES[name]
    one, two = views()
    value = function(one, two, normalize=False, **options)[0]
    np.testing.assert_allclose(function(3 * one, 0.5 * two, **options)[0], value, rtol=1e-5)


def test_equal_projections_have_the_analytic_losses():
    ones = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(margin_triplet(ones, ones, margin=0.6)[0], 0.6, rtol=1e-6)
    expected = np.log1p(np.exp(-5.0)) + np.log1p(np.exp(5.0))
    np.testing.assert_allclose(nt_logistic(ones, ones, temperature=0.2)[0], expected, rtol=1e-6)
    assert margin_triplet(ones, ones, margin=0.6, mining='semi_hard')[0] == 0.0     # nothing is farther


@pytest.mark.parametrize('function, options, sentence', [
    (nt_logistic, {'temperature': 0.0}, 'positive temperature'),
    (margin_triplet, {'margin': -1.0}, 'at least 0'),
    (margin_triplet, {'margin': 1.0, 'mining': 'hard'}, "method.mining is 'hard'"),
])
def test_what_makes_no_loss_is_refused(function, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(*views(), **options)
    with pytest.raises(ValueError, match='at least two images'):
        margin_triplet(np.ones((1, 3)), np.ones((1, 3)), margin=1.0)


@pytest.mark.parametrize('types, spec', [
    ((AxisType.Explicit,), 'whole'), ((AxisType.Explicit, AxisType.Auto), 'rows'), ((AxisType.Explicit,), None)])
def test_a_mesh_of_any_axes_with_arrays_split_or_not(types, spec):
    mesh, pair = jax.make_mesh((8,) if len(types) == 1 else (2, 4), tuple('ab'[:len(types)]), axis_types=types), views()
    step = lambda mesh: jax.jit(jax.value_and_grad(lambda *pair: nt_logistic(*pair, temperature=TAU, mesh=mesh)[0]))
    expected = step(None)(*pair)
    if spec:
        rows = jax.sharding.PartitionSpec(*[mesh.axis_names] * (spec == 'rows'))
        pair = jax.device_put(pair, jax.sharding.NamedSharding(mesh, rows))
    for given in (mesh, None) if spec else (mesh,):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), step(given)(*pair), expected)
    np.testing.assert_allclose(nt_logistic(*pair, temperature=TAU, mesh=mesh)[0], expected[0], rtol=1e-5)
