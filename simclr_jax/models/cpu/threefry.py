"""Threefry, the hash behind jax.random, by the compiled loop of `_threefry.cc` on one CPU: the same bits.

XLA's CPU compiler takes a tenth of a second or more for each place where a program draws, and the first step of a run
has thirty. For GPUs JAX itself has a kernel.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def use(target: str) -> None:
    """Has programs for one CPU that are lowered from now on take the loop of the name `target`."""
    def compiled(*arrays):
        shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
        keys, counts = (jnp.broadcast_arrays(*pair) for pair in (arrays[:2], arrays[2:]))
        # Where the axes of the keys come before those of the counts, as of a vmap over keys, all have the same counts.
        axes = max((counts[0].ndim - axis for axis, size in enumerate(counts[0].shape) if size > 1), default=0)
        if any(size > 1 for size in keys[0].shape[max(0, keys[0].ndim - axes):]):
            keys, counts = ([jnp.broadcast_to(each, shape) for each in pair] for pair in (keys, counts))
        words = jax.ShapeDtypeStruct((math.prod(shape),), jnp.uint32)
        results = jax.ffi.ffi_call(target, (words, words))(*(each.ravel() for each in (*keys, *counts)))
        return [result.reshape(shape) for result in results]

    def lower(context, *arrays):
        # An exported program runs where the loop may not be; and XLA does not know how to split it over devices.
        is_plain = context.module_context.lowering_parameters.for_export or jax.device_count() > 1
        return mlir.lower_fun(_plain if is_plain else compiled, multiple_results=True)(context, *arrays)

    mlir.register_lowering(threefry2x32_p, lower, platform='cpu')


def _plain(key1, key2, count1, count2):
    """By operations of XLA: Salmon et al. 2011, 20 rounds."""

    def four_rounds(group, state):
        x, y, keys, rotations = state      # keys [3, ...]
        for rotation in rotations[0]:
            x = x + y
            y = (y << rotation | y >> 32 - rotation) ^ x
        return x + keys[0], y + keys[1] + (group + 1).astype(jnp.uint32), jnp.roll(keys, -1, 0), rotations[::-1]

    x, y, *keys = jnp.broadcast_arrays(count1 + key1, count2 + key2, key2, key1 ^ key2 ^ jnp.uint32(0x1BD11BDA), key1)
    return lax.fori_loop(0, 5, four_rounds, (x, y, jnp.stack(keys), jnp.array(_ROTATIONS, jnp.uint32)))[:2]
