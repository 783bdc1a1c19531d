"""Memory that a process has freed, kept for its next step (Linux with glibc), and memory that ran out."""

import contextlib
import ctypes
import glob
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from simclr_jax.storage import first_line

if TYPE_CHECKING:           # what keeps memory comes before jax
    import jax

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


@contextlib.contextmanager
def naming_needs(compiled: 'Callable[[], jax.stages.Compiled]') -> Iterator[None]:
    """Adds to an error of memory inside of it what the program of `compiled` needs, where it does compile."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        try:
            needs = compiled().memory_analysis()
            assert needs is not None
            gib = (needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
                   - needs.alias_size_in_bytes) / 2**30
        except Exception:           # whatever it is: the first error is the one to tell of
            raise error from None
        raise MemoryError(f'{first_line(error)}; a step needs {gib:,.1f} GiB of a device, by its '
                          'program') from error


def out_of_memory(error: BaseException, *, batch_size: int, task: str) -> str:
    """One sentence for an error that `is_out_of_memory`: what ran out, and the fields that help."""
    if task == 'pretrain':
        fields = ('batch_size; or encoder_chunks=4 (the batch in parts, the same loss), encoder.remat=True (less '
                  'memory, more time), or shard_state=True on several devices; --config.task=plan predicts what fits '
                  'without a run')
    else:
        fields = 'eval.batch_size and the batch_size of the task'
    return f'Out of memory with batch_size {batch_size} ({first_line(error, 400)}). Lower {fields}.'
