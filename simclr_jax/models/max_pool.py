"""The max-pool of the stem, with a gradient that adds instead of scattering.

The gradient of XLA's own reduction is a scatter with atomic additions in any order on a GPU, so that two
equal runs differ, and a sort of all its updates where determinism is asked for. Here a place that was the
largest of its window is told by comparing again, and the windows' nine gradients are shifted and added.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax.models.cpu.loops import keep

WINDOW, STRIDE = 3, 2


def max_pool(x: jax.Array, padding: str | tuple[tuple[int, int], tuple[int, int]]) -> jax.Array:
    """The largest of each 3x3 window at a stride of 2: [B, H, W, C] -> [B, h, w, C].

    Values and gradients are those of `flax.linen.max_pool`: of equal values the first of the window, in the
    order of rows, has the gradient.
    """
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(x.shape[1:3], (WINDOW,) * 2, (STRIDE,) * 2, padding)
        padding = rows, columns
    # Kept: on a CPU the nine gradients would be added anew for each that reads their sum.
    return _pool(keep(x), tuple(map(tuple, padding)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _pool(x, padding):
    return nn.max_pool(x, (WINDOW,) * 2, (STRIDE,) * 2, padding)


@_pool.defjvp
def _pool_jvp(padding, primals, tangents):
    (x,), (dx,) = primals, tangents
    shape = jax.eval_shape(lambda x: _pool(x, padding), x).shape
    # The place is that of a comparison, not of a value equal to the largest: XLA may round a value that it
    # computes again in another way, and then none would be equal.
    (_, out), *others = enumerate(_windows(x, shape, padding, -jnp.inf))
    place = jnp.zeros(shape, jnp.uint8)                 # of the largest in its window, the first of equal ones
    for k, value in others:
        larger = (value > out) | jnp.isnan(value)
        out, place = jnp.where(larger, value, out), jnp.where(larger, jnp.uint8(k), place)
    dout = jnp.zeros_like(out)
    for k, value in enumerate(_windows(dx, shape, padding, 0)):
        dout += jnp.where(place == k, value, 0)
    return out, dout


def _windows(x, shape, padding, filler):
    """The nine places of all windows, [B, h, w, C] each."""
    batch, height, width, channels = shape
    x = lax.pad(x, jnp.asarray(filler, x.dtype), [(0, 0, 0), *((*side, 0) for side in padding), (0, 0, 0)])
    for i, j in itertools.product(range(WINDOW), repeat=2):
        yield lax.slice(x, (0, i, j, 0), (batch, i + STRIDE * (height - 1) + 1, j + STRIDE * (width - 1) + 1,
                                          channels), (1, STRIDE, STRIDE, 1))
