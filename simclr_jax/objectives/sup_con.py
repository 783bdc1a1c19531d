"""SupCon: NT-Xent whose positives are all views of the anchor's class (Khosla et al. 2020, eq. 2)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from simclr_jax.objectives.nt_xent import nt_xent
from simclr_jax.objectives.parts import checked_temperature, l2_normalize, on_mesh

_ROWS = 1024  # anchors whose classes are compared with all others' at once


def sup_con(view1: jax.Array, view2: jax.Array, labels: jax.Array, *, temperature: float | jax.Array,
            normalize: bool = True, mesh: Mesh | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Supervised contrastive loss, with the mean over the positives outside of the logarithm (L_out).

    For anchor i, with s_ik as in `nt_xent`, log sum_{k != i} exp(s_ik) less the mean of s_ip over all other
    views p of its class. That is `nt_xent` plus the mean of <z_i, z_j - c_i> / temperature, where z_j is the
    other view of its image and c_i the mean of its positives; so it is computed.

    Args:
        view1, view2, temperature, normalize, mesh: see `nt_xent`. The paper's temperature is 0.1.
        labels: [N] integers. An image whose label is below 0 has its other view for the only positive;
            where all have, the loss is `nt_xent`.

    Returns:
        The loss, a float32 scalar (2 of 3 positives at best leave log 3: it does not go to 0), and the metrics of
        `nt_xent`, which count the other view alone as right.

    Raises:
        ValueError: see `nt_xent`; labels of another shape, or that are no integers.

    >>> import jax.numpy as jnp
    >>> view, labels = jnp.eye(4)[jnp.array([0, 0, 1, 1])], jnp.array([5, 5, 7, 7])
    >>> round(float(sup_con(view, view, labels, temperature=0.1)[0]), 3)         # log 3
    1.099
    """
    if jnp.shape(labels) != view1.shape[:1] or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(f'sup_con needs integer labels [N] for {view1.shape[0]} images, got '
                         f'{jnp.result_type(labels)} {list(jnp.shape(labels))}.')
    loss, metrics = nt_xent(view1, view2, temperature=temperature, normalize=normalize, mesh=mesh)
    temperature = checked_temperature('sup_con', temperature)
    return loss + _surplus(view1, view2, labels, normalize, mesh) / temperature, metrics


@functools.partial(jax.jit, static_argnums=(3, 4))
def _surplus(view1, view2, labels, normalize, mesh):
    """The mean over the anchors of <z_i, z_j - c_i>: zero where the other view is the only positive."""
    unit = l2_normalize if normalize else lambda x: x
    images = jnp.arange(len(labels))
    classes = jnp.where(labels < 0, -1 - images, labels)        # each of the unlabelled is its own class

    def local_share(view1, view2, classes, axes):               # [n, D], [n, D], [n]
        both = jnp.stack([unit(view1.astype(jnp.float32)), unit(view2.astype(jnp.float32))], axis=1)
        every, everyones = (lax.all_gather(x, axes, tiled=True) if axes else x for x in (both, classes))
        sums = every.sum(axis=1)                                # [N, D], of an image's two views

        @jax.checkpoint                                         # or all comparisons would be kept
        def one_image(pair, label):                             # [2, D]
            is_positive = (everyones == label).astype(jnp.float32)                              # [N]
            count = 2 * is_positive.sum() - 1
            total = jnp.matmul(is_positive, sums, precision='highest')                          # [D]
            centre = (total - pair) / count                     # [2, D], without the anchor itself
            return jnp.where(count > 1, jnp.sum(pair * (pair[::-1] - centre)), 0.0)

        shares = lax.map(lambda rows: one_image(*rows), (both, classes), batch_size=_ROWS)
        mean = shares.mean() / 2
        return lax.pmean(mean, axes) if axes else mean

    return on_mesh(local_share, mesh, (view1, view2, classes))
