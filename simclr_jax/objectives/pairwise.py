"""What the pairwise losses of the paper's Tables 2 and 4 share: similarities, mining, and devices.

Every projection is an anchor once, with the other view of its image as the positive and the other view of
the N-1 other images as negatives: "for simplicity, we only consider the negatives from one augmentation
view" (Chen et al. 2020, App. B.10).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from simclr_jax.objectives.parts import check_divisible, l2_normalize, on_mesh

MINING = ('none', 'semi_hard')
# (positive [n], negatives [n, N], which of these count [n, N], parameter) -> the loss of each anchor [n]
Terms = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def mean_over_anchors(view1: jax.Array, view2: jax.Array, terms: Terms, parameter: jax.Array, *,
                      normalize: bool, mining: str, mesh: Mesh | None
                      ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean of `terms` over the 2N anchors.

    Args:
        view1, view2: projections of the two views [N, D], any float type; computed in float32.
        terms: the loss of each anchor from its similarities; a row may have no negative that counts. A
            function of a module: each new one is compiled.
        parameter: of `terms`, a scalar: the temperature or the margin.
        normalize: cosine similarity; False takes plain inner products.
        mining: 'none': all negatives count. 'semi_hard': of those farther than the positive the closest
            one, if there is one (Schroff et al. 2015, sec. 3.2; Chen et al. 2020, sec. 5.1).
        mesh: splits the anchors over its devices, each of which gathers the projections; None for one. Its
            axes may be Auto or Explicit.

    Returns:
        The loss, a float32 scalar, and metrics without gradient: 'contrastive_accuracy', the share of
        anchors whose positive is more similar than every negative, and 'mined_share', the share of
        anchors with a negative that counts.

    Raises:
        ValueError: views of other shapes, a single image, an unknown mining, or N that the devices
            cannot share.
    """
    if view1.ndim != 2 or view1.shape != view2.shape or len(view1) < 2:
        raise ValueError(f'A pairwise loss needs two [N, D] views of at least two images; got {view1.shape} '
                         f'and {view2.shape}.')
    if mining not in MINING:
        raise ValueError(f'method.mining is {mining!r}; it takes {" or ".join(map(repr, MINING))}.')
    check_divisible('A pairwise loss', len(view1), mesh)
    return _mean(view1, view2, jnp.asarray(parameter, jnp.float32), terms, normalize, mining, mesh)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _mean(view1, view2, parameter, terms, normalize, mining, mesh):

    def local_share(view1, view2, parameter, axes):  # [n, D] each
        views = [view.astype(jnp.float32) for view in (view1, view2)]
        if normalize:
            views = [l2_normalize(view) for view in views]
        start = lax.axis_index(axes) * len(view1) if axes else 0
        row = start + jnp.arange(len(view1))  # [n], of the global batch
        halves = []
        for anchors, others in (views, views[::-1]):
            everyone = lax.all_gather(others, axes, tiled=True) if axes else others  # [N, D]
            halves.append(_anchors(anchors, everyone, row, terms, parameter, mining))
        means = sum(half.mean(axis=1) for half in halves) / 2  # [3]
        return lax.pmean(means, axes) if axes else means

    loss, accuracy, mined = on_mesh(local_share, mesh, (view1, view2), parameter)
    return loss, lax.stop_gradient({'contrastive_accuracy': accuracy, 'mined_share': mined})


def _anchors(anchors, others, row, terms, parameter, mining):
    """Loss, hit and whether a negative counts, of each anchor: [3, n]."""
    s = jnp.matmul(anchors, others.T, precision='highest')  # [n, N]
    is_own = jnp.arange(len(others)) == row[:, None]  # [n, N]
    positive = jnp.sum(s, axis=1, where=is_own)  # [n]
    counts = ~is_own
    hit = positive > jnp.max(s, axis=1, where=counts, initial=-jnp.inf)
    if mining == 'semi_hard':
        farther = counts & (s < positive[:, None])
        closest = jnp.argmax(jnp.where(farther, s, -jnp.inf), axis=1)
        counts = farther & (jnp.arange(len(others)) == closest[:, None])
    return jnp.stack([terms(positive, s, counts, parameter), hit.astype(jnp.float32),
                      counts.any(axis=1).astype(jnp.float32)])


def mean_where(values: jax.Array, counts: jax.Array) -> jax.Array:
    """The mean of values [n, N] over those that count, of each row [n]; 0 where none does."""
    return jnp.sum(values, axis=1, where=counts) / jnp.maximum(counts.sum(axis=1), 1)
