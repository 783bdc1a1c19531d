"""What lies below a directory: of a local one each part is asked for once, a remote one is listed whole, and kept.

A bucket gives a thousand names for a request. Its directories are listed by threads, on several hosts each a share
of them, sizes included.
"""

import collections
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import NamedTuple

from absl import logging

from simclr_jax import storage

KEPT_FROM = 10_000      # files: listing fewer takes seconds, and what is new among them is seen at the next start
_FRESH = 60.0           # seconds for which a process looks no second time
_FEW, _THREADS = 4, 16         # directories, below which their own are shared out; that are listed at a time
_HIDDEN = ('.', '__MACOSX')


class Share(NamedTuple):
    """Which part of a work that all processes do in common is this one's."""

    index: int
    count: int
    gather: Callable[[bytes], list[bytes]]      # what each process gives, to all, in their order


class Listing:
    """What lies below a directory and is not hidden; a link counts as what it leads to.

    Attributes:
        root: the directory.
        sizes: {path from the root: bytes} of all files of a remote one; None of a local one.
        when: it was listed, in seconds since the epoch.
        kept: the file that holds the list; '' for none.
    """

    def __init__(self, root: str, sizes: dict[str, int] | None = None, when: float = 0.0, kept: str = ''):
        self.root, self.sizes, self.when, self.kept = root, sizes, when, kept
        # Path of a directory from the root -> names of its folders and files, joined: a tenth of a list's memory.
        self._names = _by_folder(sizes) if sizes is not None else {}

    def names(self, folder: str = '') -> tuple[list[str], list[str]]:
        """(folders, files) in a directory, by its path from the root, sorted. OSError: it cannot be listed."""
        if folder not in self._names:
            try:
                folders, files = map(_joined, storage.names(self.path(folder)))
            except OSError as error:
                raise OSError(f"The folder '{printable(self.path(folder))}' cannot be listed "
                              f'({error.strerror or error}): correct its permissions, or move it away.') from error
            self._names[folder] = folders, files
        folders, files = (joined.split('\0') if joined else [] for joined in self._names[folder])
        return folders, files

    def path(self, inside: str) -> str:
        """Of what lies at a path from the root, '' for the root itself."""
        return os.path.join(self.root, inside) if inside else self.root

    def notes(self) -> list[str]:
        """What is to be said of a list that is kept."""
        day = time.strftime('%Y-%m-%d %H:%M', time.localtime(self.when))
        return [f'{self.root}: {len(self.sizes or ()):,} files, as listed on {day}; to list them again, remove '
                f'{self.kept}.'] if self.kept else []


_REMOTE: dict[str, Listing] = {}


def read(root: str, share: Share | None = None, known: dict[str, Listing] | None = None) -> Listing:
    """Lists a remote directory, or takes the list that is kept; a local one is listed where it is looked into.

    known: the local directories that were read before, which are not listed again.
    """
    if not storage.is_remote(root):
        return (known if known is not None else {}).setdefault(root, Listing(root))
    found = _REMOTE.get(root)
    if found is None or time.time() - found.when > _FRESH and not found.kept:
        found = _REMOTE[root] = _read(root, share)
    return found


def forget() -> None:
    """Has the next `read` look again."""
    _REMOTE.clear()


def printable(name: str) -> str:
    r"""A file's name for messages and files: bytes that are no UTF-8 become \xe9 and the like."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


def _joined(names: Iterable[str]) -> str:
    return '\0'.join(sorted(name for name in names if not name.startswith(_HIDDEN)))


def _by_folder(files: Iterable[str]) -> dict[str, tuple[str, str]]:
    seen, folders, names = {''}, collections.defaultdict(list), collections.defaultdict(list)
    for file in files:
        folder, _, name = file.rpartition('/')
        names[folder].append(name)
        while folder not in seen:
            seen.add(folder)
            folder, _, name = folder.rpartition('/')
            folders[folder].append(name)
    return {folder: (_joined(folders[folder]), _joined(names[folder])) for folder in seen}


def _read(root: str, share: Share | None) -> Listing:
    file = os.path.join(storage.user_cache('listings'), f'{hashlib.sha256(root.encode()).hexdigest()[:16]}.json.gz')
    try:
        kept = json.loads(gzip.decompress(storage.read_bytes(file)))
    except (OSError, ValueError, EOFError):
        kept = None
    if share is not None:       # unless every process has the same list, all list anew
        mine = hashlib.sha256(json.dumps(kept).encode()).digest()
        kept = kept if all(other == mine for other in share.gather(mine)) else None
    if kept:
        return Listing(root, kept['files'], kept['when'], file)
    started = time.time()
    files = _listed(root, share)
    if len(files) < KEPT_FROM:
        return Listing(root, files, started)
    text = json.dumps({'root': root, 'when': started, 'files': files})
    storage.write_atomically(file, gzip.compress(text.encode(), 1))
    logging.info('%s: %d files listed in %.0f s, kept in %s', root, len(files), time.time() - started, file)
    return Listing(root, files, started, file)


def _listed(root: str, share: Share | None) -> dict[str, int]:
    """{path from the root: bytes} of all files, each process listing its share of the directories."""
    def below(folder):
        return {f'{folder}/{file}': size for file, size in storage.walk_sizes(f'{root}/{folder}').items()}

    files, folders = {}, ['']
    while 0 < len(folders) <= _FEW:     # until there are directories enough to share out
        above, folders = folders, []
        for folder in above:
            for entry, size in storage.scan_sizes(f'{root}/{folder}' if folder else root):
                path = f'{folder}/{entry.name}' if folder else entry.name
                if entry.is_dir:
                    folders.append(path)
                else:
                    files[path] = size
    mine = folders if share is None else folders[share.index::share.count]
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(below, mine):
            files |= found
    if share is not None:
        for other in share.gather(gzip.compress(json.dumps(files).encode(), 1)):
            files |= json.loads(gzip.decompress(other))
    return dict(sorted(files.items()))
