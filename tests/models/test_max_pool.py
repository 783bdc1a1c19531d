"""The stem's max-pool has flax's values and gradients, without a scatter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.max_pool import max_pool

PADDINGS = {'torch': ((1, 1), (1, 1)), 'same': 'SAME'}


def draw(shape, decimals, seed=0):
    """Rounded, so that many values of a window are equal."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).round(decimals).astype(np.float32))


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('sides', [(8, 8), (9, 7), (3, 12)])
@pytest.mark.parametrize('decimals', [0, 6])
def test_values_and_gradients_are_those_of_flax(padding, sides, decimals):
    padding = PADDINGS[padding]
    x = draw((2, *sides, 3), decimals)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), padding), x)
    result, our_pull = jax.vjp(lambda x: max_pool(x, padding), x)
    np.testing.assert_array_equal(result, expected)
    weights = jnp.round(100 * draw(expected.shape, 2, seed=1))      # whole numbers: exact in any order
    np.testing.assert_array_equal(our_pull(weights)[0], pull(weights)[0])


def test_forward_derivatives_and_an_added_axis():
    x, direction = draw((3, 2, 6, 6, 1), 6), draw((3, 2, 6, 6, 1), 6, seed=1)

    def change(a, b):
        return jax.jvp(lambda x: max_pool(x, 'SAME'), (a,), (b,))[1]

    each = [change(a, b) for a, b in zip(x, direction)]
    np.testing.assert_array_equal(jax.vmap(change)(x, direction), each)
    curved = jax.hessian(lambda x: (max_pool(x, 'SAME') ** 2).sum())(x[0, 0, :4, :4][None])
    assert float(jnp.trace(curved.reshape(16, 16))) > 0


def test_its_gradient_has_no_scatter():
    x = draw((2, 8, 8, 3), 2)
    text = jax.jit(jax.grad(lambda x: max_pool(x, 'SAME').sum())).lower(x).as_text()
    assert 'scatter' not in text and 'sort' not in text
