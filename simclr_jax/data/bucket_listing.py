"""What lies below a remote directory: listed whole, and a long list is kept.

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


class Share(NamedTuple):
    """Which part of a work that all processes do in common is this one's."""

    index: int
    count: int
    gather: Callable[[bytes], list[bytes]]      # what each process gives, to all, in their order


class Listed(NamedTuple):
    """All files below a remote directory."""

    sizes: dict[str, int]                       # path from the directory -> bytes
    names: dict[str, tuple[str, str]]           # path of a directory -> its folders and files, sorted, joined by '\0'
    when: float                                 # seconds since the epoch
    notes: list[str]                            # what is to be said of a list that is kept


_LISTED: dict[str, Listed] = {}


def listed(root: str, share: Share | None = None) -> Listed:
    """Lists a directory, or takes the list that is kept."""
    known = _LISTED.get(root)
    if known and (known.notes or time.time() - known.when <= _FRESH):
        return known
    when, file = time.time(), os.path.join(
        storage.user_cache('listings'), f'{hashlib.sha256(root.encode()).hexdigest()[:16]}.json.gz')
    try:
        kept = json.loads(gzip.decompress(storage.read_bytes(file)))
    except (OSError, ValueError, EOFError):
        kept = None
    if share is not None:       # unless every process has the same list, all list anew
        mine = hashlib.sha256(json.dumps(kept).encode()).digest()
        kept = kept if all(other == mine for other in share.gather(mine)) else None
    sizes, notes = kept['files'] if kept else _sizes(root, share), []
    if not kept and len(sizes) >= KEPT_FROM:
        kept = {'root': root, 'when': when, 'files': sizes}
        storage.write_atomically(file, gzip.compress(json.dumps(kept).encode(), 1))
        logging.info('%s: %d files listed in %.0f s, kept in %s', root, len(sizes), time.time() - when, file)
    if kept:
        day = time.strftime('%Y-%m-%d %H:%M', time.localtime(kept['when']))
        notes = [f'{root}: {len(sizes):,} files, as listed on {day}; to list them again, remove {file}.']
    _LISTED[root] = Listed(sizes, _names(sizes), when, notes)
    return _LISTED[root]


def forget() -> None:
    """Has the next `listed` look again."""
    _LISTED.clear()


def _names(files: Iterable[str]) -> dict[str, tuple[str, str]]:
    seen, folders, names = {''}, collections.defaultdict(list), collections.defaultdict(list)
    for file in files:
        folder, _, name = file.rpartition('/')
        names[folder].append(name)
        while folder not in seen:
            seen.add(folder)
            folder, _, name = folder.rpartition('/')
            folders[folder].append(name)
    return {folder: ('\0'.join(sorted(folders[folder])), '\0'.join(sorted(names[folder]))) for folder in seen}


def _sizes(root: str, share: Share | None) -> dict[str, int]:
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
