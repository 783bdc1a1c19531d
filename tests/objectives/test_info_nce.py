"""InfoNCE over a queue and over a batch: the formula one pair at a time, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.objectives.info_nce import info_nce, info_nce_in_batch

queue_loss = jax.jit(info_nce)
batch_loss = jax.jit(info_nce_in_batch)


def unit_rows(n, d=4, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def near(rows, noise=0.8, seed=5):
    """Unit rows that are like `rows`, so that some positives win and some lose."""
    rows = rows + noise * np.random.default_rng(seed).normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def double_loop(query, candidates, temperature):
    """candidates[i]: (positive, [negatives]) of query i. Loss, accuracy and mean cosines in float64."""
    losses, hits, positives, negatives = [], [], [], []
    for q, (positive, others) in zip(np.float64(query), candidates, strict=True):
        own = sum(q * np.float64(positive))
        cosines = [sum(q * np.float64(other)) for other in others]
        total = np.exp(own / temperature) + sum(np.exp(cosine / temperature) for cosine in cosines)
        losses.append(-np.log(np.exp(own / temperature) / total))
        hits.append(all(own > cosine for cosine in cosines))
        positives.append(own)
        negatives.extend(cosines)
    return {'contrastive_loss': np.mean(losses), 'contrastive_accuracy': np.mean(hits),
            'positive_similarity': np.mean(positives), 'negative_similarity': np.mean(negatives)}


def over_a_queue(query, positive, queue, temperature):
    return double_loop(query, [(key, queue) for key in positive], temperature)


def over_the_batch(query, key, temperature):
    return double_loop(query, [(key[i], [key[j] for j in range(len(key)) if j != i])
                               for i in range(len(key))], temperature)


def assert_metrics(loss, metrics, expected):
    assert 0 < expected['contrastive_accuracy'] < 1  # the case can tell hits from misses
    assert loss == metrics['contrastive_loss'] and set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('temperature', [0.07, 0.2, 1.0])
def test_over_a_queue_it_is_the_double_loop(temperature):
    query, queue = unit_rows(6), unit_rows(9, seed=1)
    positive = near(query)
    loss, metrics = queue_loss(query, positive, queue, temperature=temperature)
    assert_metrics(loss, metrics, over_a_queue(query, positive, queue, temperature))


@pytest.mark.parametrize('temperature', [0.07, 0.2, 1.0])
def test_over_a_batch_it_is_the_double_loop(temperature):
    query = unit_rows(7)
    key = near(query)
    loss, metrics = batch_loss(query, key, temperature=temperature)
    assert_metrics(loss, metrics, over_the_batch(query, key, temperature))


def test_over_a_batch_and_a_queue_it_is_the_double_loop():
    query, queue = unit_rows(7), unit_rows(5, seed=1)
    key = near(query)
    others = [[*np.delete(key, i, axis=0), *queue] for i in range(len(key))]
    assert_metrics(*jax.jit(info_nce_in_batch)(query, key, queue, temperature=0.2),
                   double_loop(query, list(zip(key, others)), 0.2))


def differences(function, *arrays, step=1e-6):
    """Central finite differences of a float64 function, one array for each argument."""
    arrays = [array.astype(np.float64) for array in arrays]
    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(*array.shape):
            centre = array[index]
            array[index] = centre + step
            above = function(*arrays)
            array[index] = centre - step
            gradient[index] = (above - function(*arrays)) / (2 * step)
            array[index] = centre
        gradients.append(gradient)
    return gradients


def test_gradients_equal_finite_differences_of_the_double_loop():
    query, queue = unit_rows(4), unit_rows(5, seed=1)
    key = near(query)
    cases = [
        (info_nce, lambda *rows: over_a_queue(*rows, 0.3)['contrastive_loss'], (query, key, queue)),
        (info_nce_in_batch, lambda *rows: over_the_batch(*rows, 0.3)['contrastive_loss'], (query, key))]
    for ours, theirs, rows in cases:
        gradient = jax.grad(functools.partial(ours, temperature=0.3), tuple(range(len(rows))), has_aux=True)
        got, _ = jax.jit(gradient)(*rows)
        for x, y in zip(got, differences(theirs, *rows), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_equal_rows_cost_the_log_of_the_number_of_candidates():
    same = np.eye(4, dtype=np.float32)[[0] * 5]     # exact in any order of summation
    loss, metrics = queue_loss(same, same, same[:3], temperature=0.07)
    np.testing.assert_allclose(loss, np.log(1 + 3), rtol=1e-5)
    assert metrics['contrastive_accuracy'] == 0  # a tie is no hit: collapse must not look like success
    loss, metrics = batch_loss(same, same, temperature=0.07)
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-5)


def test_orthogonal_keys_are_analytic():
    rows = np.eye(6, dtype=np.float32)
    loss, metrics = queue_loss(rows[:2], rows[:2], rows[2:], temperature=0.5)
    np.testing.assert_allclose(loss, np.log(1 + 4 * np.exp(-2)), rtol=1e-6)
    assert metrics['contrastive_accuracy'] == 1 and metrics['positive_similarity'] == 1
    loss, metrics = batch_loss(rows, rows, temperature=0.5)
    np.testing.assert_allclose(loss, np.log(1 + 5 * np.exp(-2)), rtol=1e-6)
    assert metrics['negative_similarity'] == 0


def test_a_small_temperature_does_not_overflow():
    query, queue = unit_rows(4), unit_rows(5, seed=1)
    for loss in (lambda query: info_nce(query, -query, queue, temperature=1e-3)[0],
                 lambda query: info_nce_in_batch(query, -query, temperature=1e-3)[0]):
        value, gradient = jax.jit(jax.value_and_grad(loss))(query)
        assert np.isfinite(value) and value > 100 and np.isfinite(gradient).all()


def test_every_matrix_product_asks_for_full_precision():
    # On a CPU the setting changes nothing, on a TPU or GPU the result: read it in the program.
    rows = unit_rows(4)
    for loss in (lambda query, key: info_nce(query, key, key, temperature=0.1)[0],
                 lambda query, key: info_nce_in_batch(query, key, temperature=0.1)[0]):
        program = jax.jit(jax.value_and_grad(loss)).lower(rows, rows).as_text()
        products = [line for line in program.splitlines() if 'dot_general' in line]
        assert products and all('HIGHEST, HIGHEST' in line for line in products)


@pytest.mark.parametrize('function, arrays', [(info_nce, 3), (info_nce_in_batch, 2)])
def test_arrays_split_over_a_mesh_of_explicit_axes(function, arrays):
    rows = [unit_rows(16, seed=seed) for seed in range(arrays)]
    step = jax.jit(jax.value_and_grad(lambda *rows: function(*rows, temperature=0.2)[0]))
    mesh = jax.make_mesh((8,), ('devices',), axis_types=(jax.sharding.AxisType.Explicit,))
    split = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('devices')))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 step(*split), step(*rows))
    np.testing.assert_allclose(function(*split, temperature=0.2)[0], step(*rows)[0], rtol=1e-5)


def test_a_loss_close_to_0_keeps_its_digits():
    query = np.float32([[1, 0], [0, 1]])
    negatives = np.float32([[0.3, -np.sqrt(0.91)], [-1, 0]])
    cosines = np.float64(query) @ np.float64(negatives).T
    expected = np.log1p(np.exp((cosines - 1) / 0.05).sum(axis=1)).mean()
    assert expected < 1e-6
    loss, gradient = jax.jit(jax.value_and_grad(
        lambda key: info_nce(query, key, negatives, temperature=0.05)[0]))(query)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    share = np.exp((cosines - 1) / 0.05).sum(axis=1)
    np.testing.assert_allclose(gradient, -(share / (1 + share))[:, None] * query / 0.05 / 2,
                               rtol=1e-5, atol=1e-12)


def test_what_makes_no_loss_is_refused():
    rows = unit_rows(4)
    with pytest.raises(ValueError, match='positive temperature'):
        info_nce(rows, rows, rows, temperature=0.0)
    with pytest.raises(ValueError, match=r'\[K, D\], got \(4, 4\), \(4, 4\) and \(4, 3\)'):
        info_nce(rows, rows, rows[:, :3], temperature=0.1)
