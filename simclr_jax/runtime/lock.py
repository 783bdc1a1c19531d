"""One run in a workdir: the second one is refused."""

import os


class WorkdirLock:
    """A lock on workdir/.lock, which the system lets go of when the process ends, however it ends.

    A context manager, once acquired. The lead process alone takes it; where the system or its file system
    knows no locks there is none.
    """

    def __init__(self, workdir: str, *, is_lead: bool):
        self._workdir, self._is_lead, self._file = workdir, is_lead, None

    def acquire(self) -> None:
        """Takes the lock, and makes the workdir; a second call does nothing. ValueError: a run has it."""
        if self._file or not self._is_lead:
            return
        try:
            import fcntl
        except ImportError:                 # Windows
            return
        os.makedirs(self._workdir, exist_ok=True)
        file = open(os.path.join(self._workdir, '.lock'), 'a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            process = file.read().strip() or 'unknown'
            file.close()
            raise ValueError(f'Another run is using {self._workdir} (process {process}): wait for it, or give '
                             'another --workdir.') from None
        except OSError:                     # a file system without locks
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def __enter__(self) -> 'WorkdirLock':
        return self

    def __exit__(self, *exception) -> None:
        if self._file:
            self._file.close()
            self._file = None
