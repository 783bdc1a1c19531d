"""One run in a workdir: the second one is refused."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid

from simclr_jax import buckets, storage

RENEWED, DEAD = 20.0, 60.0        # seconds: how often a bucket's lock is, and without which nobody holds it

_HELD: set[str] = set()             # the ids of the locks in buckets that this process holds


class WorkdirLock:
    """A lock on workdir/.lock, which is let go of when the process ends, however it ends.

    On a disk by the system. In a bucket it is an object that only one process can make, and that its process
    renews every 20 s: one whose process is gone from this host, or that is not renewed for 60 s, is taken over.

    A context manager, once acquired. The lead process alone takes it; where the system or its file system
    knows no locks there is none.
    """

    def __init__(self, workdir: str, *, is_lead: bool):
        self._workdir, self._is_lead, self._held = workdir, is_lead, None

    def acquire(self) -> None:
        """Takes the lock, and makes the workdir; a second call does nothing. ValueError: a run has it."""
        if self._held or not self._is_lead:
            return
        self._held = _Remote(self._workdir) if storage.is_remote(self._workdir) else _local(self._workdir)

    def check(self) -> None:
        """ValueError if another run has taken a lock in a bucket over, while this one was stopped or cut off."""
        if isinstance(self._held, _Remote) and self._held.is_lost:
            raise ValueError(f'Another run has taken over {self._workdir}, because this one did not renew its lock '
                             f'for {DEAD:.0f} s: this one ends.')

    def __enter__(self) -> 'WorkdirLock':
        return self

    def __exit__(self, *exception) -> None:
        if self._held:
            self._held.close()
            self._held = None


def _refuse(workdir: str, process: str, fix: str = '') -> ValueError:
    return ValueError(f'Another run is using {workdir} (process {process}): wait for it, or give another --workdir.'
                      + fix)


def _local(workdir: str):
    """The file that is locked, open; None where there are no locks. ValueError: a run has it."""
    try:
        import fcntl
    except ImportError:                 # Windows
        return None
    storage.make_dirs(workdir)
    file = open(os.path.join(workdir, '.lock'), 'a+')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        process = file.read().strip() or 'unknown'
        file.close()
        raise _refuse(workdir, process) from None
    except OSError:                     # a file system without locks
        pass
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


class _Remote:
    """The lock as an object, which a thread renews."""

    def __init__(self, workdir: str):
        self._path = f'{workdir}/.lock'
        self.is_lost = False
        self._id, self._left = uuid.uuid4().hex, threading.Event()
        for _ in range(3):
            known = buckets.version(self._path)
            if known:
                known = self._abandoned(workdir, known)
            with contextlib.suppress(FileExistsError):      # another one was faster
                buckets.write_if(self._path, self._content(), known)
                break
        else:
            raise _refuse(workdir, 'unknown')
        _HELD.add(self._id)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the renewal, and removes the object if it is still this process's."""
        self._left.set()
        _HELD.discard(self._id)
        self._thread.join(timeout=5.0)
        with contextlib.suppress(storage.StoreError, OSError, ValueError):
            if self._is_mine():
                storage.remove(self._path)

    def _is_mine(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return json.loads(storage.read_bytes(self._path)).get('id') == self._id
        return True             # a user has removed it

    def _content(self) -> bytes:
        return json.dumps({'host': socket.gethostname(), 'process': os.getpid(), 'id': self._id,
                           'renewed': round(time.time(), 1)}).encode()

    def _abandoned(self, workdir: str, known: str) -> str:
        """The version of a lock that nobody holds; ValueError: it is held. Waits to see which."""
        try:
            holder = json.loads(storage.read_bytes(self._path))
        except FileNotFoundError:
            return ''
        except ValueError:
            holder = {}
        is_here, ends = holder.get('host') == socket.gethostname(), time.monotonic() + DEAD
        if is_here and (holder.get('id') not in _HELD if holder.get('process') == os.getpid()
                        else not _is_running(holder.get('process', 0))):
            return known
        while not is_here and time.monotonic() < ends:
            time.sleep(RENEWED / 10)
            now = buckets.version(self._path)
            if now != known:
                is_here = bool(now)
                if not now:
                    return ''
        if not is_here:
            return known
        raise _refuse(workdir, f'{holder.get("process", "unknown")} on {holder.get("host", "an unknown host")}',
                      f' If it is gone, remove {self._path}.')

    def _renew(self) -> None:
        while not self._left.wait(RENEWED):
            with contextlib.suppress(storage.StoreError, OSError):      # the store is away: the run waits by itself
                if not self._is_mine():
                    self.is_lost = True
                    return
                storage.write_atomically(self._path, self._content())


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return process > 0
