"""A frozen ResNet without its BatchNorms: what they do with fixed statistics lies in the kernels before them.

On a GPU a convolution, the offset, the shortcut and the ReLU are then one kernel of cuDNN. For encoders that are
only read from: no pass that trains, or follows statistics, comes by here, and no file of weights is written folded.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from simclr_jax.models.network import Network
from simclr_jax.models.norm import BatchNorm, add_and_rectify
from simclr_jax.models.resnet import ResNet


def fold(network: Network, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables for a pass under `folded`, numpy arrays where they are others than those given.

    The kernel of each convolution of a ResNet is multiplied by what the BatchNorm after it multiplies by, and the
    bias of that norm becomes all that it adds: float64, rounded to float32 once. Of any other encoder, and of the
    heads, everything stays as it is.
    """
    encoder = network.encoder
    if type(encoder) is not ResNet:
        return dict(variables)
    params: dict[Any, Any] = traverse_util.flatten_dict(dict(variables['params']), keep_empty_nodes=True)
    stats = traverse_util.flatten_dict(dict(variables['batch_stats']))
    for *parents, module, name in [path for path in params if path[0] == 'encoder']:
        if name != 'scale':
            continue
        norm, kernel = (*parents, module), (*parents, module.replace('norm', 'conv'), 'kernel')
        scale, bias, mean, var = (np.asarray(array, np.float64) for array in (
            params[*norm, 'scale'], params[*norm, 'bias'], stats[*norm, 'mean'], stats[*norm, 'var']))
        slope = scale / np.sqrt(var + encoder.norm_epsilon)
        params[kernel] = np.float32(np.asarray(params[kernel]) * slope)
        params[*norm, 'bias'] = np.float32(bias - mean * slope)
    return {**variables, 'params': traverse_util.unflatten_dict(params)}


def folded(network: Network, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, a pass of `network`, for variables of `fold`: the norms of its encoder add their bias alone."""

    def add_bias(call, args, kwargs, context):
        module = context.module
        if not isinstance(module, BatchNorm) or module.path[0] != 'encoder':
            return call(*args, **kwargs)
        bias = module.get_variable('params', 'bias').astype(args[0].dtype)
        return add_and_rectify(args[0] + bias, kwargs.get('shortcut'), kwargs.get('rectify', False))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(add_bias):
            return function(*args, **kwargs)

    return run if type(network.encoder) is ResNet else function
