"""NT-Xent is the paper's formula, on any number of devices, and its gradient is right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from simclr_jax.objectives.nt_xent import nt_xent


def paper(view1, view2, temperature, normalize=True):
    """Eq. 1 of Chen et al. 2020, one pair at a time in float64; an oracle kept slow and plain."""
    z = np.concatenate([view1, view2]).astype(np.float64)
    if normalize:
        z = np.stack([row / np.sqrt(np.dot(row, row)) for row in z])
    n = len(view1)
    losses, hits, entropies = [], [], []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        similarity = {k: np.dot(z[i], z[k]) / temperature for k in others}
        total = sum(np.exp(similarity[k]) for k in others)
        p = {k: np.exp(similarity[k]) / total for k in others}
        losses.append(-np.log(p[j]))
        hits.append(max(others, key=similarity.get) == j)
        entropies.append(-sum(p[k] * np.log(p[k]) for k in others))
    return np.mean(losses), np.mean(hits), np.mean(entropies)


def views(n=6, d=5, seed=0, noise=1.2):
    rng = np.random.default_rng(seed)
    view1 = rng.normal(size=(n, d)).astype(np.float32)
    return view1, (view1 + noise * rng.normal(size=(n, d))).astype(np.float32)


def mesh_of(shape, names):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


compiled = jax.jit(nt_xent, static_argnames=('normalize', 'mesh'))


def loss_of(**settings):
    return lambda view1, view2: nt_xent(view1, view2, **settings)[0]


def gradients_of(**settings):
    return jax.jit(jax.grad(loss_of(**settings), argnums=(0, 1)))


@pytest.mark.parametrize('temperature', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('normalize', [True, False])
def test_equals_the_papers_double_loop(temperature, normalize):
    view1, view2 = views()
    loss, metrics = compiled(view1, view2, temperature=temperature, normalize=normalize)
    expected_loss, accuracy, entropy = paper(view1, view2, temperature, normalize)
    assert 0 < accuracy < 1  # the case can tell hits from misses
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6)
    np.testing.assert_allclose(metrics['contrastive_accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize('normalize', [True, False])
def test_gradient_equals_finite_differences_of_the_double_loop(normalize):
    view1, view2 = (view.astype(np.float64) for view in views(n=3, d=4))
    got = gradients_of(temperature=0.5, normalize=normalize)(
        view1.astype(np.float32), view2.astype(np.float32))
    step = 1e-6
    for view, gradient in zip((view1, view2), got):
        expected = np.zeros_like(view)
        for index in np.ndindex(*view.shape):
            centre = view[index]
            view[index] = centre + step
            above = paper(view1, view2, 0.5, normalize)[0]
            view[index] = centre - step
            below = paper(view1, view2, 0.5, normalize)[0]
            view[index] = centre
            expected[index] = (above - below) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_equals_optax():
    view1, view2 = views(n=16, d=8)
    labels = jnp.tile(jnp.arange(16), 2)
    expected = optax.losses.ntxent(jnp.concatenate([view1, view2]), labels, temperature=0.1)
    np.testing.assert_allclose(compiled(view1, view2, temperature=0.1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize('n', [1, 2, 7])
def test_equal_embeddings_cost_the_log_of_the_number_of_candidates(n):
    same = jnp.ones((n, 3))
    loss, metrics = compiled(same, same, temperature=0.1)
    np.testing.assert_allclose(loss, np.log(2 * n - 1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        metrics['contrastive_entropy'], np.log(2 * n - 1), rtol=1e-6, atol=1e-6)


def test_orthogonal_pairs_are_analytic():
    n, temperature = 4, 0.5
    loss, metrics = compiled(jnp.eye(n), 3 * jnp.eye(n), temperature=temperature)
    negatives = 2 * n - 2  # each at similarity 0, the positive at 1
    p = np.exp(1 / temperature) / (np.exp(1 / temperature) + negatives)
    rest = (1 - p) / negatives
    np.testing.assert_allclose(loss, -np.log(p), rtol=1e-6)
    assert metrics['contrastive_accuracy'] == 1
    np.testing.assert_allclose(
        metrics['contrastive_entropy'], -p * np.log(p) - negatives * rest * np.log(rest), rtol=1e-6)


def test_order_of_images_and_of_views_does_not_matter():
    view1, view2 = views()
    order = np.random.default_rng(1).permutation(len(view1))
    expected, expected_metrics = compiled(view1, view2, temperature=0.2)
    for pair in [(view1[order], view2[order]), (view2, view1)]:
        loss, metrics = compiled(*pair, temperature=0.2)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert metrics['contrastive_accuracy'] == expected_metrics['contrastive_accuracy']


@pytest.mark.parametrize('shape, names, normalize', [
    ((1,), 'a', True), ((2,), 'a', True), ((8,), 'a', True), ((8,), 'a', False),
    ((2, 4), 'ab', True)])
def test_any_number_of_devices_computes_the_same(shape, names, normalize):
    pair = views(n=16, d=8)
    settings = {'temperature': 0.1 if normalize else 1.0, 'normalize': normalize}

    def run(mesh):
        both = jax.value_and_grad(nt_xent, argnums=(0, 1), has_aux=True)
        return jax.jit(lambda *pair: both(*pair, mesh=mesh, **settings))(*pair)

    (loss, metrics), gradients = run(mesh_of(shape, tuple(names)))
    (expected_loss, expected_metrics), expected_gradients = run(None)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
    for gradient, expected in zip(gradients, expected_gradients):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient / scale, expected / scale, rtol=0, atol=1e-6)


def test_eight_devices_gather_all_projections():
    mesh = mesh_of((8,), ('a',))
    program = jax.jit(loss_of(temperature=0.1, mesh=mesh)).lower(*views(n=16)).compile().as_text()
    assert 'all-gather' in program


def test_bfloat16_projections_are_computed_in_float32():
    low = [jnp.asarray(view, jnp.bfloat16) for view in views(n=16, d=8)]
    loss, metrics = compiled(*low, temperature=0.1)
    expected, accuracy, entropy = paper(*(np.asarray(view) for view in low), 0.1)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=2e-6)  # bfloat16 would be off by 1e-2
    np.testing.assert_allclose(metrics['contrastive_accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=1e-5)


def test_every_matrix_product_asks_for_full_precision():
    # On a CPU the setting changes nothing, on a TPU or GPU the result: read it in the program.
    step = jax.value_and_grad(loss_of(temperature=0.1), argnums=(0, 1))
    program = jax.jit(step).lower(*views()).as_text()
    products = [line for line in program.splitlines() if 'dot_general' in line]
    assert len(products) == 3  # the similarities, and their gradient for rows and columns
    assert all('HIGHEST, HIGHEST' in line for line in products)


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e15])
def test_gradients_stay_finite_for_projections_of_any_length(scale):
    view1, view2 = views()
    view1[0] *= np.float32(scale)
    for gradient in gradients_of(temperature=0.05)(view1, view2):
        assert np.isfinite(gradient).all()


def test_temperature_may_be_traced():
    pair = views()
    traced = jax.jit(lambda temperature: nt_xent(*pair, temperature=temperature)[0])
    np.testing.assert_allclose(traced(0.3), paper(*pair, 0.3)[0], rtol=2e-6)


@pytest.mark.parametrize('temperature', [0, -0.1, float('nan')])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match='positive temperature'):
        nt_xent(*views(), temperature=temperature)


def test_batch_must_be_divisible_by_the_devices():
    with pytest.raises(ValueError, match='batch of 6 over 8 devices'):
        nt_xent(*views(n=6), temperature=0.1, mesh=mesh_of((8,), ('a',)))


def test_views_must_have_one_shape():
    with pytest.raises(ValueError, match=r'\(6, 5\) and \(4, 5\)'):
        nt_xent(views(n=6)[0], views(n=4)[0], temperature=0.1)
