"""Losses without negatives that keep the features of a batch apart: Barlow Twins and VICReg."""

import jax
import jax.numpy as jnp

from simclr_jax.objectives.parts import whole


def barlow_twins(view1: jax.Array, view2: jax.Array, *, off_diagonal: float = 0.0051
                 ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2 (Zbontar et al. 2021, eq. 1, and their main.py).

    C [D, D] is the correlation, over the N images, of the columns of view 1 with those of view 2, each with
    mean 0 and variance 1 (biased, with 1e-5 added to it, as torch's BatchNorm1d).

    Args:
        view1, view2: projections [N, D] of the two views, any float type; computed in float32. They may be
            sharded over a mesh of any axis types: N is all of its images.
        off_diagonal: lambda, 0.0051 in the paper.

    Returns:
        The loss, a float32 scalar, and the metrics 'on_diagonal' and 'off_diagonal', its two sums before lambda.

    Raises:
        ValueError: other shapes.

    >>> import jax.numpy as jnp
    >>> view = jnp.array([[1., 1.], [1., -1.], [-1., 1.], [-1., -1.]])          # two uncorrelated features
    >>> loss, metrics = barlow_twins(view, 2 * view)
    >>> round(float(loss), 4)
    0.0
    """
    _check('barlow_twins', view1, view2)
    views = [z.astype(jnp.float32) for z in whole(view1, view2)]                                # [N, D]
    z1, z2 = ((z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + 1e-5) for z in views)
    correlation = jnp.matmul(z1.T, z2, precision='highest') / len(z1)                           # [D, D]
    own = jnp.eye(len(correlation), dtype=bool)
    on = jnp.sum((1 - correlation) ** 2, where=own)
    off = jnp.sum(correlation ** 2, where=~own)
    return on + off_diagonal * off, jax.lax.stop_gradient({'on_diagonal': on, 'off_diagonal': off})


def vicreg(view1: jax.Array, view2: jax.Array, *, invariance: float = 25.0, variance: float = 25.0,
           covariance: float = 1.0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Variance, invariance and covariance of the views (Bardes et al. 2022, and their main_vicreg.py).

    The mean squared difference of the views; max(0, 1 - standard deviation) in the mean over the columns and
    the views (the paper's eq. 1 adds the views; its code takes half of that); and the squared covariances of
    different columns, summed and divided by D, both views added. Variances are of N - 1, with 1e-4 added.

    Args:
        view1, view2: see `barlow_twins`; at least two images.
        invariance, variance, covariance: the weights of the three terms, lambda, mu and nu.

    Returns:
        The loss, a float32 scalar, and the three terms before their weights as metrics, under these names.

    Raises:
        ValueError: other shapes.

    >>> import jax.numpy as jnp
    >>> view = jnp.array([[1., 1.], [1., -1.], [-1., 1.], [-1., -1.]])          # spread, and uncorrelated
    >>> round(float(vicreg(view, view)[0]), 4)
    0.0
    """
    _check('vicreg', view1, view2)
    views = [z.astype(jnp.float32) for z in whole(view1, view2)]                                # [N, D]
    centred = [z - z.mean(0) for z in views]
    deviations = [jnp.sqrt((z ** 2).sum(0) / (len(z) - 1) + 1e-4) for z in centred]             # [D]
    products = [jnp.matmul(z.T, z, precision='highest') / (len(z) - 1) for z in centred]        # [D, D]
    terms = {
        'invariance': jnp.mean((views[0] - views[1]) ** 2),
        'variance': sum(jax.nn.relu(1 - deviation).mean() for deviation in deviations) / 2,
        'covariance': sum(jnp.sum(c ** 2, where=~jnp.eye(len(c), dtype=bool)) / len(c) for c in products)}
    loss = (invariance * terms['invariance'] + variance * terms['variance']
            + covariance * terms['covariance'])
    return loss, jax.lax.stop_gradient(terms)


def _check(loss, view1, view2):
    if view1.ndim != 2 or view1.shape != view2.shape or len(view1) < 2:
        raise ValueError(f'{loss} needs two [N, D] views of equal shape and at least two images, got '
                         f'{view1.shape} and {view2.shape}.')
