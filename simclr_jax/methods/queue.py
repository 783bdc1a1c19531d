"""A first-in-first-out queue of projections, on every device, as part of a method's state."""

from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.models.network import Network, outputs
from simclr_jax.objectives.parts import l2_normalize


def new_queue(network: Network, variables: Any, images: jax.Array, key: jax.Array, size: int
              ) -> dict[str, jax.Array]:
    """{'queue': `random_rows`, 'pointer': 0}."""
    return {'queue': random_rows(network, variables, images, key, size), 'pointer': jnp.zeros((), jnp.int32)}


def random_rows(network: Network, variables: Any, images: jax.Array, key: jax.Array, size: int) -> jax.Array:
    """[size, D] random rows of unit length, D the width of the projections."""
    width = jax.eval_shape(lambda: outputs(network, variables, images).projection).shape[-1]
    return l2_normalize(jax.random.normal(key, (size, width)))


def enqueue(queue: jax.Array, pointer: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    """Overwrites the oldest keys: first in, first out.

    Args:
        queue: [K, D]; `pointer`, an int32 scalar, is the row of its oldest key.
        keys: [M, D], the new ones, M at most K. K need not be a multiple of M: they wrap around.

    Returns:
        {'queue': [K, D], 'pointer': int32}.
    """
    size, count = len(queue), len(keys)
    if count > size:
        raise ValueError(f'method.queue_size is {size}, less than the {count} keys of one step: '
                         'make it larger, or 0 for no queue.')
    rows = (pointer + jnp.arange(count)) % size
    return {'queue': queue.at[rows].set(keys), 'pointer': (pointer + count) % size}
