"""Memory that a process has freed, kept for its next step (Linux with glibc), and memory that ran out."""

import ctypes
import glob
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8       # of glibc's malloc.h
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel*', '/dev/vfio/[0-9]*', '/dev/kfd')


def keep_freed_memory() -> bool:
    """Has malloc keep what is freed; to be called before jax starts its threads. Whether it does now.

    XLA's temporaries of a step on a CPU are one large block, which otherwise goes back to the system after
    every step and comes back a page fault at a time. Costs resident memory: about the block itself. Where
    there is an accelerator, the blocks lie there, and nothing is changed.
    """
    if sys.platform != 'linux' or any(glob.glob(pattern) for pattern in _ACCELERATORS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):           # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
                and mallopt(_M_ARENA_MAX, 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or XLA's, of a device or of the host."""
    if isinstance(error, OSError):      # of a disk
        return False
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ('RESOURCE_EXHAUSTED', 'Out of memory'))


def out_of_memory(error: BaseException, *, batch_size: int, task: str) -> str:
    """One sentence for an error that `is_out_of_memory`: what ran out, and the fields that help."""
    first = str(error).strip().partition('\n')[0][:200]
    if task == 'pretrain':
        fields = ('batch_size; or encoder_chunks=4 (the batch in parts, the same loss), encoder.remat=True (less '
                  'memory, more time), or shard_state=True on several devices; --config.task=plan predicts what fits '
                  'without a run')
    else:
        fields = 'eval.batch_size and the batch_size of the task'
    return f'Out of memory with batch_size {batch_size} ({first or "MemoryError"}). Lower {fields}.'
