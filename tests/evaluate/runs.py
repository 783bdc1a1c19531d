"""A small pretraining run, and configs that evaluate it."""

import jax
import numpy as np

from simclr_jax.config import base_config, smoke
from simclr_jax.evaluate.pretrained import as_imported
from simclr_jax.weights.tensors import write_flax


def small_config(**data):
    config = smoke(base_config())
    config.num_train_steps = 2
    config.schedule.warmup_epochs = 0.0
    config.encoder.name = 'tests.encoders:OneBlock'
    for name in ('jitter', 'grey', 'blur'):         # seconds of compilation
        config.augment[name].probability = 0.0
    config.augment.image_size = 16
    config.augment.mean = (0.4, 0.5, 0.6)
    config.optimizer.learning_rate = 0.1
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]', **data})
    config.linear.num_epochs = 3.0
    return config


def task_config(task, workdir, **settings):
    """A config that says other things of data and preprocessing than the run in `workdir`."""
    config = base_config()
    config.task, config.data.source, config.data.train_split = task, '', ''
    config[task].update({'pretrained': workdir, **settings})
    return config


def overflowing(pretrained, directory):
    """The path of a file of an encoder whose features, sums over pixels, are not finite, though all weights are."""
    path = str(directory / 'overflowing.safetensors')
    write_flax(path, as_imported(pretrained, variables=jax.tree.map_with_path(
        lambda path, leaf: np.full_like(leaf, 3e38) if 'norm2' in str(path) and 'bias' in str(path) else leaf,
        pretrained.variables)))
    return path
