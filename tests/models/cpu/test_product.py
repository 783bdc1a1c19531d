"""Products of rows with rows against float64, by the compiled loop and by numpy."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from simclr_jax.models.cpu import loops
from simclr_jax.models.cpu.product import ROWS, Rows


@pytest.fixture(params=['numpy', 'loops'])
def form(request, monkeypatch):
    if request.param == 'numpy':
        monkeypatch.setenv(loops.SWITCH, 'off')
    elif not hasattr(loops.library(), 'product_multiply'):
        pytest.skip('the compiled loops were not built, or are not for this processor')


@pytest.mark.parametrize('count, others, width', [
    (1, 1, 1), (64, 6, 16), (65, 7, 17), (200, ROWS + 5, 512), (130, 13, 1100), (63, 1, 513)])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_products_are_those_of_float64(form, count, others, width, dtype):
    rng = np.random.default_rng(0)
    rows, scale = rng.normal(size=(count, width)).astype(dtype), rng.uniform(1, 2, count).astype(np.float32)
    given = rng.normal(size=(2 * others, width)).astype(np.float32)[::2]       # not contiguous
    with ThreadPoolExecutor(3) as pool:
        actual = Rows(rows, scale, pool).products(given)
    assert actual.dtype == np.float32
    expected = np.float64(given) @ (rows * np.float64(scale)[:, None]).T
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.sqrt(width) * 10)


def test_a_row_whose_scale_is_nan_has_no_product(form):
    scale = np.ones(70, np.float32)
    scale[[3, 66]] = np.nan
    with ThreadPoolExecutor(2) as pool:
        products = Rows(np.ones((70, 5), np.float32), scale, pool).products(np.ones((2, 5), np.float32))
    np.testing.assert_array_equal(np.isnan(products).all(axis=0), np.isnan(scale))
    np.testing.assert_array_equal(products[:, ~np.isnan(scale)], 5)
