"""An evaluator of your own: what it measures of the encoder during training stands in the log.

    python examples/evaluator.py WORKDIR

In a config: `eval.evaluators = ('examples.evaluator:shift_similarity',)`, and eval.evaluators_every_epochs.
"""

import sys

import jax.numpy as jnp
import numpy as np

import simclr_jax

IMAGES = np.random.default_rng(0).random((16, 32, 32, 3), np.float32)


def shift_similarity(encode, step):
    """The mean cosine between the features of an image and of the same image, shifted by four pixels."""
    first, second = encode(IMAGES), encode(np.roll(IMAGES, 4, axis=2))          # [16, D] each
    lengths = jnp.linalg.norm(first, axis=1) * jnp.linalg.norm(second, axis=1)
    return {'shift_similarity': ((first * second).sum(1) / lengths).mean()}


shift_similarity.every_epochs = 0.25        # optional; else eval.evaluators_every_epochs


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps = 4
    simclr_jax.pretrain(config, sys.argv[1], evaluators=[shift_similarity])
