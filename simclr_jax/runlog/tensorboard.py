"""TensorBoard events, by tensorboardX: neither tensorflow nor tensorboard is needed to write them."""

import os
import sys
import threading
import time
from typing import Any

from simclr_jax import storage


class TensorBoard:
    """Scalars and images as events in workdir/tensorboard.

    A new file begins with a session start, which makes TensorBoard forget what earlier files say of the
    steps after `start_step`. ImportError without tensorboardX.
    """

    def __init__(self, workdir: str | os.PathLike, *, start_step: int = 0, config: Any = None):
        del config      # which events do not hold
        self._step = start_step
        before = set(threading.enumerate())
        # TensorBoard reads a directory's files in the order of their names, which hold whole seconds.
        self._events: Any = _summary_writer()(
            os.path.join(storage.local_dir(workdir), 'tensorboard'), purge_step=start_step + 1 if start_step else 0,
            flush_secs=10, filename_suffix=f'.{time.time_ns()}.{os.getpid()}',
            max_queue=0)        # of any length: when the thread that writes has failed, nothing waits for it
        self._threads, self._error = set(threading.enumerate()) - before, None
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self._error:
            raise OSError(f'no events can be written: {self._error}')
        self._step = step
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def note(self, text: str) -> None:
        """Notes are for log.txt."""

    def image(self, name: str, array: Any) -> None:
        self._events.add_image(name, array, self._step, dataformats='HWC')

    def close(self) -> None:
        if threading.excepthook == self._thread_failed:
            threading.excepthook = self._hook
        try:
            self._events.close()
        except OSError:
            self._events.file_writer.event_writer._closed = True    # or it tries again at exit, with a traceback
            raise

    def _thread_failed(self, failure: Any) -> None:
        if failure.thread in self._threads:
            self._error = failure.exc_value
        else:
            self._hook(failure)


def _summary_writer() -> type:
    # tensorboardX imports these where they are installed: seconds of every start, for what it is not asked here.
    hidden = {'torch', 'boto3', 'google.cloud.storage'} - sys.modules.keys()
    for name in hidden:
        sys.modules[name] = None     # pyright: ignore[reportArgumentType]: Python takes it for "not there"
    try:
        from tensorboardX import SummaryWriter
    finally:
        for name in hidden:
            del sys.modules[name]
    return SummaryWriter
