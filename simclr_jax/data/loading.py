"""Finds a data source by its name. TensorFlow is imported for TFDS data sets only."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np
from PIL import ImageColor

from simclr_jax import storage
from simclr_jax.config import names
from simclr_jax.data import arrays, containers, folder, items, shapes
from simclr_jax.data.bucket_listing import Share
from simclr_jax.data.decode import AUTO, MOST_CHANNELS, OF_A_SAMPLE, Rules, decoded
from simclr_jax.data.items import as_source, makes
from simclr_jax.data.source import ArraySource, Source, Streamed, hold_out, split_name, take_split

__all__ = ['fields_found', 'as_source', 'available_splits', 'resumed', 'load_pair', 'load_source',
           'load_test_source', 'makes', 'options']

READING = 2                 # of data.reading; runs begun before it was there have 1: see `options`
_IN_MEMORY_BYTES = 1 << 30
_SMALL_SIDE = 128
_DECODED_AT_ONCE = 256      # files, before the bad ones among them are counted
_PERCENT_HELD_OUT = 10      # where there are labels and no split to measure on
_TEST_SPLITS = ('test', 'validation', 'val')
_BLACK = 16                 # an image whose pixels are all below it
_NAMED = 3


def load_source(name: str, split: str, *, data_dir: str | None = None, download: bool = False,
                image_size: int = 32, in_memory_bytes: int = _IN_MEMORY_BYTES, cache: str = '',
                decode_once: bool = False, cache_dir: str = '', builds_cache: bool = True,
                max_bad_share: float = Source.max_bad_share, is_lead: bool = True,
                arguments: Mapping[str, Any] | None = None, rules: Rules = OF_A_SAMPLE,
                folders: str = 'auto', reading: int = READING, num_threads: int = 0, source: Any = None,
                share: Share | None = None, list_folder: Callable[[str], folder.Listing] = folder.Listing) -> Source:
    """One split of a data source, ready to be read by `pipeline`.

    Args:
        name: 'shapes' or 'shapes:N' (embedded; N training images), 'folder:PATH', 'arrays:PATH.npz',
            'hf:NAME' and 'wds:PATTERN' (data/containers.py), 'package.module:Name' (what it makes goes
            through `as_source`), or a TFDS name, as 'cifar10' or 'imagenet2012_subset/1pct:5.0.0'.
        split: a split of the source; slices such as 'train[:10%]' work everywhere.
        data_dir: where TFDS data sets were prepared; None or '' is TFDS's own default.
        download: let TFDS download and prepare the data set. Without it nothing touches a network.
        image_size: of the embedded shapes; other sources keep their own sizes.
        in_memory_bytes: a TFDS split that takes more, decoded, is streamed from its files.
        decode_once: read small images of one shape that take no more into memory (see `in_memory`).
        cache: 'decoded' or 'resized:N': the images are read from a cache below `cache_dir`, which is built
            where it is missing (see `cache.cached`). What lies in memory needs none.
        builds_cache: False: without a cache that is there and valid the images are read from the source.
        max_bad_share: of the examples, that may be unreadable before a ValueError says so.
        is_lead: whether this process shows how a cache grows.
        arguments: keywords for 'package.module:Name'.
        rules: by which pixels become RGB uint8.
        folders: see `folder.FolderSource`.
        reading: 1 cuts slices of folders and arrays from sorted files, and takes labels of arrays as class
        numbers. source: what `as_source` takes, in the place of `name`.
        num_threads: 1 reads the items of a user's own source one at a time.
        share: of this process, where several load the same split at the same time: each then lists and reads
            its part of a folder, and they exchange what they found.
        list_folder: a function of the path of a folder.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: they are there and will not do, or have no such split.

    >>> import simclr_jax
    >>> source = simclr_jax.load_source('shapes:100', 'train[:20]', image_size=16)
    >>> len(source), source[0]['image'].shape, source[0]['image'].dtype.name, source.labels.shape
    (20, (16, 16, 3), 'uint8', (20,))
    >>> source.images.shape             # where the images lie in memory, `source.uniform`
    (20, 16, 16, 3)
    """
    kind, path = _kind_and_path(name) if source is None else ('object', name)
    found: Source
    if kind == 'shapes':
        found = arrays.shapes_source(name, split, image_size)
    elif kind == 'folder':
        found = take_split(folder.FolderSource(name, split, list_folder(path), folders=folders, rules=rules), split,
                           is_sorted=reading == 1)
    elif kind == 'arrays':
        found = take_split(arrays.npz_source(name, split, path, rules=rules, as_numbered=reading == 1), split,
                           is_sorted=reading == 1)
    elif kind == 'wds':
        shards = containers.TarShards(path, split_name(split))
        found = as_source(shards, split, name=name, rules=rules)
        for count, what in ((shards.num_left_out, 'examples without an image'),
                            (shards.num_further, 'images that are not the first of their example')):
            if count:
                found.notes.append(f'{name}: {count:,} {what} are left out.')
    elif kind in ('object', 'hf'):
        if kind == 'hf':
            source = containers.hugging_face(path, cache_dir=data_dir or None, download=download)
        source = names.resolve(name, 'data.source') if source is None else source
        found = as_source(source, split, name=name, arguments=arguments, rules=rules, one_at_a_time=num_threads == 1)
    else:
        found = _tfds(name).load(name, split, data_dir=data_dir or None, download=download,
                                 in_memory_bytes=in_memory_bytes, rules=rules)
    if rules.channels not in (0, found.rules.channels):
        raise ValueError(f"data.channels is {rules.channels}, but the images of '{found.name}' have "
                         f'{found.rules.channels}.')
    found.max_bad_share = max_bad_share
    if decode_once and not found.uniform and not isinstance(found, Streamed):
        found = in_memory(found, in_memory_bytes, share if kind == 'folder' else None) or found
    if cache and not found.uniform:
        from simclr_jax.data.cache import cached
        found = cached(found, cache, storage.as_path(cache_dir), is_lead=is_lead, builds=builds_cache)
    return found


def load_pair(name: str, train_split: str, test_split: str, *, test_source: Any = None, **options
              ) -> tuple[Source, Source | None]:
    """The split to train on and the one to measure on, None where there is none; they share no image.

    Args:
        test_split: one that must exist; 'none'; '10%', so much of each class of the training split, which
            then has it no more; '' takes the first of test, validation and val, and, where there are labels
            but no such split, 10 %.
        test_source: what `as_source` takes, to measure on.
        **options: of `load_source`.
    """
    # A folder is listed once for both.
    options['list_folder'] = functools.cache(functools.partial(folder.Listing, share=options.get('share')))
    train = load_source(name, train_split, **options)
    train.notes += _look(train)
    options |= {'rules': dataclasses.replace(options.get('rules', OF_A_SAMPLE), range=train.rules.range,
                                             channels=train.rules.channels)}
    if test_source is not None:
        return train, _with_classes_of(train, load_source(name, 'test', **options | {'source': test_source}))
    percent = re.fullmatch(r'(\d+(?:\.\d+)?)%', test_split)
    if percent:
        return hold_out(train, float(percent[1]))
    test = load_test_source(name, test_split, **options)
    if test is not None:
        return train, _with_classes_of(train, test)
    can_hold_out = train.class_names and train.num_examples > 1 and not isinstance(train, Streamed)
    if test_split != 'none' and can_hold_out and options.get('reading', READING) > 1:
        train, test = hold_out(train, _PERCENT_HELD_OUT)
        train.notes.append(f'{train.name} has no split to measure on: {test.num_examples:,} images, '
                           f'{_PERCENT_HELD_OUT} % of each class, are held out of training '
                           "(data.test_split='none' trains on all).")
        return train, test
    return train, None


def load_test_source(name: str, split: str, *, data_dir: str | None = None, **options) -> Source | None:
    """The split to measure on, or None where there is none.

    Args:
        split: one that must exist; '' takes the first of test, validation and val; 'none' is None.
        **options: of `load_source`.
    """
    if split == 'none':
        return None
    if not split:
        available = available_splits(name, data_dir=data_dir, arguments=options.get('arguments'),
                                     folders=options.get('folders', 'auto'), source=options.get('source'),
                                     list_folder=options.get('list_folder', folder.Listing))
        split = next((known for known in _TEST_SPLITS if known in available), '')
    return load_source(name, split, data_dir=data_dir, **options) if split else None


def available_splits(name: str, *, data_dir: str | None = None, arguments: Mapping[str, Any] | None = None,
                     folders: str = 'auto', source: Any = None,
                     list_folder: Callable[[str], folder.Listing] = folder.Listing) -> tuple[str, ...]:
    """The splits of a data source; the errors of `load_source` where the data are not there."""
    if source is not None:
        return items.splits_of(source, arguments)
    kind, path = _kind_and_path(name)
    if kind == 'shapes':
        return tuple(shapes.DEFAULT_SIZES)
    if kind == 'folder':
        return folder.folder_splits(list_folder(path), folders)
    if kind == 'arrays':
        return arrays.npz_splits(path)
    if kind == 'wds':
        return containers.shard_splits(path)
    if kind == 'hf':
        return tuple(containers.hugging_face(path, cache_dir=data_dir or None))
    if kind == 'object':
        return items.splits_of(names.resolve(name, 'data.source'), arguments)
    return _tfds(name).splits(name, data_dir=data_dir or None)


def options(data: Mapping[str, Any], *, image_size: int, is_lead: bool,
            begun_with: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keywords of `load_source` that a config's `data` block gives.

    `begun_with`: the block of the run that is measured or goes on, if another: how images are read is its
    own. One without `data.reading` was begun when transparency was dropped, 16 bits were all divided by 257,
    slices of folders were cut from sorted files, and nothing was held out.
    """
    how = reading_fields(data if begun_with is None else begun_with)
    is_own = begun_with is None or data['source'] in ('', begun_with['source'])
    arguments = data.get('arguments') or (how['arguments'] if is_own else {})
    return {'data_dir': storage.as_path(data['dir']), 'download': data['download'], 'cache': data['cache'],
            'cache_dir': data['cache_dir'], 'max_bad_share': data['max_bad_share'], 'image_size': image_size,
            'is_lead': is_lead, 'decode_once': True, 'arguments': dict(arguments),
            'rules': _rules(how), 'folders': how['folders'], 'reading': how['reading'],
            'num_threads': data['num_threads']}


def resumed(data: Mapping[str, Any], begun_with: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `data` by which a run reads its images, as it began; `begun_with` is its kept block.

    ValueError: `data` asks for another range or number of channels, or for another part to be held out.
    """
    fields = reading_fields(begun_with) | {'test_split': begun_with['test_split']}
    fields['range'] = tuple(fields['range'])
    asked = {'range': tuple(data['range']), 'channels': data['channels']}
    if '%' in data['test_split'] + fields['test_split']:
        asked['test_split'] = data['test_split']
    for field, value in asked.items():
        if value and value != fields[field]:
            raise ValueError(f'data.{field} is {value!r}, but the run began with {fields[field]!r}: leave it '
                             'as it was, or begin another workdir.')
    return fields | {'test_split': data['test_split'] or fields['test_split']}


def fields_found(train: Source, test: Source | None) -> dict[str, Any]:
    """What loading found out: the fields of a config's `data` block by which others read the same images."""
    found: dict[str, Any] = {'channels': train.channels}
    found |= {'range': train.rules.range} if isinstance(train.rules.range, tuple) else {}
    return found | ({'test_split': test.held_out} if test is not None and test.held_out else {})


def reading_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `data` block that say how images are read, also of one that lacks some."""
    before = {'reading': 1, 'background': '', 'range': (), 'max_pixels': Rules.max_pixels, 'channels': 3,
              'folders': 'auto', 'arguments': {}}
    return {field: data.get(field, value) for field, value in before.items()}


def _rules(how: Mapping[str, Any]) -> Rules:
    try:
        background = ImageColor.getrgb(how['background'])[:3] if how['background'] else None
    except ValueError as error:
        raise ValueError(f"data.background is {how['background']!r}: it takes a colour, such as 'white' or "
                         "'#808080', or '' to leave transparent pixels their own.") from error
    limits = tuple(map(float, how['range']))
    if limits and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f'data.range is {limits}: it takes two numbers, low and high, or () for those of '
                         'the images.')
    if how['max_pixels'] < 1:
        raise ValueError(f"data.max_pixels is {how['max_pixels']}: it takes 1 or more.")
    if not 0 <= how['channels'] <= MOST_CHANNELS:
        raise ValueError(f"data.channels is {how['channels']}: it takes 1 to {MOST_CHANNELS}, or 0 for "
                         'those of the images.')
    unless_given = AUTO if how['reading'] > 1 else None
    return Rules(background, (limits[0], limits[1]) if limits else unless_given, how['max_pixels'],
                 how['channels'])


def in_memory(source: Source, max_bytes: int = _IN_MEMORY_BYTES, share: Share | None = None
              ) -> ArraySource | None:
    """The images of `source`, decoded once; None unless they are small, of one shape, and fit.

    Small is up to 128 pixels a side: of larger ones a crop seldom needs all. What cannot be read is left out
    of the array, and named in `skipped`. With a `share` each process reads its part of them.
    """
    mine = np.arange(source.num_examples) if share is None else np.arange(source.num_examples)[
        share.index::share.count]
    found = _decoded_rows(source, mine, max_bytes)
    if share is not None:
        found = _exchanged(source, found, share)
    if found is None:
        return None
    rows, images = found
    result = ArraySource(source.name, source.split, images, source.labels[rows], source.class_names)
    result.read_like(source)
    result.skipped = list(source.skipped)
    return result


def _exchanged(source: Source, found: tuple[np.ndarray, np.ndarray] | None, share: Share
               ) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows and images of all processes; None if those of one will not do, or are of another shape."""
    shape = None if found is None else found[1].shape[1:]
    shapes_found = set(share.gather(repr(shape).encode()))
    if found is None or len(shapes_found) > 1:
        return None
    rows, images = (b''.join(share.gather(array.tobytes())) for array in found)
    rows = np.frombuffer(rows, np.int64)
    order = np.argsort(rows)
    missing = np.setdiff1d(np.arange(source.num_examples), rows)
    source.skipped = [source.name_of(int(index)) for index in missing]
    source.check_bad_share()
    return rows[order], np.frombuffer(images, np.uint8).reshape(-1, *found[1].shape[1:])[order]


def _decoded_rows(source: Source, indices: np.ndarray, max_bytes: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows int64 [n], images uint8 [n, H, W, C]) of those that can be read, see `in_memory`."""
    rows, images, shape = [], [], None
    with futures.ThreadPoolExecutor() as pool:
        for first in range(0, len(indices), _DECODED_AT_ONCE):
            some = indices[first:first + _DECODED_AT_ONCE].tolist()
            for index, image in zip(some, pool.map(source.pixels, some)):
                if image is None:
                    continue
                shape = shape or image.shape
                if (image.shape != shape or max(shape) > _SMALL_SIDE
                        or math.prod(shape) * source.num_examples > max_bytes):
                    return None
                rows.append(index)
                images.append(image)
            source.check_bad_share()
    return (np.array(rows, np.int64), np.stack(images)) if images else None


def _look(source: Source) -> list[str]:
    """A note on images of one colour, or nearly black, among a sample: nothing can be learned from them."""
    if isinstance(source, Streamed):
        return []

    def judge(index):
        image = decoded(source.load(index), source.rules)
        is_flat = (image == image[0, 0]).all()
        return source.name_of(index) if is_flat or image.max() < _BLACK else ''

    judged = list(source.sampled(judge))
    flat = [name for name in judged if name]
    if not flat:
        return []
    some = ', '.join(flat[:_NAMED]) + (', ...' if len(flat) > _NAMED else '')
    return [f'{len(flat)} of {len(judged)} sampled images are of one colour or nearly black ({some}); if '
            'they should not be, check data.range and data.background.']


def _with_classes_of(train: Source, test: Source) -> Source:
    """`test` with its labels as numbers of the classes of `train`, by name."""
    if train.class_names and test.class_names and test.class_names != train.class_names:
        number = {name: label for label, name in enumerate(train.class_names)}
        unknown = [name for name in test.class_names if name not in number]
        if unknown:
            raise ValueError(f"'{test.name}', split {test.split}, has the class '{unknown[0]}', which the "
                             'training split does not have.')
        numbers = np.array([*map(number.get, test.class_names), -1], np.int32)
        test.labels, test.class_names = numbers[test.labels], train.class_names
    return test


def rooted(name: str) -> str:
    """The name of a data source with its path from the root, so that it is found from any directory."""
    kind, _, path = name.partition(':')
    return f'{kind}:{storage.absolute(path)}' if kind in ('folder', 'arrays', 'wds') else name


def _kind_and_path(name: str) -> tuple[str, str]:
    if not name:
        raise ValueError('data.source is empty: give --config.data.source=folder:PATH, a directory of images, or '
                         'another source (docs/data.md). The config of a run that was given its images as an object '
                         'names none.')
    kind, _, path = name.partition(':')
    if kind not in ('shapes', 'folder', 'arrays', 'hf', 'wds'):
        if names.is_path(name):
            return 'object', name
        path = storage.as_path(name)
        if path.startswith(('/', '.')) or storage.is_remote(path) or '/' in path and storage.exists(path):
            of_file = {'.npz': 'arrays', '.tar': 'wds'}.get(path[-4:].lower(), 'folder')
            raise ValueError(f'data.source is {name!r}, a path without a kind in front: write '
                             f'{of_file}:{name}.')
    return kind, storage.as_path(path)


def _tfds(name: str) -> Any:
    try:
        from simclr_jax.data import tfds
    except ImportError as error:
        raise ValueError(f"data.source is {name!r}: data sets of TFDS need {error.name}, pip install "
                         f"'simclr_jax[tfds]'; a directory of images is folder:PATH.") from error
    return tfds
