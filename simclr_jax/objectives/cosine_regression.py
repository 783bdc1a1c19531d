"""BYOL's loss: regression of unit vectors (Grill et al. 2020, eq. 2)."""

import jax

from simclr_jax.objectives.parts import l2_normalize


def cosine_regression(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared distance of the unit vectors, 2 - 2 cos, of each row pair.

    prediction, target: [N, D] float32, any length. Returns [N] float32 in [0, 4].
    """
    return 2.0 - 2.0 * (l2_normalize(prediction) * l2_normalize(target)).sum(-1)
