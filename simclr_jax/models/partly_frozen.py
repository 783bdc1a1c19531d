"""A training pass in which some modules stay as they are: for fine-tuning from a stage on."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from simclr_jax.models.network import Network, forward_train
from simclr_jax.models.norm import BatchNorm


def apply_partly_frozen(network: Network, variables: Any, images: jax.Array, *,
                        is_frozen: Callable[[str, str], bool], key: jax.Array | None = None
                        ) -> tuple[tuple[jax.Array, ...], Any]:
    """One pass in training mode over images [B, H, W, 3]: (layers, new batch_stats).

    BatchNorms of frozen modules, ours and flax's, use their running statistics and leave them alone, as the
    official code's do (tf2/resnet.py: a Keras BatchNorm that is not trainable); the others use the batch's.
    An encoder that is frozen as a whole is run as in evaluation.

    Args:
        is_frozen: of a part of the network and a module in it: ('encoder', 'stage1_block1').
        key: of what the encoder draws, such as dropout.

    Returns:
        `Output.layers`, h first, and the whole collection 'batch_stats'.
    """
    def keep_statistics(call, args, kwargs, context):
        module = context.module
        # The copy below is intercepted too; it stands alone, and so has no path.
        if not (isinstance(module, BatchNorm | nn.BatchNorm) and context.method_name == '__call__'
                and len(module.path) > 1 and is_frozen(*module.path[:2])):
            return call(*args, **kwargs)
        fixed = module.clone(use_running_average=True, parent=None)
        kwargs = {name: value for name, value in kwargs.items() if name != 'use_running_average'}
        return fixed.apply(dict(module.variables), *args, **kwargs)

    params, batch_stats = variables['params'], variables['batch_stats']
    with nn.intercept_methods(keep_statistics):
        if not all(is_frozen('encoder', name) for name in params.get('encoder', {})):
            output, batch_stats = forward_train(network, params, batch_stats, images, key=key)
            return output.layers, batch_stats
        features = network.apply(variables, images, train=False, method='encode')
        output, updates = network.apply(variables, features, train=True, method='project',
                                        mutable=['batch_stats'])
        return output.layers, batch_stats | updates.get('batch_stats', {})
