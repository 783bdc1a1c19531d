"""Which example stands at which position of the endless shuffled stream."""

import functools

import numpy as np


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
