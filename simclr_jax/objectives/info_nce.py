"""InfoNCE: which of many keys belongs to a query (van den Oord et al. 2018; He et al. 2020, eq. 1)."""

import jax
import jax.numpy as jnp

# bf16 or TF32 products are too coarse to be divided by a small temperature.
_PRECISION = 'highest'


def info_nce(query: jax.Array, positive: jax.Array, negatives: jax.Array, *,
             temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of each query's own key among 1 + K candidates (moco/builder.py).

    Args:
        query: [N, D] float32, rows of unit length.
        positive: [N, D] float32, the key of the same image as each query, unit length.
        negatives: [K, D] float32, keys of other images for all queries alike, unit length.
        temperature: more than 0.

    Returns:
        The loss, a float32 scalar, and the metrics 'contrastive_loss' (the same),
        'contrastive_accuracy' (how often the positive is the most similar of the 1 + K keys),
        'positive_similarity' and 'negative_similarity' (mean cosines).
    """
    own = (query * positive).sum(-1, keepdims=True)                              # [N, 1]
    others = jnp.matmul(query, negatives.T, precision=_PRECISION)                # [N, K]
    return _cross_entropy(own[:, 0], others, temperature)


def info_nce_in_batch(query: jax.Array, key: jax.Array, *,
                      temperature: float) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE whose negatives are the other keys of the batch (MoCo v3, moco/builder.py).

    query, key: [N, D] float32, rows of unit length; row i of both is the same image. Returns as
    `info_nce`, with N candidates for each query.
    """
    similarity = jnp.matmul(query, key.T, precision=_PRECISION)                  # [N, N]
    own = jnp.eye(len(query), dtype=bool)
    return _cross_entropy(jnp.diagonal(similarity), jnp.where(own, -jnp.inf, similarity), temperature)


def _cross_entropy(own, others, temperature):
    """Of own [N] among own and others [N, K]; similarities of -inf are no candidates."""
    normaliser = jnp.logaddexp(own / temperature, jax.nn.logsumexp(others / temperature, axis=1))
    loss = (normaliser - own / temperature).mean()
    real = jnp.isfinite(others)
    return loss, {
        'contrastive_loss': loss,
        'contrastive_accuracy': (own > others.max(axis=1)).mean(dtype=jnp.float32),
        'positive_similarity': own.mean(),
        'negative_similarity': jnp.where(real, others, 0.0).sum() / real.sum(),
    }
