"""Which example stands at which position of the endless shuffled stream; and batches as memory.

numpy alone. What becomes of the images of a data set in memory happens on the device (see `data.batches`).
"""

import collections
import functools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from simclr_jax.data.source import Source

Batch = dict[str, np.ndarray]
_ALIGNMENT = 64     # bytes


def epoch_and_index(seed: int, positions: np.ndarray, num_examples: int
                    ) -> tuple[np.ndarray, np.ndarray]:
    """Maps positions of the stream to (epoch, example): a new permutation in every epoch.

    Args:
        seed: 0 or greater.
        positions: int64 [n], position p = step * batch size + row; epoch, r = divmod(p, N).
        num_examples: N.

    Returns:
        epoch int64 [n], and index int64 [n], element r of the epoch's permutation of N.
    """
    epoch, rank = np.divmod(np.asarray(positions, np.int64), num_examples)
    index = np.empty_like(rank)
    for value in np.unique(epoch):
        rows = epoch == value
        index[rows] = permutation(seed, int(value), num_examples)[rank[rows]]
    return epoch, index


@functools.lru_cache(maxsize=4)  # A batch seldom spans more than two epochs.
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch: the examples 0 .. N-1 as int64 [N], read-only."""
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    shuffled = np.random.Generator(philox).permutation(num_examples)
    shuffled.flags.writeable = False
    return shuffled


def check_batch_size(source: Source, batch_size: int, shard_count: int = 1, *, field: str = 'batch_size'
                     ) -> None:
    """ValueError, which names `field`, unless a training batch fits the data and the shards can share it."""
    if batch_size > source.num_examples:
        raise ValueError(f'{field} is {batch_size}, but {source.name}, split {source.split}, '
                         f'has only {source.num_examples} images: choose a smaller batch.')
    if batch_size % shard_count:
        raise ValueError(f'{field} is {batch_size}, which {shard_count} processes cannot share '
                         'evenly: choose a multiple.')


def train_rows(source: Source, *, seed: int, batch_size: int, start_step: int = 0,
                  shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
    """Endless batches of {'image': uint8 [b, H, W, C], 'label', 'epoch', 'index': int32 [b]}.

    Arguments, order and errors are those of `pipeline.train_batches`.
    """
    check_batch_size(source, batch_size, shard_count)
    local = batch_size // shard_count
    for step in range(start_step, 1 << 62):
        first = step * batch_size + shard_index * local
        epoch, index = epoch_and_index(seed, np.arange(first, first + local), source.num_examples)
        yield {'image': source.images[index], 'label': source.labels[index],
               'epoch': epoch.astype(np.int32), 'index': index.astype(np.int32)}


def eval_rows(source: Source, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
                 ) -> Iterator[Batch]:
    """One pass over every example in order.

    Batches of {'image': uint8 [b, H, W, C], 'label': int32 [b], 'valid': bool [b]}.
    batch_size: local, b. Equally many batches for every shard: 'valid' is False for padding.
    """
    for first in range(0, source.num_examples, batch_size * shard_count):
        rows = first + shard_index * batch_size + np.arange(batch_size)
        valid = rows < source.num_examples
        index = np.where(valid, rows, 0)
        yield {'image': source.images[index], 'label': np.where(valid, source.labels[index], -1),
               'valid': valid}


class Memory:
    """Makes arrays in the memory of arrays that are gone: fresh memory costs a fault of every page.

    They begin at multiples of 64 bytes, so that TensorFlow and JAX take them without a copy.
    """

    def __init__(self):
        self._free = collections.defaultdict(list)      # by size

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that holds anything; from one thread."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        # No array below: numpy would let parts of an array outlive it and hold that instead.
        memory = free.pop() if free else bytearray(size + _ALIGNMENT)
        offset = -np.frombuffer(memory, np.uint8).ctypes.data % _ALIGNMENT
        array = np.ndarray(shape, dtype, memory, offset)
        weakref.finalize(array, free.append, memory).atexit = False
        return array
