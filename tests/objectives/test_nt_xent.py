"""NT-Xent is the paper's formula, on any number of devices and in any tiles, and its gradient is right."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy.special import entr, expit, logsumexp

from simclr_jax.objectives.nt_xent import nt_xent, nt_xent_dense

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
BOTH = pytest.mark.parametrize('f', [nt_xent, nt_xent_dense])
DECOUPLED = pytest.mark.parametrize('decoupled', [False, True])


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

    The whole matrix in float64, by differences to the positive: exact where the loss is close to 0, too.
    """
    x = np.concatenate([view1, view2]).astype(np.float64)  # [2N, D]
    count, norm = len(x), np.linalg.norm(x, axis=1, keepdims=True) if normalize else 1.0
    u = x / norm
    own, pair = np.eye(count, dtype=bool), np.roll(np.eye(count, dtype=bool), count // 2, axis=1)
    similarity = u @ u.T
    below = np.where(own | pair, -np.inf, (similarity - similarity[pair][:, None]) / temperature)  # [2N, 2N]
    gap = logsumexp(below, axis=1)
    loss, share = (gap, np.ones(count)) if decoupled else (np.logaddexp(0, gap), expit(gap))
    weight = np.exp(below - gap[:, None]) * share[:, None]  # of the negatives among the candidates
    entropy = entr(weight).sum(axis=1) + entr(1 - share)
    d_s = (weight - pair * share[:, None]) / count
    d_u = (d_s + d_s.T) @ u / temperature
    d_x = (d_u - u * (d_u * u).sum(axis=1, keepdims=True)) / norm if normalize else d_u
    d_temperature = -(weight * np.where(weight > 0, below, 0)).sum() / count / temperature
    return ((loss.mean(), (below < 0).all(axis=1).mean(), entropy.mean()),
            (d_x[:count // 2], d_x[count // 2:], d_temperature))


def views(n=6, d=5, seed=0, noise=1.2):
    rng = np.random.default_rng(seed)
    view1 = rng.normal(size=(n, d)).astype(np.float32)
    return view1, (view1 + noise * rng.normal(size=(n, d))).astype(np.float32)


def half(n, d):
    return np.stack(views(n, d)) / 2


def mesh_of(*shape, types=None):
    """A mesh of these sides, with axes 'a', 'b'; None for no sides."""
    options = {'axis_types': types or (AUTO,) * len(shape), 'devices': jax.devices()[:int(np.prod(shape))]}
    return jax.make_mesh(shape, tuple('ab')[:len(shape)], **options) if shape else None


def loss_of(f=nt_xent, **settings):
    return lambda view1, view2: f(view1, view2, **settings)[0]


def step_of(f=nt_xent, **settings):
    """(view1, view2) -> ((loss, metrics), gradients), not compiled."""
    return jax.value_and_grad(lambda *pair: f(*pair, **settings), argnums=(0, 1), has_aux=True)


compiled = jax.jit(nt_xent, static_argnames=('normalize', 'mesh', 'decoupled', 'tile'))


@pytest.mark.parametrize('temperature', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('normalize', [True, False])
@DECOUPLED
def test_the_oracle_is_the_papers_double_loop(temperature, normalize, decoupled):
    values = oracle(*views(), temperature, normalize, decoupled)[0]
    np.testing.assert_allclose(values, paper(*views(), temperature, normalize, decoupled), rtol=1e-12)
    assert 0 < values[1] < 1  # the case can tell hits from misses
    parts = [*(view.astype(np.float64) for view in views(n=3, d=4)), np.array(temperature)]
    for part, gradient in zip(parts, oracle(*parts, normalize, decoupled)[1]):
        for index in np.ndindex(*part.shape):
            centre, losses = part[index], []
            for step in (1e-6, -1e-6):
                part[index] = centre + step
                losses.append(paper(*parts, normalize, decoupled)[0])
            part[index] = centre
            expected = (losses[0] - losses[1]) / 2e-6
            np.testing.assert_allclose(np.asarray(gradient)[index], expected, rtol=1e-5, atol=1e-7)


def check(pair, temperature=0.5, normalize=True, decoupled=False, tile=None, mesh=(), f=nt_xent):
    settings = {'normalize': normalize, 'decoupled': decoupled}
    settings |= {'tile': tile, 'mesh': mesh_of(*mesh)} if f is nt_xent else {}
    both = jax.jit(jax.value_and_grad(
        lambda *parts: f(*parts[:2], temperature=parts[2], **settings), argnums=(0, 1, 2), has_aux=True))
    (loss, metrics), gradients = both(*pair, np.float32(temperature))
    # The temperature is what float32 makes of it.
    values, expected = oracle(*pair, np.float64(np.float32(temperature)), normalize, decoupled)
    np.testing.assert_allclose(loss, values[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_accuracy'], values[1], rtol=1e-6)
    np.testing.assert_allclose(metrics['contrastive_entropy'], values[2], rtol=1e-5, atol=1e-6)
    # A mean of terms of both signs: the sum is less exact than they are.
    np.testing.assert_allclose(gradients[2], expected[2], rtol=5e-5, atol=1e-6)
    for gradient, wanted in zip(gradients[:2], expected):
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


# 10^4 and more, far beyond exp, and all near 10^4, where a log-sum-exp in one float32 is off by 5e-4; whole
# numbers, since rounded similarities would be others than the oracle's.
FAR_APART = np.round(10 * np.stack(views(9, 4)))
FAR_FROM_ZERO = np.round(2 * np.stack(views(9, 4)))
FAR_FROM_ZERO[:, :, 0] = 100


@pytest.mark.parametrize('pair, settings', [
    *((views(), {'temperature': t, 'normalize': normalize, 'decoupled': decoupled, 'f': f})
      for t, normalize, decoupled in ((0.1, True, False), (0.5, True, True), (1.0, False, False), (1.0, False, True))
      for f in (nt_xent, nt_xent_dense)),
    # Tiles of any size.
    (half(13, 5), {'tile': 1}), (half(13, 5), {'tile': 4, 'temperature': 0.1, 'decoupled': True}),
    (half(12, 8), {'tile': 5, 'temperature': 0.05}), (half(12, 8), {'tile': 5, 'normalize': False}),
    (half(10, 3), {'tile': 3, 'normalize': False, 'decoupled': True}),
    (half(9, 130), {'tile': 100, 'temperature': 0.2}), (views(520, 4), {'temperature': 0.1}),       # two are chosen
    # Devices, and tiles on them.
    (half(11, 6), {'mesh': (1,), 'tile': 3, 'temperature': 0.1}),
    (half(14, 6), {'mesh': (2,), 'tile': 3, 'temperature': 0.1, 'decoupled': True}),
    (half(16, 8), {'mesh': (8,), 'temperature': 0.1}), (half(16, 8), {'mesh': (2, 4), 'normalize': False}),
    (half(24, 6), {'mesh': (8,), 'tile': 2, 'temperature': 0.1}),
    (half(24, 6), {'mesh': (8,), 'tile': 5, 'normalize': False, 'decoupled': True}),
    # Digits.
    (FAR_APART, {'temperature': 0.125, 'normalize': False, 'tile': 2}),
    (FAR_FROM_ZERO, {'temperature': 1.0, 'normalize': False, 'tile': 2}),
    (FAR_FROM_ZERO, {'temperature': 1.0, 'normalize': False, 'tile': 2, 'decoupled': True}),
], ids=lambda value: '-'.join(f'{key}={getattr(item, "__name__", item)}' for key, item in value.items())
   if isinstance(value, dict) else f'{len(value[0])} images')
def test_loss_metrics_and_gradients_are_the_oracles_in_any_tiles_on_any_devices(pair, settings):
    check(pair, **settings)


@pytest.mark.parametrize('n', [2, 7])
def test_equal_embeddings_cost_the_log_of_the_number_of_candidates(n):
    loss, metrics = compiled(jnp.ones((n, 3)), jnp.ones((n, 3)), temperature=0.1)
    for value in (loss, metrics['contrastive_entropy']):
        np.testing.assert_allclose(value, np.log(2 * n - 1), rtol=1e-6, atol=1e-6)


def test_orthogonal_pairs_are_analytic():
    n, temperature = 4, 0.5
    loss, metrics = compiled(jnp.eye(n), 3 * jnp.eye(n), temperature=temperature)
    negatives = 2 * n - 2  # each at similarity 0, the positive at 1
    p = np.exp(1 / temperature) / (np.exp(1 / temperature) + negatives)
    np.testing.assert_allclose(loss, -np.log(p), rtol=1e-6)
    assert metrics['contrastive_accuracy'] == 1
    entropy = entr(p) + negatives * entr((1 - p) / negatives)
    np.testing.assert_allclose(metrics['contrastive_entropy'], entropy, rtol=1e-6)


def test_order_of_images_and_of_views_does_not_matter():
    view1, view2 = views()
    order = np.random.default_rng(1).permutation(len(view1))
    expected, expected_metrics = compiled(view1, view2, temperature=0.2)
    for pair in [(view1[order], view2[order]), (view2, view1)]:
        loss, metrics = compiled(*pair, temperature=0.2)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert metrics['contrastive_accuracy'] == expected_metrics['contrastive_accuracy']


def compiled_step(n, d, f=nt_xent, **settings):
    """The program of loss and gradients, compiled and not run."""
    return jax.jit(step_of(f, temperature=0.1, **settings)).lower(
        *[jax.ShapeDtypeStruct((n, d), jnp.float32)] * 2).compile()


def test_no_device_holds_the_similarities_of_its_rows_and_eight_gather_projections_and_log_sum_exps_once():
    n, d = 192, 4

    def largest_array(program):
        shapes = re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', program)
        return max(np.prod([int(side) for side in shape.split(',')]) for shape in shapes)

    for devices in (1, 8):
        program = compiled_step(n, d, mesh=mesh_of(devices), tile=8).as_text()
        assert largest_array(program) <= 2 * n // devices * 2 * n / 4      # of [2n, 2N]
    assert largest_array(compiled_step(n, d, nt_xent_dense).as_text()) >= (2 * n) ** 2  # it can tell
    names = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
    found = re.findall(rf'= (\S+) ({names})(?:-start)?\(', program)
    assert collections.Counter(name for _, name in found) == {'all-gather': 2, 'all-reduce': 1}
    shapes = sorted(re.search(r'\[([0-9,]*)\]', shape)[1] for shape, _ in found)
    assert shapes == ['384,2', '384,4', '4']  # log-sum-exps, projections, means


def test_memory_is_far_below_that_of_the_dense_form():
    ours, dense = (compiled_step(4096, 128, f).memory_analysis().temp_size_in_bytes
                   for f in (nt_xent, nt_xent_dense))
    assert 15 * ours < dense


def test_every_matrix_product_asks_for_full_precision():
    # On a CPU the setting changes nothing, on a TPU or GPU the result: read it in the program.
    program = jax.jit(step_of(temperature=0.1, tile=2)).lower(*views()).as_text()
    products = [line for line in program.splitlines() if 'dot_general' in line]
    # On and above the diagonal, forward and backward, a tile's similarities; one product with the
    # weights on it, two above.
    assert len(products) == 2 + 2 + 1 + 2
    assert all('HIGHEST, HIGHEST' in line for line in products)


def test_bfloat16_projections_are_computed_in_float32():
    low = [jnp.asarray(view, jnp.bfloat16) for view in views(n=16, d=8)]
    step = jax.jit(step_of(temperature=0.1))
    (loss, metrics), gradients = step(*low)
    exact, exact_gradients = step(*(view.astype(jnp.float32) for view in low))
    assert loss.dtype == jnp.float32 and (loss, metrics) == exact         # bfloat16 would be off by 1e-2
    for gradient, wanted in zip(gradients, exact_gradients):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(gradient, wanted.astype(jnp.bfloat16))


def nearly_solved(temperature, loss, seed=0, n=16, d=32):
    """Views whose loss is about `loss`: their images share as much of one direction as that takes."""
    rng = np.random.default_rng(seed)
    content, direction, noise = rng.normal(size=(n, d)), rng.normal(size=d), 0.05 * rng.normal(size=(n, d))
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        pair = np.float32(content + middle * direction), np.float32(content + middle * direction + noise)
        low, high = (middle, high) if oracle(*pair, temperature)[0][0] < loss else (low, middle)
    return pair


@BOTH
def test_a_nearly_solved_task_keeps_its_digits_at_any_temperature(f):
    options = {'tile': 3} if f is nt_xent else {}
    both = jax.jit(jax.value_and_grad(
        lambda *parts: f(*parts[:2], temperature=parts[2], **options)[0], argnums=(0, 1, 2)))
    cases = [(0.05, 1e-6, 0), (0.05, 1e-3, 0), (0.1, 0.025, 0), (0.1, 1.0, 0), (0.5, 3.0, 0), (1.0, 3.0, 0),
             (10.0, 3.0, 0), *((0.01, loss, seed) for loss in (1e-6, 0.025, 1.0) for seed in range(4))]
    for temperature, loss, seed in cases:
        pair = nearly_solved(temperature, loss, seed)
        value, gradients = both(*pair, np.float32(temperature))
        (expected, *_), expected_gradients = oracle(*pair, np.float64(np.float32(temperature)))
        np.testing.assert_allclose(value, expected, rtol=1e-5, err_msg=f'{temperature} {loss} {seed}')
        for gradient, wanted in zip(gradients, expected_gradients):
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(),
                                       err_msg=f'{temperature} {loss} {seed}')


@DECOUPLED
def test_the_length_of_a_projection_does_not_count(decoupled):
    step = jax.jit(step_of(temperature=0.2, decoupled=decoupled))
    for scale in (0.0, 1e-30, 1e-5, 1e15, 1e25):
        view1, view2 = views()
        view1[0] *= np.float32(scale)
        (value, _), gradients = step(view1, view2)
        assert np.isfinite(gradients).all()
        if scale < 1e-6:            # below the least length: the gradient is finite, and not that of a unit row
            continue
        (expected, *_), (expected1, expected2, _) = oracle(view1, view2, 0.2, decoupled=decoupled)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for gradient, wanted in ((gradients[0][0], expected1[0]), (gradients[0][1:], expected1[1:]),
                                 (gradients[1], expected2)):
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_a_projection_that_is_not_a_number_shows_in_the_loss():
    view1, view2 = views()
    view2[3, 1] = np.nan
    assert np.isnan(compiled(view1, view2, temperature=0.1, tile=2)[0])


def test_a_tie_is_a_miss():
    # A collapsed encoder must not look perfect, whatever the last bit of a product.
    same = np.tile(views(1, 37)[0], (16, 1))
    for mesh in ((), (8,)):
        assert compiled(same, same, temperature=0.1, tile=3, mesh=mesh_of(*mesh))[1]['contrastive_accuracy'] == 0
    assert jax.jit(nt_xent_dense)(same, same, temperature=0.1)[1]['contrastive_accuracy'] == 0


def test_one_image_has_no_negatives():
    (loss, metrics), gradients = jax.jit(step_of(temperature=0.1))(*views(n=1))
    np.testing.assert_allclose([loss, metrics['contrastive_entropy']], 0, atol=1e-6)
    assert metrics['contrastive_accuracy'] == 1
    np.testing.assert_allclose(gradients, 0, atol=1e-5)


@BOTH
def test_metrics_carry_no_gradient(f):
    entropy = lambda view1, view2: f(view1, view2, temperature=0.1)[1]['contrastive_entropy']
    np.testing.assert_array_equal(jax.jit(jax.grad(entropy))(*views()), 0)


def test_a_batch_of_losses_on_two_devices():
    pairs = [views(n=4, seed=seed) for seed in range(3)]
    step = step_of(temperature=0.2, tile=1, mesh=mesh_of(2))
    (losses, _), gradients = jax.jit(jax.vmap(step))(*map(np.stack, zip(*pairs)))
    step = jax.jit(step)
    for i, pair in enumerate(pairs):
        (loss, _), expected = step(*pair)
        np.testing.assert_allclose(losses[i], loss, rtol=1e-6)
        np.testing.assert_allclose(gradients[0][i], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('settings', [{'decoupled': True, 'tile': 2}, {'normalize': False, 'mesh': 2}])
def test_derivatives_forward_and_of_second_order_are_those_of_the_dense_form(settings):
    pair, (tangent1, tangent2) = views(), views(seed=1)
    dense = {name: value for name, value in settings.items() if name not in ('tile', 'mesh')}
    settings = settings | {'mesh': mesh_of(2)} if 'mesh' in settings else settings

    def derivatives(f, options):
        loss = loss_of(f, temperature=0.5, **options)
        gradient = jax.grad(loss, argnums=(0, 1))
        along = lambda of: lambda *pair: jax.jvp(of, pair, (tangent1, tangent2))[1]
        back = lambda *pair: jax.grad(lambda *pair: sum(
            jnp.vdot(g, t) for g, t in zip(gradient(*pair), (tangent1, tangent2))), argnums=(0, 1))(*pair)
        return jax.jit(lambda *pair: [of(*pair) for of in (along(loss), along(gradient), back, along(along(loss)))])(
            *pair)

    for got, wanted in zip(derivatives(nt_xent, settings), derivatives(nt_xent_dense, dense)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, wanted)


def test_the_hessian_is_that_of_finite_differences_in_float64():
    pair = [view.astype(np.float64) for view in views(n=3, d=2)]
    hessian = jax.jit(jax.hessian(loss_of(temperature=0.5)))(*map(np.float32, pair))  # [3, 2, 3, 2]
    for index in np.ndindex(3, 2):
        moved = [pair[0].copy(), pair[0].copy()]
        moved[0][index] += 1e-5
        moved[1][index] -= 1e-5
        above, below = (oracle(view1, pair[1], 0.5)[1][0] for view1 in moved)
        np.testing.assert_allclose(hessian[:, :, *index], (above - below) / 2e-5, atol=2e-5)


@pytest.mark.parametrize('types, split', [
    ((EXPLICIT,), 'whole'), ((EXPLICIT,) * 2, 'rows'), ((EXPLICIT, AUTO), 'host'), ((AUTO, AUTO), 'whole')])
def test_a_mesh_of_any_axes_with_arrays_split_or_not(types, split):
    mesh = mesh_of(*((8,) if len(types) == 1 else (2, 4)), types=types)
    host = views(n=16, d=8)
    spec = jax.sharding.PartitionSpec(*[mesh.axis_names] * (split == 'rows'))
    pair = host if split == 'host' else jax.device_put(host, jax.sharding.NamedSharding(mesh, spec))
    step = lambda mesh: jax.value_and_grad(loss_of(temperature=0.1, mesh=mesh), argnums=(0, 1))
    (expected, *_), expected_gradients = oracle(*host, 0.1)
    for given in (mesh,) if split == 'host' else (mesh, None):
        loss, gradients = jax.jit(step(given))(*pair)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(gradients, expected_gradients[:2], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss_of(temperature=0.1, mesh=given)(*pair), expected, rtol=1e-6)
    with jax.set_mesh(mesh):                            # without it jax itself refuses jax.grad of typed arrays
        np.testing.assert_allclose(step(mesh)(*pair)[0], expected, rtol=1e-6)


@pytest.mark.parametrize('pair, settings, message', [
    (views(), {'temperature': 0}, 'positive temperature'),
    (views(), {'temperature': -0.1}, 'positive temperature'),
    (views(), {'temperature': float('nan')}, 'positive temperature'),
    (views(), {'temperature': np.float32(-1)}, 'positive temperature'),
    (views(), {'temperature': jnp.float32(-1)}, 'positive temperature'),
    (views(), {'temperature': np.ones(2)}, r'one temperature, got an array of shape \(2,\)'),
    (views(), {'tile': 0}, 'at least one image, got 0'),
    (views(), {'mesh': (8,)}, 'batch of 6 over 8 devices'),
    ((views(n=6)[0], views(n=4)[0]), {}, r'\(6, 5\) and \(4, 5\)'),
    ((np.zeros((0, 4)), np.zeros((0, 4))), {}, 'at least one image'),
    (views(n=1), {'decoupled': True}, 'no negatives'),
], ids=str)
def test_what_makes_no_loss_is_refused(pair, settings, message):
    with pytest.raises(ValueError, match=message):
        nt_xent(*pair, **{'temperature': 0.1} | settings | {'mesh': mesh_of(*settings.get('mesh', ()))})


def test_a_traced_temperature_that_is_not_positive_shows_in_the_loss():
    assert np.isnan(compiled(*views(), temperature=jnp.float32(-1))[0])
