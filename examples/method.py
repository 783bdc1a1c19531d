"""A method of your own: three pure functions. Here Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230).

    python examples/method.py WORKDIR

In a config: `config.method = ConfigDict({'name': 'examples.method:barlow_twins', 'redundancy': 0.005})`.
"""

import functools
import sys

import jax.numpy as jnp

import simclr_jax
from simclr_jax.methods import Method
from simclr_jax.methods.parts import interleave_views, split_views, with_probe
from simclr_jax.models.network import forward_train, init_variables


def barlow_twins(network, *, num_train_steps, mesh, redundancy=0.005):
    def init(key, images):
        variables = init_variables(network, key, images)
        return variables['params'], variables['batch_stats'], ()

    def loss(params, batch_stats, method_state, batch, key):
        images = interleave_views(batch['view1'], batch['view2'])
        output, stats = forward_train(network, params, batch_stats, images, key=key, num_devices=mesh.size)
        z1, z2 = ((z - z.mean(0)) / z.std(0) for z in split_views(output.projection))
        off = jnp.square(z1.T @ z2 / len(z1) - jnp.eye(z1.shape[1]))      # [D, D]
        twins = jnp.trace(off) + redundancy * (off.sum() - jnp.trace(off))
        return with_probe(twins, {'twins_loss': twins}, output, batch['label'], stats)

    return Method(init, loss, after_update=lambda method_state, params, aux, step: method_state)


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.augment.image_size = 4, 16
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    simclr_jax.pretrain(config, sys.argv[1], method=functools.partial(barlow_twins, redundancy=0.01))
