"""A cache of decoded images on disk: written once, checked on reuse, read at random without tensorflow.

A cache is a folder of one ArrayRecord file and of `cache.json`, which is written last and names it. A record
is one image: height and width (uint32, little-endian), then its pixels, uint8 [H, W, C]. They are not
compressed: zstd takes 7 % off photographs and makes reading five times slower.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import filelock
import numpy as np
from absl import logging
from PIL import Image

from simclr_jax import storage
from simclr_jax.data.decode import BadImage, decoded
from simclr_jax.data.progress_bar import progress_bar
from simclr_jax.data.source import Source, Streamed

_FORMAT = 2
_HEADER = struct.Struct('<II')
_SAMPLE = 64  # Images read to estimate the size of the cache.
_MARGIN = 1.05  # On that estimate.


def cached(source: Source, kind: str, directory: str, *, is_lead: bool = True, num_threads: int = 0,
           builds: bool = True) -> Source:
    """The images of `source` from a cache below `directory`, which is built if there is no valid one.

    A cache is valid for one state of the source, `fingerprint(with_times=True)`, and one set of `rules`. Any
    other is removed and built anew. Building is atomic: what was interrupted is no cache, and the next call
    removes it. Images that cannot be read stay out of the cache and are counted and named in `skipped`.

    Several processes and hosts may call this at once: a file lock lets the first one build while the
    others wait and then find the cache.

    Args:
        source: not uniform; one that is streamed gets random access by this.
        kind: 'decoded', the source's own pixels; or 'resized:N', larger images reduced to a short side of N
            pixels by Pillow's antialiased bicubic filter. The latter changes the distribution of
            the views: crops are then taken from the reduced image.
        directory: where caches lie, made when missing; one holds those of many sources.
        is_lead: shows the progress; False on all processes but one.
        num_threads: that decode; 0 takes one for each core.
        builds: False writes nothing, and gives `source` itself where there is no valid cache.

    Raises:
        ValueError: an argument will not do, or too many images cannot be read (source.max_bad_share).
        OSError: the disk is full or cannot be written to.
    """
    match = re.fullmatch(r'decoded|resized:([1-9]\d*)', kind)
    if not match:
        raise ValueError(f"data.cache is '{kind}'; it must be '', 'decoded', or 'resized:N' with N the short "
                         "side in pixels, such as 'resized:256'.")
    if source.uniform:
        raise ValueError(f"data.cache is '{kind}', but the images of '{source.name}' are in memory: set "
                         "data.cache to ''.")
    if not directory:
        raise ValueError(f"data.cache is '{kind}', but data.cache_dir is empty: name a directory.")
    if storage.is_remote(directory):
        raise ValueError(f"data.cache_dir is '{directory}': a cache is read at random from a local disk, also that of "
                         'images in a bucket; name a local directory.')
    expected = json.loads(json.dumps({
        'format': _FORMAT, 'source': source.name, 'split': source.split, 'kind': kind,
        'examples': source.num_examples, 'class_names': source.class_names,
        'rules': {name: value for name, value in dataclasses.asdict(source.rules).items()
                  if (name, value) != ('channels', 3)},     # caches of RGB do not name them
        'fingerprint': source.fingerprint(with_times=True)}))
    names = [source.name, source.split, kind]
    folder = os.path.join(directory, re.sub(r'[^\w.]+', '_', '-'.join(names))[-80:]
                          + f'-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}')
    if not builds:
        content, why_not = _read(folder, expected)
        return source if why_not else CachedSource(source, folder, content)
    storage.make_dirs(directory)
    with _lock(f'{folder}.lock', is_lead):
        content, why_not = _read(folder, expected)
        if why_not:
            if is_lead and os.path.exists(folder):
                logging.warning("The cache '%s' is rebuilt: %s.", folder, why_not)
            content = _build(source, int(match[1] or 0), folder, expected, num_threads or os.cpu_count() or 1,
                             is_lead)
    result = CachedSource(source, folder, content)
    result.check_bad_share()
    return result


class CachedSource(Source):
    """A split whose decoded images lie in a cache, at random access; numbered as those of the source."""

    def __init__(self, source: Source, folder: str, content: dict[str, Any]):
        super().__init__(source.name, source.split, source.num_examples, source.class_names)
        self.labels = np.array(content['labels'], np.int32)
        self.read_like(source)
        self.is_remote = False
        self.skipped = [name for _, name in content['unreadable']]
        self.unreadable = {index: f"'{name}' could not be read when the cache was built."
                           for index, name in content['unreadable']}
        self._source, self._path = source, os.path.join(folder, content['file'])
        is_readable = np.ones(self.num_examples, bool)
        is_readable[list(self.unreadable)] = False
        self._records = np.cumsum(is_readable) - 1  # [N], the number of an example's record.

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [H, W, C], read-only; from any thread.

        Raises:
            BadImage: the source's image could not be read.
            ValueError: the cache is damaged.
        """
        if index in self.unreadable:
            raise BadImage(self.unreadable[index])
        number = int(self._records[index])
        try:
            record, = self._reader.read([number])
            height, width = _HEADER.unpack_from(record)
            return np.frombuffer(record, np.uint8, offset=_HEADER.size).reshape(height, width, self.channels)
        except (RuntimeError, ValueError, struct.error) as error:
            raise ValueError(f"Record {number} of the cache file '{self._path}' ({self.name_of(index)}) is "
                             'damaged or gone: delete that folder, and the next run rebuilds it '
                             f'({error}).') from error

    def name_of(self, index: int) -> str:
        """The source's name of an example."""
        return self._source.name_of(index)

    def fingerprint(self, *, with_times: bool = False) -> str:
        """That of the source."""
        return self._source.fingerprint(with_times=with_times)

    @functools.cached_property
    def _reader(self) -> Any:       # without threads and read-ahead: of no use to random access
        return _array_record().ArrayRecordReader(self._path, 'readahead_buffer_size:0,max_parallelism:0')


def _read(folder: str, expected: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(the content of cache.json, '' or why this is not the cache that is expected)."""
    try:
        content = json.loads(storage.read_bytes(os.path.join(folder, 'cache.json')))
        for key, value in expected.items():
            if content[key] != value:
                return {}, "the source's files changed" if key == 'fingerprint' else f'its {key} changed'
        if storage.size(os.path.join(folder, content['file'])) != content['bytes']:
            return {}, f"'{content['file']}' does not have the size that was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f'it is incomplete ({error})'
    return content, ''


@contextlib.contextmanager
def _lock(path: str, is_lead: bool) -> Iterator[None]:
    """Holds the lock file `path`; the system lets it go when a process dies."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        if is_lead:
            logging.warning("Waiting for another process, which builds '%s'.", path.removesuffix('.lock'))
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OSError(f"'{path}' cannot be locked ({error}): choose a data.cache_dir on a file system "
                      'with file locks.') from error
    try:
        yield
    finally:
        lock.release()


def _array_record() -> Any:
    try:
        return importlib.import_module('array_record.python.array_record_module')
    except ImportError as error:
        raise ValueError('data.cache needs the package array_record: pip install array_record, or set '
                         f"data.cache to '' ({error}).") from error


# ---- building ------------------------------------------------------------------------------------------


def _build(source: Source, short_side: int, folder: str, expected: dict[str, Any], num_threads: int,
           is_lead: bool) -> dict[str, Any]:
    """Writes a cache beside `folder` and renames it to `folder`; the caller holds the lock."""
    unfinished = f'{folder}.unfinished'
    for path in (unfinished, folder):  # What a killed process left, and what is of no use any more.
        storage.remove(path)
    _check_room(source, short_side, os.path.dirname(folder))
    # Another name than that of a cache built before: who still reads that must not take this for it.
    file, labels, unreadable = f'{uuid.uuid4().hex[:8]}.array_record', [], []
    path = os.path.join(unfinished, file)
    os.mkdir(unfinished)
    try:
        with progress_bar(f'cache of {source.name}, {source.split}', source.num_examples, is_shown=is_lead
                          ) as advance:
            writer = _array_record().ArrayRecordWriter(path, 'group_size:1,uncompressed')
            for index, label, image in _images(source, short_side, num_threads, range(source.num_examples)):
                labels.append(label)
                if isinstance(image, np.ndarray):
                    writer.write(_HEADER.pack(*image.shape[:2]) + image.tobytes())
                else:
                    unreadable.append((index, source.name_of(index)))
                    source.skip(index, image)
                    source.check_bad_share()
                advance()
            writer.close()
            with open(path, 'rb+') as written:
                os.fsync(written.fileno())
            content = expected | {'labels': labels, 'unreadable': unreadable, 'file': file,
                                  'bytes': storage.size(path)}
            storage.write_atomically(os.path.join(unfinished, 'cache.json'), json.dumps(content).encode())
            os.rename(unfinished, folder)
            storage.sync_dir(os.path.dirname(folder))
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, RuntimeError | OSError):       # ArrayRecord raises the former
            raise OSError(f"The cache file '{path}' cannot be written ({error}): make room, or choose "
                          'another data.cache_dir.') from error
        raise
    return content


def _check_room(source: Source, short_side: int, directory: str) -> None:
    """OSError unless the disk has room for the cache, estimated from a sample."""
    indices = np.unique(np.linspace(0, source.num_examples - 1, _SAMPLE, dtype=np.int64)).tolist()
    examples = list(itertools.islice(_images(source, short_side, 1, indices), _SAMPLE))
    sizes = [image.nbytes + _HEADER.size for *_, image in examples if isinstance(image, np.ndarray)]
    if not sizes:
        raise ValueError(f"None of {len(indices)} images sampled from '{source.name}', split {source.split}, "
                         f'can be read ({examples[-1][-1]}).')
    num_bytes, free = _MARGIN * np.mean(sizes) * source.num_examples, shutil.disk_usage(directory).free
    if num_bytes > free:
        raise OSError(f"The cache of '{source.name}', split {source.split}, takes about "
                      f"{num_bytes / 1e9:,.1f} GB, but '{directory}' has {free / 1e9:,.1f} GB left: choose "
                      "another data.cache_dir, or a smaller data.cache such as 'resized:256'.")


def _images(source: Source, short_side: int, num_threads: int, indices: Iterable[int]
            ) -> Iterator[tuple[int, int, np.ndarray | Exception]]:
    """(index, label, image uint8 [H, W, C] as it is cached, or why there is none), a few at a time by threads.

    indices: of the examples; one that is streamed gives all, in its own order.
    """
    def made(example):
        index, label, data = example
        try:
            image = decoded(source.load(index) if data is None else data, source.rules)
        except (BadImage, OSError) as error:
            return index, label, error
        height, width = image.shape[:2]
        if 0 < short_side < min(height, width):
            size = [round(side * short_side / min(height, width)) for side in (width, height)]
            image = np.stack([np.asarray(Image.fromarray(image[..., band]).resize(size, Image.Resampling.BICUBIC))
                              for band in range(source.channels)], axis=-1)
        return index, label, image

    if isinstance(source, Streamed):
        stream = source.ordered(shard_index=0, shard_count=1, is_decoded=False).as_numpy_iterator()
        examples = ((int(each['index']), int(each['label']), each['image']) for each in stream)
    else:
        examples = ((index, int(source.labels[index]), None) for index in indices)
    with futures.ThreadPoolExecutor(num_threads) as pool:
        while some := list(itertools.islice(examples, 4 * num_threads)):
            yield from pool.map(made, some)
