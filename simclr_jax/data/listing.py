"""What lies below a directory: a local one is asked of the system, once while a source is made; a remote one is kept.

A bucket gives a thousand names for a request. Its directories are listed by threads, on several hosts each a
share of them, and every part of a folder source then looks into the same list, sizes included.
"""

import contextlib
import contextvars
import functools
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NamedTuple

from absl import logging

from simclr_jax import storage

KEPT_FROM = 10_000      # files: listing fewer takes seconds, and what is new among them is seen at the next start
_FRESH = 60.0           # seconds for which a process looks no second time
_FEW, _THREADS = 4, 16         # directories, below which their own are shared out; that are listed at a time


class Share(NamedTuple):
    """Which part of a work that all processes do in common is this one's."""

    index: int
    count: int
    gather: Callable[[bytes], list[bytes]]      # what each process gives, to all, in their order


class Names(NamedTuple):
    """What lies in a directory, sorted; a link counts as what it leads to."""

    folders: list[str]
    files: list[str]


class Listing(NamedTuple):
    """All files below a remote directory."""

    root: str
    sizes: dict[str, int]                       # path from the root -> bytes
    folders: dict[str, Names]                   # path of a directory from the root, '' itself -> what lies there
    when: float                                 # seconds since the epoch
    kept: str                                   # the file it was read from or written to; '' for none


_LISTINGS: dict[str, Listing] = {}
# Within `once`: path of a local directory -> names of folders and of files, joined: a tenth of the memory of a list.
_SEEN = contextvars.ContextVar[dict[str, list[str]] | None]('seen', default=None)


def read(root: str, share: Share | None = None) -> list[str]:
    """Lists a directory, or takes the list that is kept; returns notes. A local directory needs none."""
    if not storage.is_remote(root):
        return []
    listing = _LISTINGS.get(root)
    if listing is None or time.time() - listing.when > _FRESH and not listing.kept:
        listing = _LISTINGS[root] = _read(root, share)
    if not listing.kept:
        return []
    day = time.strftime('%Y-%m-%d %H:%M', time.localtime(listing.when))
    return [f'{root}: {len(listing.sizes):,} files, as listed on {day}; to list them again, remove {listing.kept}.']


def forget() -> None:
    """Has the next `read` look again."""
    _LISTINGS.clear()


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Within it a local directory is asked of the system once, however often it is looked into."""
    token = _SEEN.set({}) if _SEEN.get() is None else None
    try:
        yield
    finally:
        if token:
            _SEEN.reset(token)


def names(path: str) -> Names:
    """What lies in a directory. OSError: it cannot be listed."""
    found = _find(path)
    if found is None:
        seen = _SEEN.get()
        if seen is None:
            return Names(*map(sorted, storage.names(path)))
        if path not in seen:
            seen[path] = ['\0'.join(sorted(some)) for some in storage.names(path)]
        return Names(*(joined.split('\0') if joined else [] for joined in seen[path]))
    listing, inside = found
    if inside not in listing.folders:
        raise FileNotFoundError(f"There is no directory '{path}'.")
    return listing.folders[inside]


def is_dir(path: str) -> bool:
    """As `storage.is_dir`."""
    found = _find(path)
    return storage.is_dir(path) if found is None else found[1] in found[0].folders


def size(path: str) -> int:
    """As `storage.size`."""
    found = _find(path)
    return storage.size(path) if found is None else found[0].sizes[found[1]]


def _find(path: str) -> tuple[Listing, str] | None:
    """The listing that covers a path, and the path from its root."""
    if not storage.is_remote(path):
        return None
    for root, listing in _LISTINGS.items():
        if path == root or path.startswith(f'{root}/'):
            return listing, path[len(root):].strip('/')
    return None


def _read(root: str, share: Share | None) -> Listing:
    file = os.path.join(storage.user_cache('listings'), f'{hashlib.sha256(root.encode()).hexdigest()[:16]}.json.gz')
    kept = _kept(file) if share is None else _agreed(_kept(file), share)
    if kept:
        return _made(root, kept['files'], kept['when'], file)
    started = time.time()
    files = _listed(root, share)
    if len(files) < KEPT_FROM:
        return _made(root, files, started, '')
    text = json.dumps({'root': root, 'when': started, 'files': files})
    storage.write_atomically(file, gzip.compress(text.encode(), 1))
    logging.info('%s: %d files listed in %.0f s, kept in %s', root, len(files), time.time() - started, file)
    return _made(root, files, started, file)


def _kept(file: str) -> dict | None:
    try:
        return json.loads(gzip.decompress(storage.read_bytes(file)))
    except (OSError, ValueError, EOFError):
        return None


def _agreed(kept: dict | None, share: Share) -> dict | None:
    """What is kept, if every process has the same: else all list anew."""
    mine = hashlib.sha256(json.dumps(kept).encode()).digest()
    return kept if all(other == mine for other in share.gather(mine)) else None


def _made(root: str, files: dict[str, int], when: float, kept: str) -> Listing:
    folders: dict[str, dict[str, bool]] = {'': {}}
    for file in files:
        name, is_dir = file, False
        while True:
            folder, _, last = name.rpartition('/')
            known = folder in folders
            folders.setdefault(folder, {})[last] = is_dir
            if known or not folder:
                break
            name, is_dir = folder, True
    return Listing(root, files, {
        folder: Names(*([name for name in sorted(entries) if entries[name] is kind] for kind in (True, False)))
        for folder, entries in folders.items()}, when, kept)


def _listed(root: str, share: Share | None) -> dict[str, int]:
    """{path from the root: bytes} of all files, each process listing its share of the directories."""
    files, folders = _top(root)
    mine = folders if share is None else folders[share.index::share.count]
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(functools.partial(_below, root), mine):
            files |= found
    if share is not None:
        for other in share.gather(gzip.compress(json.dumps(files).encode(), 1)):
            files |= json.loads(gzip.decompress(other))
    return dict(sorted(files.items()))


def _top(root: str) -> tuple[dict[str, int], list[str]]:
    """The files of the upper levels, and directories below them, as many as are worth sharing out."""
    files: dict[str, int] = {}
    folders = ['']
    while 0 < len(folders) <= _FEW:
        below = []
        for folder in folders:
            for name, is_dir, num_bytes in _entries(root, folder):
                path = f'{folder}/{name}' if folder else name
                if is_dir:
                    below.append(path)
                else:
                    files[path] = num_bytes
        folders = below
    return files, folders


def _entries(root: str, folder: str) -> list[tuple[str, bool, int]]:
    path = f'{root}/{folder}' if folder else root
    return [(entry.name, entry.is_dir, num_bytes) for entry, num_bytes in storage.scan_sizes(path)]


def _below(root: str, folder: str) -> dict[str, int]:
    return {f'{folder}/{file}': num_bytes for file, num_bytes in storage.walk_sizes(f'{root}/{folder}').items()}
