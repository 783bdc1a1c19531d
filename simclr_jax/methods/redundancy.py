"""Barlow Twins (Zbontar et al. 2021) and VICReg (Bardes et al. 2022): one network, no negatives, no predictor."""

import functools

import jax

from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import check_no_predictor, one_network, split_views
from simclr_jax.models.network import Network
from simclr_jax.objectives import redundancy


def barlow_twins(network: Network, *, num_train_steps: int, off_diagonal: float = 0.0051,
                 mesh: jax.sharding.Mesh | None = None) -> Method:
    """The Barlow Twins method around `network`; the correlation is that of the global batch.

    BatchNorm sees each view by itself, as in the original, which makes one pass a view.

    Args:
        network, num_train_steps, mesh: see `Method`; a wide projector without a norm at its end.
        off_diagonal: lambda, the weight of the correlations of different features.

    Raises:
        ValueError: the network has a predictor.
    """
    del num_train_steps
    return _make(network, functools.partial(redundancy.barlow_twins, off_diagonal=off_diagonal), 'barlow_twins', mesh)


def vicreg(network: Network, *, num_train_steps: int, invariance: float = 25.0, variance: float = 25.0,
           covariance: float = 1.0, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The VICReg method around `network`; variances and covariances are those of the global batch.

    Args:
        invariance, variance, covariance: weights of the three terms of `objectives.redundancy.vicreg`.

    The other arguments, and the errors, are those of `barlow_twins`.
    """
    del num_train_steps
    return _make(network, functools.partial(redundancy.vicreg, invariance=invariance, variance=variance,
                                            covariance=covariance), 'vicreg', mesh)


def _make(network, objective, name, mesh):
    check_no_predictor(network, name)

    def compare(output, labels, method_state):
        del labels
        return *objective(*split_views(output.projection)), method_state

    return one_network(network, compare, each_view=True, mesh=mesh)
