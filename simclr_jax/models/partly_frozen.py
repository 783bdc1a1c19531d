"""A training pass in which some modules stay as they are: for fine-tuning from a block on."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from simclr_jax.models.network import Network
from simclr_jax.models.norm import BatchNorm


def apply_partly_frozen(network: Network, variables: Any, images: jax.Array, *,
                        is_frozen: Callable[[str, str], bool]) -> tuple[tuple[jax.Array, ...], Any]:
    """One pass in training mode over images [B, H, W, 3]: (layers, new batch_stats).

    BatchNorms of frozen modules use their running statistics and leave them alone, as the official code's
    do (tf2/resnet.py: a Keras BatchNorm that is not trainable); the others use the batch's.

    Args:
        is_frozen: of a part of the network and a module in it: ('encoder', 'stage1_block1').

    Returns:
        `Output.layers`, h first, and the whole collection 'batch_stats'.
    """
    def keep_statistics(call, args, kwargs, context):
        module = context.module
        # The copy below is intercepted too; it stands alone, and so has no path.
        if not (isinstance(module, BatchNorm) and context.method_name == '__call__' and module.path
                and is_frozen(*module.path[:2])):
            return call(*args, **kwargs)
        fixed = module.clone(use_running_average=True, parent=None)
        return fixed.apply({name: module.variables[name] for name in ('params', 'batch_stats')},
                           *args, **kwargs)

    with nn.intercept_methods(keep_statistics):
        output, updates = network.apply(variables, images, train=True, mutable=['batch_stats'])
    return output.layers, updates.get('batch_stats', {})
