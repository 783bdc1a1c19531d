"""The margin triplet loss (Schroff et al. 2015; Chen et al. 2020, Table 2)."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.objectives.pairwise import mean_over_anchors, mean_where


def margin_triplet(view1: jax.Array, view2: jax.Array, *, margin: float, normalize: bool = True,
                   mining: str = 'none', mesh: Mesh | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """max(u.v- - u.v+ + m, 0), in the mean over the negatives.

    Args:
        view1, view2: projections [N, D] of the two views.
        margin: m >= 0, in units of the similarity.
        normalize, mining, mesh, the return value and the errors: see `pairwise.mean_over_anchors`. An anchor
            without a semi-hard negative counts as 0; a mined one that lies beyond the margin has no
            gradient, so that what is left is within it.
    """
    if not margin >= 0:
        raise ValueError(f'margin_triplet needs a margin of at least 0, got {margin}.')

    return mean_over_anchors(view1, view2, _terms, jnp.float32(margin), normalize=normalize, mining=mining,
                             mesh=mesh)


def _terms(positive, negatives, counts, margin):
    return mean_where(jnp.maximum(negatives - positive[:, None] + margin, 0.0), counts)
