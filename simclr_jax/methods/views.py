"""Two views as one batch, so that the encoder and its BatchNorm see all 2N images at once."""

import jax
import jax.numpy as jnp


def interleave_views(view1: jax.Array, view2: jax.Array) -> jax.Array:
    """[N, ...] and [N, ...] -> [2N, ...], the views of image i in rows 2i and 2i + 1.

    Concatenation would put the views of one image N rows apart and so, on a batch split over
    devices, move half of the images between them. Interleaved, every row stays where it is.
    """
    return jnp.stack([view1, view2], axis=1).reshape(-1, *view1.shape[1:])


def split_views(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[2N, ...] -> the [N, ...] views that `interleave_views` joined."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])  # [N, 2, ...]
    return pairs[:, 0], pairs[:, 1]
