"""The online probe: a linear classifier that learns alongside, on stopped gradients."""

import jax
import jax.numpy as jnp
import optax


def online_probe(logits: jax.Array | None, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over the labelled rows, and the metrics 'probe_loss' and 'probe_accuracy'.

    Args:
        logits: [M, C] float32, or None without a probe: the loss is then 0, without metrics.
        labels: [N] int32, -1 for none, each that of M / N neighbouring rows. Without any label
            loss and accuracy are 0.
    """
    if logits is None:
        return jnp.zeros(()), {}
    labels = jnp.repeat(labels, logits.shape[0] // labels.shape[0])              # [M]
    known = labels >= 0
    count = jnp.maximum(known.sum(), 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    hits = logits.argmax(-1) == labels
    loss = (losses * known).sum() / count
    return loss, {'probe_loss': loss, 'probe_accuracy': (hits & known).sum() / count}
