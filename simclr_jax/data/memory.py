"""Batches of a data set that lies in memory as one array: rows of it and no more, in numpy.

What becomes of the images happens on the device (see `simclr_jax.data.batches`). Needs no tensorflow.
"""

from typing import Iterator

import numpy as np

from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.source import Source
from simclr_jax.data.order import epoch_and_index


def check_batch_size(source: Source, batch_size: int, shard_count: int = 1, *, field: str = 'batch_size') -> None:
    """ValueError, which names `field`, unless a training batch fits the data and the shards can share it."""
    if batch_size > source.num_examples:
        raise ValueError(f'{field} is {batch_size}, but {source.name}, split {source.split}, '
                         f'has only {source.num_examples} images: choose a smaller batch.')
    if batch_size % shard_count:
        raise ValueError(f'{field} is {batch_size}, which {shard_count} processes cannot share '
                         'evenly: choose a multiple.')


def train_batches(source: ArraySource, *, seed: int, batch_size: int, start_step: int = 0,
                  shard_index: int = 0, shard_count: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of {'image': uint8 [b, H, W, 3], 'label', 'epoch', 'index': int32 [b]}.

    Arguments, order and errors are those of `pipeline.train_batches`.
    """
    check_batch_size(source, batch_size, shard_count)
    local = batch_size // shard_count
    for step in range(start_step, 1 << 62):
        first = step * batch_size + shard_index * local
        epoch, index = epoch_and_index(seed, np.arange(first, first + local), source.num_examples)
        yield {'image': source.images[index], 'label': source.labels[index],
               'epoch': epoch.astype(np.int32), 'index': index.astype(np.int32)}


def eval_batches(source: ArraySource, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
                 ) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example in order.

    Batches of {'image': uint8 [b, H, W, 3], 'label': int32 [b], 'valid': bool [b]}.
    batch_size: local, b. Equally many batches for every shard: 'valid' is False for padding.
    """
    for first in range(0, source.num_examples, batch_size * shard_count):
        rows = first + shard_index * batch_size + np.arange(batch_size)
        valid = rows < source.num_examples
        index = np.where(valid, rows, 0)
        yield {'image': source.images[index], 'label': np.where(valid, source.labels[index], -1),
               'valid': valid}
