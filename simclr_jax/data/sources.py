"""Finds a data source by its name. TensorFlow is imported for TFDS data sets only."""

from concurrent import futures
import math
import os
from typing import Any, Mapping

import numpy as np

from simclr_jax.config import names
from simclr_jax.data import arrays, folder, items, shapes
from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.decode import BadImage, decoded
from simclr_jax.data.items import as_source
from simclr_jax.data.source import Source, Streamed

__all__ = ['as_source', 'available_splits', 'load_source', 'load_test_source', 'options']

_IN_MEMORY_BYTES = 1 << 30
_SMALL_SIDE = 128
_DECODED_AT_ONCE = 256      # files, before the bad ones among them are counted


def load_source(name: str, split: str, *, data_dir: str | None = None, download: bool = False,
                image_size: int = 32, in_memory_bytes: int = _IN_MEMORY_BYTES, cache: str = '',
                decode_once: bool = False, cache_dir: str = '', max_bad_share: float = Source.max_bad_share,
                is_lead: bool = True, arguments: Mapping[str, Any] | None = None) -> Source:
    """One split of a data source, ready to be read by `pipeline`.

    Args:
        name: 'shapes' or 'shapes:N' (embedded; N training images), 'folder:PATH', 'arrays:PATH.npz',
            'package.module:Name' (what it makes goes through `as_source`), or a TFDS name, as 'cifar10' or
            'imagenet2012_subset/1pct:5.0.0'.
        split: a split of the source; slices such as 'train[:10%]' work everywhere.
        data_dir: where TFDS data sets were prepared; None or '' is TFDS's own default.
        download: let TFDS download and prepare the data set. Without it nothing touches a network.
        image_size: of the embedded shapes; other sources keep their own sizes.
        in_memory_bytes: a TFDS split that takes more, decoded, is streamed from its files.
        decode_once: read small images of one shape that take no more into memory (see `in_memory`).
        cache: 'decoded' or 'resized:N': the images are read from a cache below `cache_dir`, which is built
            where it is missing (see `cache.cached`). What lies in memory needs none.
        max_bad_share: of the examples, that may be unreadable before a ValueError says so.
        is_lead: whether this process shows how a cache grows.
        arguments: keywords for 'package.module:Name'.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: they are there and will not do, or have no such split.
    """
    source = _load(name, split, data_dir, download, image_size, in_memory_bytes, arguments)
    source.max_bad_share = max_bad_share
    if decode_once and not source.uniform and not isinstance(source, Streamed):
        source = in_memory(source, in_memory_bytes) or source
    if cache and not source.uniform:
        from simclr_jax.data.cache import cached
        source = cached(source, cache, os.path.expanduser(cache_dir), is_lead=is_lead)
    return source


def _load(name: str, split: str, data_dir: str | None, download: bool, image_size: int, in_memory_bytes: int,
          arguments: Mapping[str, Any] | None) -> Source:
    kind, path = _kind_and_path(name)
    if kind == 'shapes':
        return arrays.shapes_source(name, split, image_size)
    if kind == 'folder':
        return folder.FolderSource(name, split, path)
    if kind == 'arrays':
        return arrays.npz_source(name, split, path)
    if kind == 'object':
        return as_source(_object(name), split, name=name, arguments=arguments)
    from simclr_jax.data import tfds as tfds_source
    return tfds_source.load(name, split, data_dir=data_dir or None, download=download,
                            in_memory_bytes=in_memory_bytes)


def in_memory(source: Source, max_bytes: int = _IN_MEMORY_BYTES) -> ArraySource | None:
    """The images of `source`, decoded once; None unless they are small, of one shape, and fit.

    Small is up to 128 pixels a side: of larger ones a crop seldom needs all. What cannot be read is left out
    of the array, and named in `skipped`.
    """
    def decode(index):
        try:
            return decoded(source.load(index), source.rules)
        except (BadImage, OSError) as error:
            source.skip(index, error)
            return None

    rows, images, shape = [], [], None
    with futures.ThreadPoolExecutor() as pool:
        for first in range(0, source.num_examples, _DECODED_AT_ONCE):
            indices = range(first, min(first + _DECODED_AT_ONCE, source.num_examples))
            for index, image in zip(indices, pool.map(decode, indices)):
                if image is None:
                    continue
                shape = shape or image.shape
                if (image.shape != shape or max(shape) > _SMALL_SIDE
                        or math.prod(shape) * source.num_examples > max_bytes):
                    return None
                rows.append(index)
                images.append(image)
            source.check_bad_share()
    result = ArraySource(source.name, source.split, np.stack(images), source.labels[rows], source.class_names)
    result.skipped, result.notes = list(source.skipped), list(source.notes)
    result.max_bad_share, result.rules = source.max_bad_share, source.rules
    return result


def options(data: Mapping[str, Any], *, image_size: int, is_lead: bool) -> dict[str, Any]:
    """The keywords of `load_source` that a config's `data` block gives."""
    return {'data_dir': data['dir'], 'download': data['download'], 'cache': data['cache'],
            'cache_dir': data['cache_dir'], 'max_bad_share': data['max_bad_share'], 'image_size': image_size,
            'is_lead': is_lead, 'decode_once': True, 'arguments': dict(data.get('arguments', {}))}


def available_splits(name: str, *, data_dir: str | None = None, arguments: Mapping[str, Any] | None = None
                     ) -> tuple[str, ...]:
    """The splits of a data source; the errors of `load_source` where the data are not there."""
    kind, path = _kind_and_path(name)
    if kind == 'shapes':
        return tuple(shapes.DEFAULT_SIZES)
    if kind == 'folder':
        return folder.folder_splits(path)
    if kind == 'arrays':
        return arrays.npz_splits(path)
    if kind == 'object':
        return items.splits_of(_object(name), arguments)
    from simclr_jax.data import tfds as tfds_source
    return tfds_source.splits(name, data_dir=data_dir or None)


def load_test_source(name: str, split: str, *, data_dir: str | None = None, **options) -> Source | None:
    """The split to measure on, or None where there is none.

    Args:
        split: one that must exist; '' takes the first of test, validation and val; 'none' is None.
        **options: of `load_source`.
    """
    if split == 'none':
        return None
    if not split:
        available = available_splits(name, data_dir=data_dir, arguments=options.get('arguments'))
        split = next((known for known in ('test', 'validation', 'val') if known in available), '')
    return load_source(name, split, data_dir=data_dir, **options) if split else None


def _kind_and_path(name: str) -> tuple[str, str]:
    kind, _, path = name.partition(':')
    if kind not in ('shapes', 'folder', 'arrays') and names.is_path(name):
        return 'object', name
    return kind, os.path.expanduser(path)


def _object(name: str) -> Any:
    return names.resolve(name, 'data.source')
