"""A view of your own: a function (image [S, S, 3] float32 in [0, 1], key) -> image, after the ten operations.

    python examples/view.py WORKDIR

In a config: `augment.extra = ('examples.view:posterize',)`.
"""

import sys

import jax
import jax.numpy as jnp

import simclr_jax
from simclr_jax.views.fields import Crop, Flip, Jitter, View


def posterize(image, key):
    """Keeps 2 to 6 levels of each colour, in half of the views."""
    runs_key, levels_key = jax.random.split(key)
    levels = jax.random.randint(levels_key, (), 2, 7) - 1
    return jnp.where(jax.random.bernoulli(runs_key), jnp.round(image * levels) / levels, image)


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.augment.image_size = 4, 16
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    config.augment.extra = ('examples.view:posterize',)
    results = simclr_jax.pretrain(config, sys.argv[1])
    print(f'linear probe: {results["pretrained"]["linear_accuracy"]:.2f}')
    # The same outside of a run: a view of an image is a pure function of (image, key).
    view = View(crop=Crop(1.0, area=(0.2, 1.0)), flip=Flip(0.5), jitter=Jitter(0.8), extra=(posterize,))
    image = simclr_jax.augment(jnp.zeros((20, 30, 3)), jax.random.key(0), view, image_size=16)
    print(f'a view: {image.shape} {image.dtype}')
