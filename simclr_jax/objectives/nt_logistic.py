"""NT-Logistic: each pair alone is told to be of one image or of two (Chen et al. 2020, Table 2)."""

import jax
from jax.sharding import Mesh

from simclr_jax.objectives.pairwise import mean_over_anchors, mean_where
from simclr_jax.objectives.parts import checked_temperature


def nt_logistic(view1: jax.Array, view2: jax.Array, *, temperature: float, normalize: bool = True,
                mining: str = 'none', mesh: Mesh | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
    """-log sigmoid(u.v+ / tau) - log sigmoid(-u.v- / tau), the second in the mean over the negatives.

    Args:
        view1, view2: projections [N, D] of the two views.
        temperature: tau > 0.
        normalize, mining, mesh, the return value and the errors: see `pairwise.mean_over_anchors`. An anchor
            without a semi-hard negative keeps the first term.
    """
    return mean_over_anchors(view1, view2, _terms, checked_temperature('nt_logistic', temperature),
                             normalize=normalize, mining=mining, mesh=mesh)


def _terms(positive, negatives, counts, temperature):
    return (jax.nn.softplus(-positive / temperature)
            + mean_where(jax.nn.softplus(negatives / temperature), counts))
