"""Finds a data source by its name. TensorFlow is imported for TFDS data sets only."""

import os
from typing import Any, Mapping

from simclr_jax.data import arrays, folder, shapes
from simclr_jax.data.source import Source

_IN_MEMORY_BYTES = 1 << 30


def load_source(name: str, split: str, *, data_dir: str | None = None, download: bool = False,
                image_size: int = 32, in_memory_bytes: int = _IN_MEMORY_BYTES, cache: str = '',
                decode_once: bool = False, cache_dir: str = '', max_bad_share: float = Source.max_bad_share,
                is_lead: bool = True) -> Source:
    """One split of a data source, ready to be read by `pipeline`.

    Args:
        name: 'shapes' or 'shapes:N' (embedded; N training images), 'folder:PATH',
            'arrays:PATH.npz', or a TFDS name, as 'cifar10' or 'imagenet2012_subset/1pct:5.0.0'.
        split: a split of the source; slices such as 'train[:10%]' work everywhere.
        data_dir: where TFDS data sets were prepared; None or '' is TFDS's own default.
        download: let TFDS download and prepare the data set. Without it nothing touches a network.
        image_size: of the embedded shapes; other sources keep their own sizes.
        in_memory_bytes: a TFDS split that takes more, decoded, is streamed from its files.
        decode_once: read a folder of small images that takes no more into memory (see `folder.in_memory`).
        cache: 'decoded' or 'resized:N': the images are read from a cache below `cache_dir`, which is built
            where it is missing (see `cache.cached`). What lies in memory needs none.
        max_bad_share: of the examples, that may be unreadable before a ValueError says so.
        is_lead: whether this process shows how a cache grows.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: they are there and will not do, or have no such split.
    """
    source = _load(name, split, data_dir, download, image_size, in_memory_bytes)
    source.max_bad_share = max_bad_share
    if decode_once and isinstance(source, folder.FolderSource):
        source = folder.in_memory(source, in_memory_bytes) or source
    if cache and not source.uniform:
        from simclr_jax.data.cache import cached
        source = cached(source, cache, os.path.expanduser(cache_dir), is_lead=is_lead)
    return source


def _load(name: str, split: str, data_dir: str | None, download: bool, image_size: int, in_memory_bytes: int
          ) -> Source:
    kind, path = _kind_and_path(name)
    if kind == 'shapes':
        return arrays.shapes_source(name, split, image_size)
    if kind == 'folder':
        return folder.FolderSource(name, split, path)
    if kind == 'arrays':
        return arrays.npz_source(name, split, path)
    from simclr_jax.data import tfds as tfds_source
    return tfds_source.load(name, split, data_dir=data_dir or None, download=download,
                            in_memory_bytes=in_memory_bytes)


def options(data: Mapping[str, Any], *, image_size: int, is_lead: bool) -> dict[str, Any]:
    """The keywords of `load_source` that a config's `data` block gives."""
    return {'data_dir': data['dir'], 'download': data['download'], 'cache': data['cache'],
            'cache_dir': data['cache_dir'], 'max_bad_share': data['max_bad_share'], 'image_size': image_size,
            'is_lead': is_lead, 'decode_once': True}


def available_splits(name: str, *, data_dir: str | None = None) -> tuple[str, ...]:
    """The splits of a data source; the errors of `load_source` where the data are not there."""
    kind, path = _kind_and_path(name)
    if kind == 'shapes':
        return tuple(shapes.DEFAULT_SIZES)
    if kind == 'folder':
        return folder.folder_splits(path)
    if kind == 'arrays':
        return arrays.npz_splits(path)
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
        available = available_splits(name, data_dir=data_dir)
        split = next((known for known in ('test', 'validation', 'val') if known in available), '')
    return load_source(name, split, data_dir=data_dir, **options) if split else None


def _kind_and_path(name: str) -> tuple[str, str]:
    kind, _, path = name.partition(':')
    return kind, os.path.expanduser(path)
