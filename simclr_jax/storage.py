"""Every path that is read or written: local, or remote as `gs://`, `s3://` and whatever else fsspec reaches.

Local paths take the system's calls directly, so that a data set of small files costs no more than it must.
"""

import os
import shutil
import uuid
from typing import Any, NamedTuple

Path = str | os.PathLike


class Entry(NamedTuple):
    """What lies in a directory; a link counts as what it leads to."""

    name: str
    is_dir: bool


def is_remote(path: Path) -> bool:
    """Whether a path names a protocol, as `gs://bucket/images` does."""
    return '://' in os.fspath(path)


def as_path(path: Path) -> str:
    """The path as a string, `~` expanded where it is local."""
    path = os.fspath(path)
    return path if is_remote(path) else os.path.expanduser(path)


def exists(path: Path) -> bool:
    """Whether there is a file or a directory."""
    return _remote(path).exists(path) if is_remote(path) else os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Whether there is a directory."""
    return _remote(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def scan(path: Path) -> list[Entry]:
    """What lies in a directory, sorted by name. OSError: it cannot be listed."""
    if is_remote(path):
        found = [Entry(entry['name'].rstrip('/').rsplit('/', 1)[-1], entry['type'] == 'directory')
                 for entry in _remote(path).ls(path, detail=True)]
    else:
        with os.scandir(path) as entries:
            found = [Entry(entry.name, entry.is_dir()) for entry in entries]
    return sorted(found)


def size(path: Path) -> int:
    """Bytes of a file. OSError: there is none."""
    return _remote(path).size(path) if is_remote(path) else os.stat(path).st_size


def open_read(path: Path) -> Any:
    """A file to read bytes from, at any place: a context manager. OSError: it cannot be opened."""
    return _remote(path).open(path, 'rb') if is_remote(path) else open(path, 'rb')


def read_bytes(path: Path, start: int = 0, length: int = -1) -> bytes:
    """A file from byte `start` on, all or `length` bytes of it. OSError: it cannot be read."""
    if is_remote(path):
        return _remote(path).cat_file(path, start, None if length < 0 else start + length)
    with open(path, 'rb') as file:
        file.seek(start)
        return file.read(length)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, its directory too: who reads `path` finds what was there before or all of `data`."""
    if is_remote(path):
        _remote(path).pipe_file(path, data)     # an object store shows an object when it is whole
        return
    folder = os.path.dirname(os.fspath(path)) or '.'
    make_dirs(folder)
    unfinished = f'{os.fspath(path)}.{uuid.uuid4().hex[:8]}.unfinished'
    try:
        with open(unfinished, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_dir(folder)
    finally:
        remove(unfinished)


def make_dirs(path: Path) -> None:
    """Makes a directory and those above it, where they are missing."""
    _remote(path).makedirs(path, exist_ok=True) if is_remote(path) else os.makedirs(path, exist_ok=True)


def replace(path: Path, target: Path) -> None:
    """Renames a file; one that stands at `target` gives way."""
    if is_remote(path):
        _remote(path).mv(path, target)
    else:
        os.replace(path, target)


def remove(path: Path) -> None:
    """Removes a file, or a directory with all in it; nothing there is fine."""
    if is_remote(path):
        if exists(path):
            _remote(path).rm(path, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def sync_dir(path: Path) -> None:
    """Sees to it that new names in a local directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remote(path: Path) -> Any:
    """The file system of a remote path. OSError: its package is not installed, or there is no such one."""
    import fsspec

    protocol = os.fspath(path).split('://')[0]
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:        # its words name the package
        raise OSError(f"'{os.fspath(path)}' needs a package that is not installed: {error}.") from error
    except ValueError as error:
        raise OSError(f"'{os.fspath(path)}': no file system is called '{protocol}' (gs, s3, az, hf, ... "
                      'are).') from error
