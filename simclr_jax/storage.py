"""Every path that is read or written: local, or remote as `gs://`, `s3://` and whatever else fsspec reads.

Local paths take the system's calls directly, so that a data set of small files costs no more than it must.
What object stores are like, and what they lack, is in `buckets`, which is imported where a path is remote.
"""

import atexit
import csv
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

Path = str | os.PathLike


class Entry(NamedTuple):
    """What lies in a directory; a link counts as what it leads to."""

    name: str
    is_dir: bool


class StoreError(Exception):
    """A remote store that does not answer, or refuses.

    No OSError, by which a single image is skipped, and no ValueError, by which a file counts as damaged.
    """


def first_line(error: BaseException, at_most: int = 200) -> str:
    """What another library's error says, as a part of one of our sentences."""
    return (str(error).strip().partition('\n')[0] or type(error).__name__)[:at_most].rstrip('.')


def patience() -> float:
    """Seconds for which a store that does not answer is asked again."""
    return float(os.environ.get('SIMCLR_JAX_PATIENCE', 300))


def is_remote(path: Path) -> bool:
    """Whether a path names a protocol, as `gs://bucket/images` does."""
    return '://' in os.fspath(path)


def as_path(path: Path) -> str:
    """The path as a string, `~` expanded where it is local; ValueError: no path, or a `gs:/` that is not whole."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f'A path was expected, not {path!r}.')
    path = os.fspath(path)
    if is_remote(path):
        if not path.partition('://')[2].strip('/'):
            raise ValueError(f"'{path}' names no bucket: write {path.partition(':')[0]}://BUCKET/PATH.")
        return path.rstrip('/')
    if path.startswith(('gs:/', 's3:/')):
        raise ValueError(f"'{path}' is not a path in a bucket: write {path[:2]}://{path[3:].lstrip('/')}.")
    return os.path.expanduser(path)


def absolute(path: Path) -> str:
    """The same, from the root where it is local."""
    path = as_path(path)
    return path if is_remote(path) else os.path.abspath(path)


def exists(path: Path) -> bool:
    """Whether there is a file or a directory."""
    return _remote(path, 'exists') if is_remote(path) else os.path.exists(path)


def is_dir(path: Path) -> bool:
    """Whether there is a directory."""
    return _remote(path, 'isdir') if is_remote(path) else os.path.isdir(path)


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    return _remote(path, 'isfile') if is_remote(path) else os.path.isfile(path)


def scan(path: Path) -> list[Entry]:
    """What lies in a directory, sorted by name. OSError: it cannot be listed."""
    if is_remote(path):
        found = [entry for entry, _ in scan_sizes(path)]
    else:
        folders, files = names(path)
        found = [Entry(name, True) for name in folders] + [Entry(name, False) for name in files]
    return sorted(found)


def names(path: Path) -> tuple[list[str], list[str]]:
    """The names of the directories, and of the files, that lie in a local directory. OSError as of `scan`."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    return folders, files


def scan_sizes(path: Path) -> list[tuple[Entry, int]]:
    """What lies in a remote directory, with its bytes (0 of a directory): in the same requests as the names."""
    itself = os.fspath(path).partition('://')[2].strip('/')
    return [(Entry(entry['name'].rstrip('/').rsplit('/', 1)[-1], entry['type'] == 'directory'), entry['size'] or 0)
            for entry in _remote(path, 'ls', detail=True) if entry['name'].strip('/') != itself]


def walk_sizes(path: Path) -> dict[str, int]:
    """{path from it: bytes} of all files below a remote directory, without a request for each directory."""
    itself = os.fspath(path).partition('://')[2].strip('/')
    return {name.strip('/')[len(itself) + 1:]: entry['size'] or 0
            for name, entry in _remote(path, 'find', detail=True).items() if not name.endswith('/')}


def size(path: Path) -> int:
    """Bytes of a file. OSError: there is none."""
    return _remote(path, 'size') if is_remote(path) else os.stat(path).st_size


def open_read(path: Path) -> Any:
    """A file to read bytes from, at any place: a context manager. OSError: it cannot be opened."""
    return _remote(path, 'open', 'rb') if is_remote(path) else open(path, 'rb')


def read_bytes(path: Path, start: int = 0, length: int = -1) -> bytes:
    """A file from byte `start` on, all or `length` bytes of it. OSError: it cannot be read."""
    if is_remote(path):
        return _remote(path, 'cat_file', start=start or None, end=None if length < 0 else start + length)
    with open(path, 'rb') as file:
        file.seek(start)
        return file.read(length)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, its directory too: who reads `path` finds what was there before or all of `data`."""
    if is_remote(path):
        _remote(path, 'pipe_file', data)        # an object store shows an object when it is whole
    else:
        write_by(path, lambda file: file.write(data))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, whole or not at all; NaN and None are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([['' if cell is None or cell != cell else cell for cell in row] for row in rows])
    write_atomically(path, text.getvalue().encode())


def write_by(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """The same, of what `write` puts into a file that is open for bytes."""
    if is_remote(path):
        with tempfile.NamedTemporaryFile() as file:
            write(file)         # pyright: ignore[reportArgumentType]
            file.flush()
            upload(file.name, path)
        return
    folder = os.path.dirname(os.fspath(path)) or '.'
    make_dirs(folder)
    unfinished = f'{os.fspath(path)}.{uuid.uuid4().hex[:8]}.unfinished'
    try:
        with open(unfinished, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_dir(folder)
    finally:
        remove(unfinished)


def upload(file: str, path: Path) -> None:
    """Brings a local file to a remote path, in parts where it is large."""
    _remote(path, 'put_file', file)


def append(path: Path, data: bytes) -> None:
    """Adds to the end of a file, which it makes; what two processes add at a time to a bucket's are both kept."""
    if is_remote(path):
        from simclr_jax import buckets
        buckets.append(os.fspath(path), data)
        return
    with open(path, 'ab') as file:
        file.write(data)


def make_dirs(path: Path) -> None:
    """Makes a directory and those above it, where they are missing; buckets have none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def replace(path: Path, target: Path) -> None:
    """Renames a file, or a directory where none stands at `target`; a file that stands there gives way."""
    if is_remote(path):
        for inside in [f'/{file}' for file in walk_sizes(path)] if is_dir(path) else ['']:
            _remote(f'{as_path(path)}{inside}', 'cp_file', f'{as_path(target)}{inside}')
        remove(path)
    else:
        os.replace(path, target)


def remove(path: Path) -> None:
    """Removes a file, or a directory with all in it; nothing there is fine."""
    if is_remote(path):
        if exists(path):
            _remote(path, 'rm', recursive=True)
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


def _remote(path: Path, method: str, *arguments: Any, **keywords: Any) -> Any:
    from simclr_jax import buckets
    return buckets.call(os.fspath(path), method, *arguments, **keywords)


# ---- what only a local disk can do -------------------------------------------------------------------


class _Spool(NamedTuple):
    """A local directory that stands for a remote one."""

    path: str
    published: dict[str, tuple[int, int]]       # path from it -> time and size, as published


_SPOOLS: dict[str, _Spool] = {}


def local_dir(path: Path) -> str:
    """The directory itself; of a remote one a local one in its place, whose files `publish` brings there."""
    if not is_remote(path):
        return os.fspath(path)
    path = as_path(path)
    if path not in _SPOOLS:
        folder = tempfile.mkdtemp(prefix='simclr_jax_')
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _SPOOLS[path] = _Spool(os.path.join(folder, os.path.basename(path)), {})
        os.mkdir(_SPOOLS[path].path)
    return _SPOOLS[path].path


def fetch(path: Path, name: str) -> str:
    """The local path of the file `name` of a directory (see `local_dir`), brought here where it is remote."""
    here = os.path.join(local_dir(path), name)
    if is_remote(path) and not os.path.exists(here):
        there = f'{as_path(path)}/{name}'
        if is_file(there):
            write_atomically(here, read_bytes(there))
    return here


def publish(path: Path, *, last: str = '') -> None:
    """Brings what is new in `local_dir(path)` to `path`, each file whole; a local path has it."""
    spool = _SPOOLS.get(as_path(path)) if is_remote(path) else None
    if spool is None:
        return
    for folder, _, names in os.walk(spool.path, topdown=False):
        for name in sorted(names, key=lambda name: name == last):
            file = os.path.join(folder, name)
            inside, status = os.path.relpath(file, spool.path), os.stat(file)
            state = status.st_mtime_ns, status.st_size
            if spool.published.get(inside) != state:
                upload(file, f'{as_path(path)}/{inside}')
                spool.published[inside] = state


def local_copy(path: Path) -> str:
    """The file or directory itself; of a remote one a copy on this machine, for readers of local files alone."""
    path = as_path(path)
    if not is_remote(path) or not exists(path):
        return path
    folder = tempfile.mkdtemp(prefix='simclr_jax_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    here = os.path.join(folder, os.path.basename(path))
    download(path, here)
    return here


def download(path: str, here: str) -> None:
    """Copies a remote file, or a directory with all in it, to a local path."""
    if not is_dir(path):
        write_atomically(here, read_bytes(path))
        return
    os.makedirs(here, exist_ok=True)
    for entry in scan(path):
        download(f'{path}/{entry.name}', os.path.join(here, entry.name))


def user_cache(name: str) -> str:
    """$XDG_CACHE_HOME/simclr_jax/NAME, or ~/.cache/...; not made."""
    root = os.environ.get('XDG_CACHE_HOME', '')         # a relative one is to be ignored, says the standard
    root = root if os.path.isabs(root) else os.path.join(os.path.expanduser('~'), '.cache')
    return os.path.join(root, 'simclr_jax', name)


def check_local_workdir(path: Path, *, is_written: bool = True) -> None:
    """That a local path can be the directory of a run; nothing is made. ValueError, OSError: it cannot.

    is_written: False for what only reads there, and writes elsewhere.
    """
    if not os.fspath(path):
        raise ValueError('--workdir is empty: give the directory of the run, such as runs/mine.')
    if is_remote(path):
        return
    above = os.path.abspath(path)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise NotADirectoryError(f"--workdir={path} cannot be the directory of a run: '{above}' is a file, or a link "
                                 'that leads to no directory.')
    if is_written and not os.access(above, os.W_OK | os.X_OK):
        if above == os.path.abspath(path):
            raise PermissionError(f"--workdir={path} may not be written to: give another; a task finds the run in this "
                                  f"one by its field, such as --config.linear.pretrained={path}.")
        raise PermissionError(f"--workdir={path} cannot be made: '{above}' may not be written to.")


def check_workdir(path: Path) -> None:
    """That files can be written below a path and removed again, before hours of work depend on it.

    Raises:
        ValueError, OSError: see `check_local_workdir`.
        StoreError, ValueError: the scheme is none of a bucket, a package or credentials are missing, there
            is no such bucket, or it must not be written to: one sentence.
    """
    check_local_workdir(path)
    if is_remote(path):
        from simclr_jax import buckets
        buckets.check_writable(as_path(path))
