"""A cache of decoded images on disk: written once, checked on reuse, read at random without tensorflow.

A cache is a folder of ArrayRecord files and of `cache.json`, which is written last and names them. A
record is one image: height and width (uint32, little-endian), then its pixels, uint8 [H, W, 3]. They are
not compressed: zstd takes 7 % off photographs and makes reading five times slower.
"""

import bisect
import collections
from concurrent import futures
import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import struct
import sys
import threading
import time
from typing import Any, Callable, ContextManager, Iterable, Iterator
import uuid

from absl import logging
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simclr_jax.data.source import Source, Streamed
from simclr_jax.data.decode import BadImage, read_image
from simclr_jax.data.pixels import Rules

_FORMAT = 1
_HEADER = struct.Struct('<II')
_SHARD_BYTES = 256 << 20
_MAX_SHARDS = 512  # Larger shards beyond: a reader holds a file descriptor for each.
_SAMPLE = 64  # Images read to estimate the size of the cache.
_MARGIN = 1.05  # On that estimate.
Advance = Callable[[], None]
_Example = tuple[int, int, Callable[[], np.ndarray | bytes]]  # (index, label, what reads the image)


def cached(source: Source, kind: str, directory: str, *, is_lead: bool = True, num_threads: int = 0,
           progress: Callable[[str, int], ContextManager[Advance]] | None = None) -> 'CachedSource':
    """The images of `source` from a cache below `directory`, which is built if there is no valid one.

    A cache is valid for one state of the source: names, sizes and times of its files, or version and
    shards of a TFDS data set. Any other is removed and built anew. Building is atomic: what was
    interrupted is no cache, and the next call removes it. Images that cannot be read stay out of
    the cache and are counted and named in `skipped`, as those of the source are.

    Several processes and hosts may call this at once: a file lock lets the first one build while the
    others wait and then find the cache. So it is right for one directory that all hosts see and for
    a directory of each host's own.

    Args:
        source: with `fingerprint(with_times=True) -> str`, which changes with its files; of random access (`load`,
            `labels`) but not uniform, or streamed (`ordered`). It gets random access by that.
        kind: 'decoded', the source's own pixels; or 'resized:N', larger images reduced to a short side of N
            pixels by Pillow's antialiased bicubic filter. The latter changes the distribution of
            the views: crops are then taken from the reduced image.
        directory: where caches lie, made when missing; one holds those of many sources.
        is_lead: shows the progress; False on all processes but one.
        num_threads: that decode; 0 takes one for each core.
        progress: progress(title, number of images) is a context that gives a function to call
            after each image; default `progress_bar`.

    Raises:
        ValueError: an argument will not do, or too many images cannot be read (source.max_bad_share).
        OSError: the disk is full or cannot be written to.
    """
    resize_to = _short_side(kind)
    if source.uniform:
        raise ValueError(f"data.cache is '{kind}', but the images of '{source.name}' lie in memory: set "
                         "data.cache to ''.")
    if not directory:
        raise ValueError(f"data.cache is '{kind}', but data.cache_dir is empty: name a directory.")
    expected = {'format': _FORMAT, 'source': source.name, 'split': source.split, 'kind': kind,
                'examples': source.num_examples, 'class_names': source.class_names and [*source.class_names],
                'fingerprint': source.fingerprint(with_times=True)}
    os.makedirs(directory, exist_ok=True)
    folder = os.path.join(directory, _folder_name(source, kind))
    with _lock(f'{folder}.lock', is_lead):
        content, why_not = _read(folder, expected)
        if why_not:
            if is_lead and os.path.exists(folder):
                logging.warning("The cache '%s' is built anew: %s.", folder, why_not)
            show = (progress or progress_bar) if is_lead else _no_progress
            _build(source, resize_to, folder, expected, num_threads or os.cpu_count() or 1, show)
            content, _ = _read(folder, expected)
    result = CachedSource(source, folder, content)
    result.check_bad_share()
    return result


class CachedSource(Source):
    """A split whose decoded images lie in a cache (see `cached`), at random access.

    Its examples are numbered as those of the source.
    """

    uniform = False

    def __init__(self, source: Source, folder: str, content: dict[str, Any]):
        super().__init__(source.name, source.split, source.num_examples, source.class_names)
        self.labels = np.array(content['labels'], np.int32)
        self.max_bad_share = source.max_bad_share
        self.skipped = [name for _, name in content['unreadable']]
        self._skipped_rows = {index for index, _ in content['unreadable']}
        self._source, self._folder = source, folder
        is_readable = np.ones(self.num_examples, bool)
        is_readable[list(self._skipped_rows)] = False
        self._records = np.cumsum(is_readable) - 1  # [N], the number of an example's record.
        self._files = [shard['file'] for shard in content['shards']]
        self._ends = list(itertools.accumulate(shard['examples'] for shard in content['shards']))
        self._readers, self._lock = {}, threading.Lock()

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [H, W, 3], read-only; from any thread.

        Raises:
            BadImage: the source's image could not be read.
            ValueError: the cache is damaged.
        """
        if self.is_skipped(index):
            raise BadImage(f"'{self.name_of(index)}' could not be read when the cache was built.")
        number = int(self._records[index])
        shard = bisect.bisect_right(self._ends, number)
        number -= self._ends[shard - 1] if shard else 0
        try:
            record, = self._reader(shard).read([number])
            height, width = _HEADER.unpack_from(record)
            return np.frombuffer(record, np.uint8, offset=_HEADER.size).reshape(height, width, 3)
        except (RuntimeError, ValueError, struct.error) as error:
            path = os.path.join(self._folder, self._files[shard])
            raise ValueError(f"Record {number} of the cache file '{path}' ({self.name_of(index)}) is damaged "
                             f'or gone: delete that folder, and the next run builds it anew ({error}).'
                             ) from error

    def name_of(self, index: int) -> str:
        """The source's name of an example."""
        return self._source.name_of(index)

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            with self._lock:
                if shard not in self._readers:
                    # Without threads and read-ahead: of no use to random access.
                    self._readers[shard] = _array_record().ArrayRecordReader(
                        os.path.join(self._folder, self._files[shard]),
                        'readahead_buffer_size:0,max_parallelism:0')
        return self._readers[shard]


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Shows how many of `total` images are done: a bar on a terminal, a line a minute elsewhere."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn('{task.description}', markup=False), BarColumn(bar_width=20),
                   MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
        return
    done, last = 0, time.monotonic()

    def advance():
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= 60:
            last = time.monotonic()
            print(f'{title}: {done:,}/{total:,} images', flush=True)

    print(f'{title}: {total:,} images', flush=True)
    yield advance


@contextlib.contextmanager
def _no_progress(title: str, total: int) -> Iterator[Advance]:
    yield lambda: None


# ---- what is there -------------------------------------------------------------------------------------


def _short_side(kind: str) -> int | None:
    """256 of 'resized:256', None of 'decoded'."""
    match = re.fullmatch(r'decoded|resized:([1-9]\d*)', kind)
    if not match:
        raise ValueError(f"data.cache is '{kind}'; it must be '', 'decoded', or 'resized:N' with N the short "
                         "side in pixels, such as 'resized:256'.")
    return int(match[1]) if match[1] else None


def _folder_name(source: Source, kind: str) -> str:
    names = [source.name, source.split, kind]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
    return re.sub(r'[^\w.]+', '_', '-'.join(names))[-80:] + f'-{digest}'


def _read(folder: str, expected: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(the content of cache.json, '' or why this is not the cache that is expected)."""
    try:
        with open(os.path.join(folder, 'cache.json')) as file:
            content = json.load(file)
        for key, value in expected.items():
            if content[key] != value:
                return {}, "the source's files changed" if key == 'fingerprint' else f'its {key} changed'
        for shard in content['shards']:
            if os.path.getsize(os.path.join(folder, shard['file'])) != shard['bytes']:
                return {}, f"'{shard['file']}' does not have the size that was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f'it is not whole ({error})'
    return content, ''


@contextlib.contextmanager
def _lock(path: str, is_lead: bool) -> Iterator[None]:
    """Holds the lock file `path`; the system lets it go when a process dies."""
    with open(path, 'w') as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_lead:
                    logging.warning("Waiting for another process, which builds '%s'.", path[:-len('.lock')])
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise OSError(f"'{path}' cannot be locked ({error}): choose a data.cache_dir on a file system "
                          'with file locks.') from error
        yield


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ValueError('data.cache needs the package array_record: pip install array_record, or set '
                         f"data.cache to '' ({error}).") from error
    return array_record_module


# ---- building ------------------------------------------------------------------------------------------


def _build(source: Source, resize_to: int | None, folder: str, expected: dict[str, Any], num_threads: int,
           progress: Callable[[str, int], ContextManager[Advance]]) -> None:
    """Writes a cache beside `folder` and renames it to `folder`; the caller holds the lock."""
    unfinished = f'{folder}.unfinished'
    for path in (unfinished, folder):  # What a killed process left, and what is of no use any more.
        if os.path.exists(path):
            shutil.rmtree(path)
    num_bytes = _checked_size(source, resize_to, os.path.dirname(folder))
    labels, unreadable = [], []

    def images(advance):
        for index, label, image in _in_order(_examples(source), resize_to, source.rules, num_threads):
            labels.append(label)
            if isinstance(image, np.ndarray):
                yield image
            else:
                unreadable.append((index, source.name_of(index)))
                source.skip(index, image)
                source.check_bad_share()
            advance()

    os.mkdir(unfinished)
    try:
        with progress(f'cache of {source.name}, {source.split}', source.num_examples) as advance:
            shards = _write_shards(unfinished, images(advance), max(_SHARD_BYTES, num_bytes // _MAX_SHARDS))
        path = os.path.join(unfinished, 'cache.json')
        with _writing(path), open(path, 'w') as file:
            json.dump({**expected, 'labels': labels, 'unreadable': unreadable, 'shards': shards}, file)
        for path in (path, unfinished):
            _sync(path)
        os.rename(unfinished, folder)
        _sync(os.path.dirname(folder))
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _checked_size(source: Source, resize_to: int | None, directory: str) -> int:
    """The bytes that the cache will take, estimated from a sample. OSError: the disk has not as many."""
    indices = np.unique(np.linspace(0, source.num_examples - 1, _SAMPLE, dtype=np.int64)).tolist()
    sizes = []
    for example in itertools.islice(_examples(source, indices), _SAMPLE):
        *_, image = _read_example(example, resize_to, source.rules)
        if isinstance(image, np.ndarray):
            sizes.append(image.nbytes + _HEADER.size)
    if not sizes:
        raise ValueError(f"Of {len(indices)} images from all over '{source.name}', split {source.split}, "
                         f'not one can be read ({image}).')
    num_bytes = int(_MARGIN * np.mean(sizes) * source.num_examples)
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        raise OSError(f"The cache of '{source.name}', split {source.split}, takes about "
                      f"{num_bytes / 1e9:,.1f} GB, but '{directory}' has {free / 1e9:,.1f} GB left: choose "
                      "another data.cache_dir, or a smaller data.cache such as 'resized:256'.")
    return num_bytes


def _examples(source: Source, indices: Iterable[int] | None = None) -> Iterator[_Example]:
    """All examples in order, or those of `indices`, which a streamed source does not heed."""
    if not isinstance(source, Streamed):
        for index in range(source.num_examples) if indices is None else indices:
            yield index, int(source.labels[index]), functools.partial(source.load, index)
        return
    for example in source.ordered(shard_index=0, shard_count=1, is_decoded=False).as_numpy_iterator():
        yield int(example['index']), int(example['label']), lambda image=example['image']: image


def _read_example(example: _Example, resize_to: int | None, rules: Rules) -> tuple[int, int, np.ndarray | Exception]:
    """(index, label, image uint8 [H, W, 3] as it is cached, or why there is none)."""
    index, label, load = example
    try:
        image = load()
        if isinstance(image, bytes):
            image = read_image(io.BytesIO(image), rules)
        return index, label, image if resize_to is None else _reduced(image, resize_to)
    except (BadImage, OSError) as error:
        return index, label, error


def _reduced(image: np.ndarray, short_side: int) -> np.ndarray:
    """A larger image at a short side of `short_side` pixels, antialiased bicubic."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image
    size = round(width * short_side / short), round(height * short_side / short)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _in_order(examples: Iterable[_Example], resize_to: int | None, rules: Rules, num_threads: int
              ) -> Iterator[tuple[int, int, np.ndarray | Exception]]:
    """`_read_example` of each, in order, by threads that run a few images ahead."""
    with futures.ThreadPoolExecutor(num_threads) as pool:
        pending = collections.deque()
        for example in examples:
            pending.append(pool.submit(_read_example, example, resize_to, rules))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write_shards(folder: str, images: Iterable[np.ndarray], shard_bytes: int) -> list[dict[str, Any]]:
    """Writes ArrayRecord files of `shard_bytes` or a little more; [{'file', 'bytes', 'examples'}]."""
    # Other names than those of a cache built before: who still reads that must not take these for it.
    prefix, shards = uuid.uuid4().hex[:8], []
    images = iter(images)
    image = next(images, None)
    while image is not None:
        file = f'{prefix}-{len(shards):05d}.array_record'
        path = os.path.join(folder, file)
        with _writing(path):
            writer = _array_record().ArrayRecordWriter(path, 'group_size:1,uncompressed')
        size = examples = 0
        while image is not None and size < shard_bytes:
            with _writing(path):
                writer.write(_HEADER.pack(*image.shape[:2]) + image.tobytes())
            size, examples = size + image.nbytes, examples + 1
            image = next(images, None)
        with _writing(path):
            writer.close()
            _sync(path)
        shards.append({'file': file, 'bytes': os.path.getsize(path), 'examples': examples})
    return shards


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:  # ArrayRecord raises the former.
        raise OSError(f"The cache file '{path}' cannot be written ({error}): make room, or choose another "
                      'data.cache_dir.') from error


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
