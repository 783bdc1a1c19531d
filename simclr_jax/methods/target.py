"""The second network of MoCo and BYOL, which follows the online one as a moving average."""

from typing import Any

import jax

from simclr_jax.models.network import Network


def target_network(network: Network) -> Network:
    """`network` without predictor and probe: what a target computes, a projection of images."""
    return network.clone(predictor=None, num_classes=0)


def target_params(params: dict[str, Any]) -> dict[str, Any]:
    """The part of the online parameters that the target has too."""
    return {name: params[name] for name in ('encoder', 'head') if name in params}


def moving_average(target: Any, online: dict[str, Any], momentum: jax.Array | float) -> Any:
    """momentum * target + (1 - momentum) * online, leaf by leaf; BatchNorm statistics are no part of it."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, target, target_params(online))
