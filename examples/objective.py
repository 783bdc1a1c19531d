"""An objective of your own: (z1, z2) -> (scalar, metrics). Here Wang & Isola 2020, arXiv:2005.10242.

    python examples/objective.py WORKDIR

In a config: `method.loss = 'examples.objective:align_uniform'`. It is given those fields of
the method's block that it names, such as `temperature` or `normalize`, and the `mesh`.
"""

import sys

import jax.numpy as jnp

import simclr_jax


def align_uniform(z1, z2, *, temperature):
    z1, z2 = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    alignment = jnp.square(z1 - z2).sum(1).mean()
    distances = 2 - 2 * z1 @ z1.T
    others = ~jnp.eye(len(z1), dtype=bool)
    uniformity = jnp.log(jnp.mean(jnp.exp(-distances / temperature), where=others))
    return alignment + uniformity, {'alignment': alignment, 'uniformity': uniformity}


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.method.update({'loss': 'examples.objective:align_uniform', 'temperature': 0.5})
    config.num_train_steps, config.augment.image_size = 4, 16
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    simclr_jax.pretrain(config, sys.argv[1])
