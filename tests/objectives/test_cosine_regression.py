"""BYOL's regression is the squared distance of unit vectors, and harmless for zero rows."""

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.objectives.cosine_regression import cosine_regression
from tests.objectives.test_info_nce import differences

compiled = jax.jit(cosine_regression)
gradients = jax.jit(jax.grad(lambda p, t: cosine_regression(p, t).sum(), argnums=(0, 1)))


def make_rows(seed, n=6, d=4):
    return (3 * np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def paper(prediction, target):
    """Eq. 2 in float64, a row at a time."""
    unit = lambda row: row / np.sqrt(np.dot(row, row))
    return np.array([np.sum((unit(p) - unit(t)) ** 2)
                     for p, t in zip(np.float64(prediction), np.float64(target), strict=True)])


def test_it_is_the_squared_distance_of_the_unit_vectors():
    got = compiled(make_rows(0), make_rows(1))
    assert got.shape == (6,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, paper(make_rows(0), make_rows(1)), rtol=1e-5, atol=1e-6)


def test_equal_directions_cost_0_orthogonal_ones_2_opposite_ones_4():
    x = make_rows(2)
    np.testing.assert_allclose(compiled(x, 7 * x), 0, atol=1e-6)
    np.testing.assert_allclose(compiled(np.eye(4), 3 * np.eye(4)[::-1]), 2, rtol=1e-6)
    np.testing.assert_allclose(compiled(x, -0.1 * x), 4, rtol=1e-6)


def test_gradients_equal_finite_differences_of_the_formula():
    arrays = [make_rows(3, n=2).astype(np.float64), make_rows(4, n=2).astype(np.float64)]
    got = gradients(*(array.astype(np.float32) for array in arrays))
    for gradient, expected in zip(got, differences(lambda *rows: paper(*rows).sum(), *arrays), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_zero_rows_cost_2_and_have_a_finite_gradient():
    x = make_rows(5)
    x[0] = 0
    for pair in ((x, make_rows(6)), (make_rows(6), x), (x, x)):
        loss = compiled(*pair)
        assert loss[0] == 2 and np.isfinite(loss).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients(*pair))
