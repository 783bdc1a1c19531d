"""The stem's max-pool has flax's values and gradients, without a scatter."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from simclr_jax.models.max_pool import max_pool

PADDINGS = {'torch': ((1, 1), (1, 1)), 'same': 'SAME'}


def draw(shape, decimals, seed=0):
    """Rounded, so that many values of a window are equal."""
    return np.random.default_rng(seed).normal(size=shape).round(decimals).astype(np.float32)


@pytest.mark.parametrize('padding', PADDINGS)
@pytest.mark.parametrize('sides', [(8, 8), (9, 7), (3, 12)])
def test_values_and_gradients_are_those_of_flax(padding, sides):
    weights = np.random.default_rng(1).integers(-300, 300, (2, 5, 6, 3)).astype(np.float32)    # exact in any order

    @jax.jit
    def both(x):
        pools = [lambda x: max_pool(x, PADDINGS[padding]), lambda x: nn.max_pool(x, (3, 3), (2, 2), PADDINGS[padding])]
        found = []
        for value, pull in (jax.vjp(pool, x) for pool in pools):
            found.append((value, pull(weights[:, :value.shape[1], :value.shape[2]])))
        return found

    for decimals in (0, 6):
        jax.tree.map(np.testing.assert_array_equal, *both(draw((2, *sides, 3), decimals)))


def test_forward_derivatives_and_an_added_axis():
    x, direction = draw((3, 2, 6, 6, 1), 6), draw((3, 2, 6, 6, 1), 6, seed=1)

    def change(a, b):
        return jax.jvp(lambda x: max_pool(x, 'SAME'), (a,), (b,))[1]

    each = [jax.jit(change)(a, b) for a, b in zip(x, direction)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(change))(x, direction), each)
    curved = jax.jit(jax.hessian(lambda x: (max_pool(x, 'SAME') ** 2).sum()))(x[0, 0, :4, :4][None])
    assert np.trace(curved.reshape(16, 16)) > 0


def test_its_gradient_has_no_scatter():
    x = draw((2, 8, 8, 3), 2)
    text = jax.jit(jax.grad(lambda x: max_pool(x, 'SAME').sum())).lower(x).as_text()
    assert 'scatter' not in text and 'sort' not in text
