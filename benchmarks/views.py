"""Views outside of the trainer beside the trainer's own: python benchmarks/views.py [IMAGE_SIZE]

Milliseconds of processor time for the two views of an image, medians of rounds in which all take turns.
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import simclr_jax
from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.batches import Inputs
from simclr_jax.views.device import augment, over_batch

COUNT, ROUNDS = 16, 15


def contenders(size):
    """{name: function of a round's number}."""
    everything = np.random.default_rng(0).integers(0, 256, (8 * COUNT, size * 8 // 7, size * 8 // 7, 3), np.uint8)
    view, mesh, images = simclr_jax.View.simclr(), simclr_jax.make_mesh(), everything[:COUNT]
    inputs = Inputs('memory', view, view, size, 0, COUNT)
    source = ArraySource('drawn', 'train', everything, np.zeros(len(everything), np.int32), None)
    batches = inputs.batches(source, mesh)
    prepare = jax.jit(inputs.make_prepare(mesh))
    at_once = over_batch(functools.partial(augment, view=view, image_size=size))

    @jax.jit
    def all_at_once(images, key):
        keys = jax.random.split(key, (2, COUNT))
        return at_once(jnp.asarray(images), keys[0]), at_once(jnp.asarray(images), keys[1])

    return {'trainer': lambda number: prepare(next(batches), jnp.int32(number)),     # of the batch of this step
            'simclr_views': lambda number: simclr_jax.simclr_views(images, jax.random.key(number),
                                                                   image_size=size),
            'all images at once': lambda number: all_at_once(images, jax.random.key(number))}


def main():
    functions, times = contenders(int(sys.argv[1]) if sys.argv[1:] else 224), {}
    for number in range(ROUNDS + 1):                # the first compiles
        for name, function in functions.items():
            start = time.process_time()
            jax.block_until_ready(function(number))
            times.setdefault(name, []).append(1e3 * (time.process_time() - start) / COUNT)
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, median in medians.items():
        print(f'{name:20} {median:7.2f} ms an image, x {median / medians["trainer"]:.2f} of the trainer\'s')


if __name__ == '__main__':
    main()
