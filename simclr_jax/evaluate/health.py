"""Spread and effective rank of features and projections, and a collapse called by its name."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from simclr_jax.models.network import Network

_MAX_ROWS = 512     # for the rank: its singular values cost rows^2 * width


def spread(rows: jax.Array) -> jax.Array:
    """How far rows [N, D] point apart: 0 when all have one direction, 1 when directions cancel out.

    The root mean square distance of the unit vectors from their mean, sqrt(1 - |mean|^2).
    """
    unit = _unit(rows)
    return jnp.sqrt(jnp.maximum(0.0, jnp.square(unit - unit.mean(0)).sum(-1).mean()))


def effective_rank(rows: jax.Array) -> jax.Array:
    """RankMe (Garrido et al. 2023, eq. 1; Roy & Vetterli 2007) of rows [N, D], in [1, min(N, D)].

    The exponential of the entropy of the normalised singular values, rows not centred: 1 when all
    rows are multiples of one.
    """
    values = jnp.linalg.svd(rows.astype(jnp.float32), compute_uv=False)
    share = values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(jax.scipy.special.entr(share).sum())


def make_health(network: Network) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    """(variables, images [N, H, W, 3]) -> {'feature_spread', 'feature_rank', 'projection_spread',
    'projection_rank'}, float32 scalars, for the caller to jit; BatchNorm uses its running statistics.
    """

    def health(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        output = network.apply(variables, images, train=False)
        measures = {}
        for name, rows in (('feature', output.features), ('projection', output.projection)):
            some = rows[::-(-len(rows) // _MAX_ROWS)]
            measures |= {f'{name}_spread': spread(rows), f'{name}_rank': effective_rank(_unit(some))}
        return measures

    return health


def _unit(rows):
    rows = rows.astype(jnp.float32)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


class CollapseWatch:
    """Names a collapse once, and once its end; asked with the measures of `make_health`.

    A run has collapsed when the projections or the features of different images point the same way
    (spread below `least_spread`) or lie on one line (effective rank below `least_rank`).
    """

    def __init__(self, least_spread: float = 0.05, least_rank: float = 1.5):
        self._limits = {'spread': least_spread, 'rank': least_rank}
        self._collapsed = False

    def __call__(self, step: int, measures: dict[str, float]) -> str:
        """The sentence to tell at `step`, '' for none; measures that are missing are not judged."""
        low = [f'{part} {kind} {measures[f"{part}_{kind}"]:.3g}' for part in ('feature', 'projection')
               for kind, limit in self._limits.items() if measures.get(f'{part}_{kind}', limit) < limit]
        if bool(low) == self._collapsed:
            return ''
        self._collapsed = bool(low)
        if not low:
            return f'Step {step:,}: the representation has spread again.'
        return (f'Collapse at step {step:,}: the network answers nearly the same for every image '
                f'({", ".join(low)}). Lower the learning rate; with BYOL or MoCo check predictor, '
                'momentum and BatchNorm.')
