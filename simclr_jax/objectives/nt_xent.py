"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, eq. 1 and Algorithm 1)."""

import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P


def nt_xent(
    view1: jax.Array,  # [N, D]
    view2: jax.Array,  # [N, D]
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalised temperature-scaled cross entropy: the mean over the 2N anchors of eq. 1.

    Every projection is an anchor once. Its positive is the other view of the same image; the
    candidates of its softmax are the 2N-1 other projections.

    Args:
        view1: projections of the first views, [N, D], any float type; computed in float32.
        view2: projections of the second views, row i being the same image as row i of view1.
        temperature: tau > 0.
        normalize: cosine similarity (the paper); False takes plain inner products.
        mesh: None computes the loss in one piece. A mesh splits the rows over all its axes: each
            device gathers all projections and computes the loss of its own 2N / devices anchors.

    Returns:
        The loss, a float32 scalar, and its metrics, float32 scalars:
        'contrastive_accuracy', the share of anchors whose positive is the most similar of the
        2N-1 candidates, and 'contrastive_entropy', the mean entropy in nats of the softmax over
        them (at most log(2N-1)).

    Raises:
        ValueError: views that are not two equal [N, D] shapes, N not divisible by the devices
            of the mesh, or a temperature that is not positive.

    The official code (google-research/simclr tf2/objective.py) returns exactly twice this loss.
    """
    if view1.ndim != 2 or view1.shape != view2.shape:
        raise ValueError(
            f'nt_xent needs two [N, D] views of equal shape, got {view1.shape} and {view2.shape}.')
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise ValueError(f'nt_xent needs a positive temperature, got {temperature}.')

    if mesh is None:
        return _mean(_anchor_terms(view1, view2, temperature, normalize, axes=()))

    if view1.shape[0] % mesh.size:
        raise ValueError(
            f'nt_xent cannot split a batch of {view1.shape[0]} over {mesh.size} devices: '
            'choose a batch size that is a multiple of the device count.')
    axes = mesh.axis_names

    def local_share(view1, view2):  # [n, D], [n, D] with n = N / devices
        return lax.pmean(_mean(_anchor_terms(view1, view2, temperature, normalize, axes)), axes)

    return jax.shard_map(local_share, mesh=mesh, in_specs=P(axes), out_specs=P())(view1, view2)


def _anchor_terms(view1, view2, temperature, normalize, axes):
    """`rows_against_all_columns` for this device's n rows of each view."""
    z1, z2 = view1.astype(jnp.float32), view2.astype(jnp.float32)
    if normalize:
        z1, z2 = l2_normalize(z1), l2_normalize(z2)
    n = z1.shape[0]
    column1 = jnp.arange(n)  # [n] of the rows of z1
    all1, all2 = z1, z2  # [N, D]
    if axes:
        column1 += lax.axis_index(axes) * n
        all1, all2 = (lax.all_gather(z, axes, tiled=True) for z in (z1, z2))
    column2 = column1 + all1.shape[0]  # [n] of the rows of z2
    return rows_against_all_columns(
        anchors=jnp.concatenate([z1, z2]),
        candidates=jnp.concatenate([all1, all2]),
        own=jnp.concatenate([column1, column2]),
        positive=jnp.concatenate([column2, column1]),
        temperature=temperature,
    )


def rows_against_all_columns(
    anchors: jax.Array,  # [R, D]
    candidates: jax.Array,  # [C, D]
    own: jax.Array,  # [R] int, the column that is the anchor itself
    positive: jax.Array,  # [R] int, the column of its other view
    temperature: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loss, correctness and softmax entropy of every anchor, three float32 [R].

    Holds the whole [R, C] similarity matrix; a tiled form replaces this function alone.
    """
    # bf16 or TF32 products are too coarse to be divided by a temperature of 0.1.
    similarity = jnp.matmul(anchors, candidates.T, precision='highest')  # [R, C]
    is_own = own[:, None] == jnp.arange(candidates.shape[0])  # [R, C]
    logits = jnp.where(is_own, -jnp.inf, similarity / temperature)  # [R, C]
    log_p = jax.nn.log_softmax(logits)  # [R, C], -inf in the own column
    loss = -jnp.take_along_axis(log_p, positive[:, None], axis=1)[:, 0]  # [R]
    correct = (jnp.argmax(logits, axis=1) == positive).astype(jnp.float32)  # [R]
    entropy = jax.scipy.special.entr(jnp.exp(log_p)).sum(axis=1)  # [R], entr(0) = 0
    return loss, correct, entropy


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Rows of x at unit length; a zero row stays zero and has a finite gradient."""
    squared_norm = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared_norm, epsilon))


def _mean(anchor_terms):
    loss, accuracy, entropy = (term.mean() for term in anchor_terms)
    return loss, {'contrastive_accuracy': accuracy, 'contrastive_entropy': entropy}
