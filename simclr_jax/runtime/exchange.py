"""Bytes from every process to all of them, before there is a training step."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(mine: bytes) -> list[bytes]:
    """What each process gives, in the order of the processes; all of them must call this."""
    if jax.process_count() == 1:
        return [mine]
    lengths = np.ravel(multihost_utils.process_allgather(np.array([len(mine)])))
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[:len(mine)] = np.frombuffer(mine, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [rows[process, :length].tobytes() for process, length in enumerate(lengths)]
