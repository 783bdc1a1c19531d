"""BYOL's loss: regression of unit vectors (Grill et al. 2020, eq. 2)."""

import jax
import jax.numpy as jnp

from simclr_jax.objectives.parts import l2_normalize


def cosine_regression(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Squared distance of the unit vectors, 2 - 2 cos, of each row pair.

    Args:
        prediction, target: [N, D], any float type, rows of any length; computed in float32. BYOL stops the
            gradient of the target.

    Returns:
        [N] float32 in [0, 4]: 0 where directions are equal.

    Raises:
        ValueError: other shapes.

    >>> import jax.numpy as jnp, simclr_jax
    >>> prediction, target = jnp.array([[1., 0.], [1., 0.]]), jnp.array([[2., 0.], [0., 3.]])
    >>> simclr_jax.cosine_regression(prediction, target).tolist()
    [0.0, 2.0]
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError('cosine_regression needs two equal [N, D], got '
                         f'{prediction.shape} and {target.shape}.')
    prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
    return 2.0 - 2.0 * (l2_normalize(prediction) * l2_normalize(target)).sum(-1)
