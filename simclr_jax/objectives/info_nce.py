"""InfoNCE: which of many keys belongs to a query (van den Oord et al. 2018; He et al. 2020, eq. 1)."""

import jax
import jax.numpy as jnp

from simclr_jax.objectives.parts import checked_temperature, whole

# bf16 or TF32 products are too coarse to be divided by a small temperature.
_PRECISION = 'highest'


def info_nce(query: jax.Array, positive: jax.Array, negatives: jax.Array, *,
             temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of each query's own key among 1 + K candidates (moco/builder.py).

    Args:
        query: [N, D] floats, rows of unit length; computed in float32.
        positive: [N, D] float32, the key of the same image as each query, unit length.
        negatives: [K, D] float32, keys of other images for all queries alike, unit length.
        temperature: more than 0.

    The arrays may be sharded over a mesh of any axis types.

    Returns:
        The loss, a float32 scalar, and the metrics 'contrastive_loss' (the same),
        'contrastive_accuracy' (how often the positive is the most similar of the 1 + K keys),
        'positive_similarity' and 'negative_similarity' (mean cosines).

    Raises:
        ValueError: other shapes, or a temperature that is not positive.

    >>> import jax.numpy as jnp, simclr_jax
    >>> axes = jnp.eye(4)
    >>> loss, metrics = simclr_jax.info_nce(axes[:2], axes[:2], axes[2:], temperature=0.2)
    >>> round(float(loss), 4), float(metrics['contrastive_accuracy'])
    (0.0134, 1.0)
    """
    if query.ndim != 2 or query.shape != positive.shape or negatives.shape[1:] != query.shape[1:]:
        raise ValueError('info_nce needs query and positive [N, D] and negatives [K, D], got '
                         f'{query.shape}, {positive.shape} and {negatives.shape}.')
    query, positive, negatives = whole(query, positive, negatives)
    own = (query * positive).sum(-1)                                             # [N]
    others = jnp.matmul(query, negatives.T, precision=_PRECISION)                # [N, K]
    return _cross_entropy(own, others, temperature)


def info_nce_in_batch(query: jax.Array, key: jax.Array, further: jax.Array | None = None, *,
                      temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE whose negatives are the other keys of the batch (MoCo v3, moco/builder.py).

    query, key: [N, D] float32, rows of unit length; row i of both is the same image. further: [K, D], negatives
    beside them. Returns as `info_nce`, with N + K candidates for each query.
    """
    query, key = whole(query, key)
    similarity = jnp.matmul(query, key.T, precision=_PRECISION)                  # [N, N]
    others = jnp.where(jnp.eye(len(query), dtype=bool), -jnp.inf, similarity)
    if further is not None:
        others = jnp.concatenate([others, jnp.matmul(query, further.T, precision=_PRECISION)], axis=1)
    return _cross_entropy(jnp.diagonal(similarity), others, temperature)


def _cross_entropy(own, others, temperature):
    """Of own [N] among own and others [N, K]; similarities of -inf are no candidates."""
    temperature = checked_temperature('info_nce', temperature)
    # log(1 + sum exp(other - own)) keeps its digits where the loss is close to 0.
    loss = jax.nn.softplus(jax.nn.logsumexp(others / temperature, axis=1) - own / temperature).mean()
    real = jnp.isfinite(others)
    return loss, {
        'contrastive_loss': loss,
        'contrastive_accuracy': (own > others.max(axis=1)).mean(dtype=jnp.float32),
        'positive_similarity': own.mean(),
        'negative_similarity': jnp.where(real, others, 0.0).sum() / real.sum(),
    }
