"""Health of a representation: spread, rank, alignment, uniformity; a collapse called by its name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from simclr_jax.models.network import Network, outputs

_MAX_ROWS = 512     # the singular values of the rank cost rows^2 * width, pairs rows^2


def unit_rows(rows: jax.Array) -> jax.Array:
    """Rows [N, D] as float32 of length 1; a row of zeros stays."""
    rows = jnp.asarray(rows, jnp.float32)
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def spread(rows: jax.Array) -> jax.Array:
    """How far rows [N, D] point apart: 0 when all have one direction, 1 when directions cancel out.

    The root mean square distance of the unit vectors from their mean, sqrt(1 - |mean|^2).
    """
    unit = unit_rows(rows)
    return jnp.sqrt(jnp.maximum(0.0, jnp.square(unit - unit.mean(0)).sum(-1).mean()))


def effective_rank(rows: jax.Array) -> jax.Array:
    """RankMe (Garrido et al. 2023, eq. 1; Roy & Vetterli 2007) of rows [N, D], in [1, min(N, D)].

    The exponential of the entropy of the normalised singular values, rows not centred: 1 when all
    rows are multiples of one.
    """
    values = lax.platform_dependent(rows, cuda=singular_values_of_gram, rocm=singular_values_of_gram,
                                    default=functools.partial(jnp.linalg.svd, compute_uv=False))
    share = values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(jax.scipy.special.entr(share).sum())


def singular_values_of_gram(rows: jax.Array) -> jax.Array:
    """Those of rows [N, D], as float32 [min(N, D)] in falling order, from the eigenvalues of their products.

    For GPUs, where an SVD is slow. The products are float64: in float32 a singular value below 3e-4 of the largest
    would be lost, and a network near its collapse has hundreds of them.
    """
    with jax.enable_x64(True):
        wide = lax.convert_element_type(rows, jnp.float64)
        gram = wide @ wide.T if len(rows) <= rows.shape[1] else wide.T @ wide
        values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[::-1], 0))
        return lax.convert_element_type(values, jnp.float32)


def pair_metrics(view1: jax.Array, view2: jax.Array) -> dict[str, jax.Array]:
    """How near the two views [N, D] of an image lie to each other, and how far from those of other images.

    On unit vectors: 'alignment', the mean squared distance of positive pairs, and 'uniformity',
    log mean exp(-2 d^2) over the pairs of different images of the first view (Wang & Isola 2020,
    arXiv:2005.10242, alpha = 2, t = 2): lower is better for both. 'positive_similarity' and
    'negative_similarity' are the mean cosines of the two views of one image and of two images, either
    view; their '_std' the standard deviations.
    """
    units = jnp.stack([unit_rows(view1), unit_rows(view2)])                                 # [2, N, D]
    # Squared distances, from the common mean: the cosines of a collapsed network are all 1 less rounding.
    first, second = units - units.mean((0, 1))
    different = ~jnp.eye(len(first), dtype=bool)                                    # [N, N]

    def distances(a, b):
        return jnp.maximum(jnp.square(a).sum(-1)[:, None] + jnp.square(b).sum(-1)
                           - 2 * jnp.matmul(a, b.T, precision='highest'), 0.0)

    # Sums over a count that is known: mean(where=...) counts by a sum over a broadcast mask, which XLA's CPU compiler
    # (jaxlib 0.10.2) makes of threads that overwrite each other (google/XNNPACK#11243).
    pairs = len(first) * (len(first) - 1)

    def mean_of_different(values):                                                      # [..., N, N] -> []
        return jnp.where(different, values, 0).sum() / (pairs * (values.size // different.size))

    positive = jnp.square(first - second).sum(-1)
    own = distances(first, first)
    negative = jnp.stack([own, distances(first, second), distances(second, second)])
    mean = mean_of_different(negative)
    spread_of_negatives = jnp.sqrt(mean_of_different(jnp.square(negative - mean)))
    return {'alignment': positive.mean(),
            # Exact near 0, where a collapse lies; at the other end, -8, to 1e-4.
            'uniformity': jnp.log1p(mean_of_different(jnp.expm1(-2 * own))),
            'positive_similarity': 1 - positive.mean() / 2, 'positive_similarity_std': positive.std() / 2,
            'negative_similarity': 1 - mean / 2, 'negative_similarity_std': spread_of_negatives / 2}


def make_health(network: Network) -> Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]:
    """(variables, view1, view2: both [N, H, W, 3]) -> float32 scalars, for the caller to jit.

    'feature_spread', 'feature_rank', 'projection_spread' and 'projection_rank' of the first views, and the
    `pair_metrics` of the projections; BatchNorm uses its running statistics. At most 512 images are used.
    """

    def health(variables: Any, view1: jax.Array, view2: jax.Array) -> dict[str, jax.Array]:
        stride = -(-len(view1) // _MAX_ROWS)
        first, second = (outputs(network, variables, view[::stride]) for view in (view1, view2))
        metrics = pair_metrics(first.projection, second.projection)
        for name, rows in (('feature', first.features), ('projection', first.projection)):
            metrics |= {f'{name}_spread': spread(rows), f'{name}_rank': effective_rank(unit_rows(rows))}
        return metrics

    return health


class CollapseWatch:
    """Names a collapse once, and once its end; asked with the metrics of `make_health`.

    A run has collapsed when the projections or the features of different images point the same way
    (spread below `least_spread`) or lie on one line (effective rank below `least_rank`).
    """

    def __init__(self, least_spread: float = 0.05, least_rank: float = 1.5):
        self._limits = {'spread': least_spread, 'rank': least_rank}
        self._collapsed = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str:
        """The sentence to tell at `step`, '' for none; metrics that are missing are not judged."""
        low = [f'{part} {kind} {metrics[f"{part}_{kind}"]:.3g}' for part in ('feature', 'projection')
               for kind, limit in self._limits.items() if metrics.get(f'{part}_{kind}', limit) < limit]
        parts = [f'{part}s' for part in ('feature', 'projection') if any(text.startswith(part) for text in low)]
        if bool(low) == self._collapsed:
            return ''
        self._collapsed = bool(low)
        if not low:
            return f'Step {step:,}: features and projections vary again.'
        return (f'Collapse at step {step:,}: the {" and ".join(parts)} are nearly the same for every image '
                f'({", ".join(low)}). Lower the learning rate; with BYOL or MoCo check predictor, '
                'momentum and BatchNorm.')
