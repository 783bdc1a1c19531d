"""A method of your own: three pure functions. Here TiCo (Zhu et al. 2022, arXiv:2206.10698) with one network.

    python examples/method.py WORKDIR

In a config: `config.method = ConfigDict({'name': 'examples.method:tico', 'covariance': 8.0})`.
"""

import functools
import sys

import jax
import jax.numpy as jnp

import simclr_jax
from simclr_jax.methods.parts import one_network, split_views
from simclr_jax.objectives.parts import l2_normalize


def tico(network, *, num_train_steps, mesh, covariance=8.0, momentum=0.9):
    def compare(output, labels, method_state):
        z1, z2 = split_views(l2_normalize(output.projection))                   # [N, D] each
        kept = momentum * method_state + (1 - momentum) * z1.T @ z1 / len(z1)   # [D, D], a moving average
        agreement, spread = (z1 * z2).sum(1).mean(), ((z1 @ kept) * z1).sum(1).mean()
        loss = 1 - agreement + covariance * spread
        return loss, {'agreement': agreement, 'spread': spread}, jax.lax.stop_gradient(kept)

    def init(key, images):
        params, batch_stats, _ = method.init(key, images)
        return params, batch_stats, jnp.zeros([network.head.out_dim] * 2)       # saved and resumed with the rest

    method = one_network(network, compare, each_view=True, mesh=mesh)
    return method._replace(init=init, after_update=lambda method_state, params, aux, step: aux.carry)


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.augment.image_size = 4, 16
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    simclr_jax.pretrain(config, sys.argv[1], method=functools.partial(tico, covariance=20.0))
