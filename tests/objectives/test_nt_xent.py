"""NT-Xent is the paper's formula, on any number of devices and in any tiles, and its gradient is right."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from simclr_jax.objectives.nt_xent import nt_xent, nt_xent_dense


def paper(view1, view2, temperature, normalize=True, decoupled=False):
    """Eq. 1 of Chen et al. 2020, or eq. 6 of Yeh et al. 2021 (decoupled), one pair at a time in float64."""
    z = np.concatenate([view1, view2]).astype(np.float64)
    if normalize:
        z = np.stack([row / np.sqrt(np.dot(row, row)) for row in z])
    n = len(view1)
    losses, hits, entropies = [], [], []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        similarity = {k: np.dot(z[i], z[k]) / temperature for k in others}
        denominator = [k for k in others if k != j] if decoupled else others
        total = sum(np.exp(similarity[k]) for k in denominator)
        p = {k: np.exp(similarity[k]) / total for k in denominator}
        losses.append(-similarity[j] + np.log(total))
        hits.append(max(others, key=similarity.get) == j)
        entropies.append(-sum(p[k] * np.log(p[k]) for k in denominator))
    return np.mean(losses), np.mean(hits), np.mean(entropies)


def oracle(view1, view2, temperature, normalize=True, decoupled=False):
    """As `paper`, faster, with gradients: (loss, accuracy, entropy), (d view1, d view2, d temperature).

    The whole matrix in float64, and the chain rule through loss = mean(lse - positive), s = u u^T / tau.
    """
    x = np.concatenate([view1, view2]).astype(np.float64)  # [2N, D]
    count, row = len(x), np.arange(len(x))
    norm = np.linalg.norm(x, axis=1, keepdims=True) if normalize else np.ones((count, 1))
    u = x / norm
    s = u @ u.T / temperature  # [2N, 2N]
    own, pair = np.eye(count, dtype=bool), np.roll(np.eye(count, dtype=bool), count // 2, axis=1)
    logits = np.where(own | pair if decoupled else own, -np.inf, s)
    top = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - top).sum(axis=1, keepdims=True)
    p = np.exp(logits - top) / total
    loss = (top + np.log(total))[:, 0] - s[pair]
    accuracy = s[pair] > np.where(own | pair, -np.inf, s).max(axis=1)
    entropy = -(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(axis=1)
    d_s = (p - pair) / count  # [2N, 2N]
    d_u = (d_s + d_s.T) @ u / temperature
    d_x = (d_u - u * (d_u * u).sum(axis=1, keepdims=True)) / norm if normalize else d_u
    d_temperature = -(d_s * s).sum() / temperature
    gradients = d_x[row < count // 2], d_x[row >= count // 2], d_temperature
    return (loss.mean(), accuracy.mean(), entropy.mean()), gradients


def views(n=6, d=5, seed=0, noise=1.2):
    rng = np.random.default_rng(seed)
    view1 = rng.normal(size=(n, d)).astype(np.float32)
    return view1, (view1 + noise * rng.normal(size=(n, d))).astype(np.float32)


def mesh_of(shape, names):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices)


compiled = jax.jit(nt_xent, static_argnames=('normalize', 'mesh', 'decoupled', 'tile'))


def loss_of(**settings):
    return lambda view1, view2: nt_xent(view1, view2, **settings)[0]


def gradients_of(**settings):
    return jax.jit(jax.grad(loss_of(**settings), argnums=(0, 1)))


@pytest.mark.parametrize('temperature', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('decoupled', [False, True])
def test_equals_the_papers_double_loop(temperature, normalize, decoupled):
    view1, view2 = views()
    loss, metrics = compiled(
        view1, view2, temperature=temperature, normalize=normalize, decoupled=decoupled)
    expected_loss, accuracy, entropy = paper(view1, view2, temperature, normalize, decoupled)
    assert 0 < accuracy < 1  # the case can tell hits from misses
    np.testing.assert_allclose(loss, expected_loss, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('decoupled', [False, True])
def test_gradient_equals_finite_differences_of_the_double_loop(normalize, decoupled):
    parts = [*(view.astype(np.float64) for view in views(n=3, d=4)), np.array(0.5)]
    by_oracle = oracle(*parts, normalize, decoupled)[1]
    got = jax.jit(jax.grad(
        lambda *parts: nt_xent(*parts[:2], temperature=parts[2], normalize=normalize,
                               decoupled=decoupled)[0], argnums=(0, 1, 2)))(*map(np.float32, parts))
    step = 1e-6
    for part, gradient, exact in zip(parts, got, by_oracle):
        expected = np.zeros_like(part)
        for index in np.ndindex(*part.shape):
            centre = part[index]
            part[index] = centre + step
            above = paper(*parts, normalize, decoupled)[0]
            part[index] = centre - step
            below = paper(*parts, normalize, decoupled)[0]
            part[index] = centre
            expected[index] = (above - below) / (2 * step)
        np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-8)  # the oracle of the tests below
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


def check_against_oracle(pair, temperature, normalize, decoupled, tile=None, mesh=None, f=nt_xent):
    settings = {'normalize': normalize, 'decoupled': decoupled}
    settings |= {'tile': tile, 'mesh': mesh} if f is nt_xent else {}
    both = jax.jit(jax.value_and_grad(
        lambda *parts: f(*parts[:2], temperature=parts[2], **settings), argnums=(0, 1, 2), has_aux=True))
    (loss, metrics), gradients = both(*pair, np.float32(temperature))
    (expected, accuracy, entropy), expected_gradients = oracle(*pair, temperature, normalize, decoupled)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=1e-5, atol=1e-6)
    # A mean of terms of both signs: the sum is less exact than they are.
    np.testing.assert_allclose(gradients[2], expected_gradients[2], rtol=5e-5, atol=1e-6)
    for gradient, wanted in zip(gradients[:2], expected_gradients):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(gradient / scale, wanted / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize('n, d, tile, temperature, normalize, decoupled', [
    (13, 5, 1, 0.5, True, False), (13, 5, 4, 0.1, True, True), (12, 8, 5, 0.05, True, False),
    (12, 8, 5, 0.5, False, False), (10, 3, 3, 0.5, False, True), (7, 3, 7, 1.0, True, True),
    (9, 130, 100, 0.2, True, False)])
def test_any_tiles_compute_the_same(n, d, tile, temperature, normalize, decoupled):
    pair = tuple(view / 2 for view in views(n, d))
    check_against_oracle(pair, temperature, normalize, decoupled, tile)


@pytest.mark.parametrize('devices, n, tile, normalize, decoupled', [
    (1, 11, 3, True, False), (2, 14, 3, True, True), (2, 14, 3, False, False), (8, 24, 2, True, False),
    (8, 24, 5, True, True), (8, 24, 5, False, True), (8, 8, 100, True, False)])
def test_any_tiles_on_any_devices_compute_the_same(devices, n, tile, normalize, decoupled):
    pair = tuple(view / 2 for view in views(n, 6))
    temperature, mesh = 0.1 if normalize else 0.5, mesh_of((devices,), 'a')
    check_against_oracle(pair, temperature, normalize, decoupled, tile, mesh)


@pytest.mark.parametrize('decoupled', [False, True])
def test_the_dense_form_is_the_same(decoupled):
    for normalize in (True, False):
        check_against_oracle(views(), 0.5, normalize, decoupled, f=nt_xent_dense)


@pytest.mark.parametrize('n', [520, 1100])
def test_tiles_are_chosen_for_any_batch(n):
    check_against_oracle(views(n, 4), 0.1, True, False)


def test_similarities_far_apart_neither_overflow_nor_vanish():
    # Up to 10^4, far beyond exp; whole numbers, since rounded similarities would be others than the oracle's.
    pair = np.round(10 * np.stack(views(9, 4)))
    check_against_oracle(pair, 0.125, False, False, tile=2)


@pytest.mark.parametrize('decoupled', [False, True])
def test_similarities_far_from_zero_keep_their_differences(decoupled):
    # All 10^4 and a few more or less: with a log-sum-exp in one float32 the gradient is off by 5e-4.
    pair = np.round(2 * np.stack(views(9, 4)))
    pair[:, :, 0] = 100
    check_against_oracle(pair, 1.0, False, decoupled, tile=2)


STEP = {'temperature': 0.1, 'tile': 8}


def compiled_step(n, d, f=nt_xent, **settings):
    """The program of loss and gradients, compiled and not run."""
    step = jax.value_and_grad(lambda *pair: f(*pair, **settings), argnums=(0, 1), has_aux=True)
    return jax.jit(step).lower(*[jax.ShapeDtypeStruct((n, d), jnp.float32)] * 2).compile()


@pytest.mark.parametrize('devices', [1, 8])
def test_no_device_holds_the_similarities_of_its_rows(devices):
    n, d = 192, 4
    mesh = mesh_of((devices,), 'a')

    def largest_array(program):
        shapes = re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', program.as_text())
        return max(np.prod([int(side) for side in shape.split(',')]) for shape in shapes)

    whole = 2 * n // devices * 2 * n  # [2n, 2N]
    assert largest_array(compiled_step(n, d, mesh=mesh, **STEP)) <= whole / 4
    assert largest_array(compiled_step(n, d, nt_xent_dense, temperature=0.1)) >= (2 * n) ** 2  # it can tell


def test_eight_devices_gather_projections_and_log_sum_exps_once():
    program = compiled_step(192, 4, mesh=mesh_of((8,), 'a'), **STEP).as_text()
    names = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
    found = re.findall(rf'= (\S+) ({names})(?:-start)?\(', program)
    assert collections.Counter(name for _, name in found) == {'all-gather': 2, 'all-reduce': 1}
    shapes = sorted(re.search(r'\[([0-9,]*)\]', shape)[1] for shape, _ in found)
    assert shapes == ['384,2', '384,4', '4']  # log-sum-exps, projections, means


def test_memory_is_far_below_that_of_the_dense_form():
    ours, dense = (compiled_step(4096, 128, f, temperature=0.1).memory_analysis().temp_size_in_bytes
                   for f in (nt_xent, nt_xent_dense))
    assert 15 * ours < dense


def test_bfloat16_projections_are_computed_in_float32():
    low = [jnp.asarray(view, jnp.bfloat16) for view in views(n=16, d=8)]
    loss, metrics = compiled(*low, temperature=0.1)
    expected, accuracy, entropy = paper(*(np.asarray(view) for view in low), 0.1)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=2e-6)  # bfloat16 would be off by 1e-2
    np.testing.assert_allclose(metrics['contrastive_accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=1e-5)
    for gradient, exact in zip(gradients_of(temperature=0.1)(*low), gradients_of(temperature=0.1)(
            *(view.astype(jnp.float32) for view in low))):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(gradient, exact.astype(jnp.bfloat16))


def test_every_matrix_product_asks_for_full_precision():
    # On a CPU the setting changes nothing, on a TPU or GPU the result: read it in the program.
    step = jax.value_and_grad(loss_of(temperature=0.1, tile=2), argnums=(0, 1))
    program = jax.jit(step).lower(*views()).as_text()
    products = [line for line in program.splitlines() if 'dot_general' in line]
    # On and above the diagonal, forward and backward, a tile's similarities; one product with the
    # weights on it, two above.
    assert len(products) == 2 + 2 + 1 + 2
    assert all('HIGHEST, HIGHEST' in line for line in products)


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1e15])
def test_gradients_stay_finite_for_projections_of_any_length(scale):
    view1, view2 = views()
    view1[0] *= np.float32(scale)
    for gradient in gradients_of(temperature=0.05)(view1, view2):
        assert np.isfinite(gradient).all()


def test_a_projection_that_is_not_a_number_shows_in_the_loss():
    view1, view2 = views()
    view2[3, 1] = np.nan
    assert np.isnan(compiled(view1, view2, temperature=0.1, tile=2)[0])


@pytest.mark.parametrize('mesh', [None, 8])
def test_a_tie_is_a_miss(mesh):
    # A collapsed encoder must not look perfect, whatever the last bit of a product.
    same = np.tile(views(1, 37)[0], (16, 1))
    settings = {'temperature': 0.1, 'tile': 3, 'mesh': mesh and mesh_of((mesh,), 'a')}
    assert compiled(same, same, **settings)[1]['contrastive_accuracy'] == 0
    assert jax.jit(nt_xent_dense)(same, same, temperature=0.1)[1]['contrastive_accuracy'] == 0


def test_one_image_has_no_negatives():
    pair = views(n=1)
    loss, metrics = compiled(*pair, temperature=0.1)
    np.testing.assert_allclose([loss, metrics['contrastive_entropy']], 0, atol=1e-6)
    assert metrics['contrastive_accuracy'] == 1
    for gradient in gradients_of(temperature=0.1)(*pair):
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
    with pytest.raises(ValueError, match='no negatives'):
        nt_xent(*pair, temperature=0.1, decoupled=True)


def test_metrics_carry_no_gradient():
    for f in (nt_xent, nt_xent_dense):

        def entropy(view1, view2):
            return f(view1, view2, temperature=0.1)[1]['contrastive_entropy']

        np.testing.assert_array_equal(jax.jit(jax.grad(entropy))(*views()), 0)


@pytest.mark.parametrize('mesh', [None, 2])
def test_a_batch_of_losses(mesh):
    pairs = [views(n=4, seed=seed) for seed in range(3)]
    step = jax.value_and_grad(
        loss_of(temperature=0.2, tile=1, mesh=mesh and mesh_of((mesh,), 'a')), argnums=(0, 1))
    losses, gradients = jax.jit(jax.vmap(step))(*map(np.stack, zip(*pairs)))
    step = jax.jit(step)
    for i, pair in enumerate(pairs):
        loss, expected = step(*pair)
        np.testing.assert_allclose(losses[i], loss, rtol=1e-6)
        np.testing.assert_allclose(gradients[0][i], expected[0], rtol=1e-5, atol=1e-6)


def test_temperature_may_be_traced():
    pair = views()
    traced = jax.jit(lambda temperature: nt_xent(*pair, temperature=temperature)[0])
    np.testing.assert_allclose(traced(0.3), paper(*pair, 0.3)[0], rtol=2e-6)


@pytest.mark.parametrize('temperature', [0, -0.1, float('nan')])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match='positive temperature'):
        nt_xent(*views(), temperature=temperature)


def test_a_tile_holds_an_image():
    with pytest.raises(ValueError, match='at least one image, got 0'):
        nt_xent(*views(), temperature=0.1, tile=0)


def test_batch_must_be_divisible_by_the_devices():
    with pytest.raises(ValueError, match='batch of 6 over 8 devices'):
        nt_xent(*views(n=6), temperature=0.1, mesh=mesh_of((8,), ('a',)))


def test_views_must_have_one_shape():
    with pytest.raises(ValueError, match=r'\(6, 5\) and \(4, 5\)'):
        nt_xent(views(n=6)[0], views(n=4)[0], temperature=0.1)


# ---------------------------------------------------------------------------------------------------
# Digits


def nearly_solved(temperature, loss, n=16, d=32):
    """Views whose loss is about `loss`: their images share as much of one direction as that takes."""
    rng = np.random.default_rng(0)
    content, direction, noise = rng.normal(size=(n, d)), rng.normal(size=d), 0.05 * rng.normal(size=(n, d))
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        view1 = np.float32(content + middle * direction)
        view2 = np.float32(content + middle * direction + noise)
        low, high = (middle, high) if small_loss(view1, view2, temperature)[0] < loss else (low, middle)
    return view1, view2


def small_loss(view1, view2, temperature, decoupled=False):
    """As `oracle`, (loss, (d view1, d view2, d temperature)), by differences to the positive alone."""
    x = np.concatenate([view1, view2]).astype(np.float64)
    count, norm = len(x), np.linalg.norm(x, axis=1, keepdims=True)
    u = x / norm
    own, pair = np.eye(count, dtype=bool), np.roll(np.eye(count, dtype=bool), count // 2, axis=1)
    cosine = u @ u.T
    below = np.where(own | pair, -np.inf, (cosine - cosine[pair][:, None]) / temperature)  # [2N, 2N]
    total = np.exp(below).sum(axis=1)
    loss, share = (np.log(total), np.ones(count)) if decoupled else (np.log1p(total), total / (1 + total))
    weight = np.exp(below) / total[:, None] * share[:, None]
    d_s = (weight - pair * share[:, None]) / count
    d_u = (d_s + d_s.T) @ u / temperature
    d_x = (d_u - u * (d_u * u).sum(axis=1, keepdims=True)) / norm
    d_temperature = -(weight * np.where(weight > 0, below, 0)).sum() / count / temperature
    return loss.mean(), (d_x[:count // 2], d_x[count // 2:], d_temperature)


@pytest.mark.parametrize('f', [nt_xent, nt_xent_dense])
@pytest.mark.parametrize('temperature, loss', [
    (0.01, 1e-6), (0.01, 0.025), (0.01, 1.0), (0.05, 1e-6), (0.05, 1e-3), (0.1, 0.025), (0.1, 1.0), (0.5, 3.0),
    (1.0, 3.0), (10.0, 3.0)])
def test_a_nearly_solved_task_keeps_its_digits_at_any_temperature(f, temperature, loss):
    pair = nearly_solved(temperature, loss)
    options = {'tile': 3} if f is nt_xent else {}
    both = jax.jit(jax.value_and_grad(
        lambda *parts: f(*parts[:2], temperature=parts[2], **options)[0], argnums=(0, 1, 2)))
    value, gradients = both(*pair, np.float32(temperature))
    # The temperature is what float32 makes of it.
    expected, expected_gradients = small_loss(*pair, np.float64(np.float32(temperature)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize('decoupled', [False, True])
@pytest.mark.parametrize('scale', [1e-5, 1e15, 1e25])
def test_the_length_of_a_projection_does_not_count(scale, decoupled):
    view1, view2 = views()
    view1[0] *= np.float32(scale)
    value, gradients = jax.jit(jax.value_and_grad(
        loss_of(temperature=0.2, decoupled=decoupled), argnums=(0, 1)))(view1, view2)
    expected, (expected1, expected2, _) = small_loss(view1, view2, 0.2, decoupled)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for gradient, wanted in ((gradients[0][0], expected1[0]), (gradients[0][1:], expected1[1:]),
                             (gradients[1], expected2)):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


# ---------------------------------------------------------------------------------------------------
# Derivatives of other kinds and orders


@pytest.mark.parametrize('settings', [{}, {'decoupled': True}, {'normalize': False}, {'tile': 2}, {'mesh': 2}])
def test_derivatives_forward_and_of_second_order_are_those_of_the_dense_form(settings):
    pair, (tangent1, tangent2) = views(), views(seed=1)
    dense = {name: value for name, value in settings.items() if name not in ('tile', 'mesh')}
    settings = settings | {'mesh': mesh_of((2,), 'a')} if 'mesh' in settings else settings

    def derivatives(f, options):
        loss = lambda *pair: f(*pair, temperature=0.5, **options)[0]
        gradient = jax.grad(loss, argnums=(0, 1))
        along = lambda of: lambda *pair: jax.jvp(of, pair, (tangent1, tangent2))[1]
        back = lambda *pair: jax.grad(lambda *pair: sum(
            jnp.vdot(g, t) for g, t in zip(gradient(*pair), (tangent1, tangent2))), argnums=(0, 1))(*pair)
        return [jax.jit(of)(*pair) for of in (along(loss), along(gradient), back, along(along(loss)))]

    for got, wanted in zip(derivatives(nt_xent, settings), derivatives(nt_xent_dense, dense)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, wanted)


def test_the_hessian_is_that_of_finite_differences_in_float64():
    pair = [view.astype(np.float64) for view in views(n=3, d=2)]
    hessian = jax.jit(jax.hessian(loss_of(temperature=0.5)))(*map(np.float32, pair))  # [3, 2, 3, 2]
    for index in np.ndindex(3, 2):
        gradients = []
        for step in (1e-5, -1e-5):
            moved = pair[0].copy()
            moved[index] += step
            gradients.append(oracle(moved, pair[1], 0.5)[1][0])
        np.testing.assert_allclose(hessian[:, :, *index], (gradients[0] - gradients[1]) / 2e-5, atol=2e-5)


# ---------------------------------------------------------------------------------------------------
# Meshes, eager use, and what is refused


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


@pytest.mark.parametrize('types, names', [((EXPLICIT,), 'a'), ((EXPLICIT, EXPLICIT), 'ab'),
                                          ((EXPLICIT, AUTO), 'ab'), ((AUTO, AUTO), 'ab')])
@pytest.mark.parametrize('split', ['host', 'rows', 'whole'])
def test_a_mesh_of_any_axes_with_arrays_split_or_not(types, names, split):
    mesh = jax.make_mesh((8,) if len(types) == 1 else (2, 4), tuple(names), axis_types=types)
    host = views(n=16, d=8)
    spec = jax.sharding.PartitionSpec(*[tuple(names)] * (split == 'rows'))
    pair = host if split == 'host' else jax.device_put(host, jax.sharding.NamedSharding(mesh, spec))
    step = lambda mesh: jax.value_and_grad(loss_of(temperature=0.1, mesh=mesh), argnums=(0, 1))
    expected, expected_gradients = jax.jit(step(None))(*host)
    for given in (mesh, None):
        loss, gradients = jax.jit(step(given))(*pair)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(gradients, expected_gradients, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(loss_of(temperature=0.1, mesh=given)(*pair), expected, rtol=1e-6)
        with jax.set_mesh(mesh):                        # without it jax itself refuses jax.grad of typed arrays
            np.testing.assert_allclose(step(given)(*pair)[0], expected, rtol=1e-6)


def test_more_than_one_image_or_none_at_all():
    with pytest.raises(ValueError, match='at least one image'):
        nt_xent(np.zeros((0, 4)), np.zeros((0, 4)), temperature=0.1)


def test_a_temperature_in_an_array_is_checked_and_a_traced_one_shows():
    for wrong in (np.float32(-1), jnp.float32(-1), jnp.float32(0)):
        with pytest.raises(ValueError, match='positive temperature'):
            nt_xent(*views(), temperature=wrong)
    with pytest.raises(ValueError, match=r'one temperature, got an array of shape \(2,\)'):
        nt_xent(*views(), temperature=jnp.ones(2))
    assert np.isnan(compiled(*views(), temperature=jnp.float32(-1))[0])


# ---------------------------------------------------------------------------------------------------
# The cases of other projects' tests


def test_optax_case():
    rows = np.float32([[-1.9540, 1.0780], [0.2380, -0.5703], [1.8745, -0.0195], [-0.6719, -1.9210]])
    np.testing.assert_allclose(compiled(rows[::2], rows[1::2], temperature=0.07)[0], 14.01032, atol=1e-4)


@pytest.mark.parametrize('n', [1, 2, 8, 16])
@pytest.mark.parametrize('temperature', [0.1, 1.0, 7.0])
def test_lightly_case_of_projections_along_one_line(n, temperature):
    rng = np.random.default_rng(0)
    view1, view2 = (np.float32(rng.random((n, 1)) * [1, 2]) for _ in range(2))
    np.testing.assert_allclose(compiled(view1, view2, temperature=temperature)[0], np.log(2 * n - 1), atol=1e-5)


@pytest.mark.parametrize('n, d', [(1, 1), (2, 1), (4, 2), (4, 64)])
@pytest.mark.parametrize('temperature', [0.1, 1.0, 10.0])
def test_lightly_case_of_random_projections_in_either_order(n, d, temperature):
    view1, view2 = np.random.default_rng(0).normal(size=(2, n, d)).astype(np.float32)
    expected = paper(view1, view2, temperature)[0]
    for pair in ((view1, view2), (view2, view1)):
        np.testing.assert_allclose(compiled(*pair, temperature=temperature)[0], expected, atol=1e-5)


def test_pytorch_metric_learning_case_of_angles():
    degrees = np.radians([[0, 50], [10, 60]])                           # two views of two images
    views_of_angles = np.float32(np.stack([np.cos(degrees), np.sin(degrees)], axis=-1))
    near, far = np.cos(np.radians(10)), np.cos(np.radians([40, 50, 60]))
    exp = lambda cosine: np.exp(cosine / 0.1)
    outer = np.log(1 + (exp(far[1]) + exp(far[2])) / exp(near))         # 0 sees 50 and 60, and 60 sees 10 and 0
    inner = np.log(1 + (exp(far[0]) + exp(far[1])) / exp(near))         # 10 sees 50 and 60, and 50 sees 0 and 10
    np.testing.assert_allclose(compiled(*views_of_angles, temperature=0.1)[0], (outer + inner) / 2, rtol=1e-5)
