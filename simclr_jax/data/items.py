"""Sources that a user brings: lists, torch and Hugging Face data sets, grain's, all by length and items."""

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from PIL import Image

from simclr_jax import storage
from simclr_jax.data.decode import (
    CHANNELS,
    DEFAULT,
    MOST_CHANNELS,
    BadImage,
    Rules,
    of_array,
    of_image,
    resolved,
)
from simclr_jax.data.labels import as_classes
from simclr_jax.data.source import RandomAccess, Source, Streamed, split_name, take_split

_WANTED = ("{'image': ..., 'label': int (optional)} or (image, label), the image as uint8 [H, W] or [H, W, "
           "C], a PIL image, an encoded file's bytes, or a path")
_AT_ONCE = 256      # items that threads read for their labels


def as_source(anything: Any, split: str = 'train', *, name: str = '', arguments: Mapping[str, Any] | None = None,
              rules: Rules = DEFAULT, one_at_a_time: bool = False) -> Source:
    """What a user brings, as a source.

    Args:
        anything: a `Source`; a list, a torch or Hugging Face data set, a source of grain, or whatever else
            has a length and items; a dictionary of such by split; or a class or function that makes one,
            called with `split=` if it takes that, and `arguments`. An item is {'image', 'label'}, a pair
            (image, label) or an image alone. An image is integers or floats [H, W] or [H, W, C] of 1 to 16
            channels, a PIL image, the bytes of an encoded file, or a path. A label is an integer or a
            string; None or -1 is no label. Items are read by several threads at once. Where the data set holds
            apart its `labels` or `targets`, its `class_names` or `classes` (class i is the i-th), or the `names`
            of its items, these are taken.
        split: which is asked for; 'train[:80%]' takes a part (see `source.take_split`).
        name: for messages; '' takes that of the type.
        rules: by which pixels become uint8.
        one_at_a_time: for items that several threads must not read at once.

    Raises:
        ValueError: it has no items of this kind: which one, what it holds and what is wanted.
    """
    name = name or _name_of(anything)
    whole = split_name(split)
    is_one_split = makes(anything) and not _takes_split(anything)
    if makes(anything):
        anything = _called(anything, whole, arguments or {}, name)
    elif arguments:
        raise ValueError(f"data.arguments are for a class or function that makes a source: '{name}' is one already.")
    if isinstance(anything, Source):
        return anything
    if isinstance(anything, Mapping):
        anything = anything[split_name(split, anything, name)]
    elif whole != 'train' and is_one_split:
        raise ValueError(f"'{name}' takes no argument `split`, so its only split is 'train': "
                         f"'{whole}' was asked for.")
    if isinstance(anything, Streamed | str | bytes) or not isinstance(anything, RandomAccess):
        raise ValueError(f"'{name}' is a {type(anything).__name__}, which is not a source of images: give "
                         f'something with len(source) and source[i] -> {_WANTED}.')
    return take_split(ItemSource(anything, whole, name=name, rules=rules, one_at_a_time=one_at_a_time), split)


class ItemSource(Source):
    """The items of a data set of the user's own, read when they are asked for."""

    def __init__(self, items: RandomAccess, split: str, *, name: str, rules: Rules, one_at_a_time: bool = False):
        super().__init__(name, split, len(items), None)
        self._turn = threading.Lock() if one_at_a_time else contextlib.nullcontext()
        self.rules, self._items, self._keys = rules, items, ('image', 'label')
        labels = getattr(items, 'labels', getattr(items, 'targets', None))          # the latter are torchvision's
        class_names = getattr(items, 'class_names', getattr(items, 'classes', None))
        datasets = sys.modules.get('datasets')
        if datasets is not None and isinstance(items, datasets.Dataset):
            self._items, self._keys, labels, class_names = _of_hugging_face(items, datasets)
        self.rules, notes = resolved(rules, self.sampled(self._plain))
        self._check_first()
        labels = self._read_labels() if labels is None else labels
        if len(labels) != self.num_examples:
            raise ValueError(f"'{name}' has {self.num_examples} items but {len(labels)} labels.")
        self.labels, self.class_names, self.notes = as_classes(labels, class_names, f"'{name}'")
        self.notes += notes

    def name_of(self, index: int) -> str:
        """The item's own name, or its number."""
        names = getattr(self._items, 'names', None)
        return super().name_of(index) if names is None else names[index]

    def load(self, index: int) -> bytes | np.ndarray:
        """Image `index`, an encoded file's bytes or uint8 [H, W, C]. OSError: it cannot be read."""
        image = self._plain(index)
        try:
            return image if isinstance(image, bytes) else of_image(image, self.rules) if isinstance(
                image, Image.Image) else of_array(image, self.rules)
        except BadImage:
            raise
        except ValueError as error:
            held = type(self._split(index)[0]).__name__
            raise ValueError(f"Item {index} of '{self.name}' holds the image {held} {error}.") from error

    def _plain(self, index: int) -> bytes | Image.Image | np.ndarray:
        """Image `index` as bytes of a file, an image of Pillow, or numbers [H, W] or [H, W, C]."""
        image = self._split(index)[0]
        if isinstance(image, Mapping) and {'bytes', 'path'} <= set(image):      # Hugging Face's, undecoded
            image = image['bytes'] if image['bytes'] is not None else image['path']
        if isinstance(image, bytes | bytearray | memoryview):
            return bytes(image)
        if isinstance(image, str | os.PathLike):
            return storage.read_bytes(storage.as_path(image))
        if isinstance(image, Image.Image):
            return image
        if image is None:
            raise BadImage('it has no image')
        array = np.asarray(image)
        if array.ndim < 2 and array.dtype.kind in 'biuf':
            raise ValueError(f"Item {index} of '{self.name}' is a {type(image).__name__}: expected {_WANTED}.")
        taken = CHANNELS if self.rules.channels in (0, 3) else (self.rules.channels,)
        if array.ndim == 3 and array.shape[-1] not in taken and (
                array.shape[0] in taken or array.shape[0] <= MOST_CHANNELS < array.shape[-1]):
            array = array.transpose(1, 2, 0)        # torch's [C, H, W]
        return array

    def _split(self, index: int) -> tuple[Any, Any]:
        """(image, label or None) of an item, as they are."""
        try:
            with self._turn:
                item = self._items[index]
        except OSError:     # an image that cannot be read: it is skipped
            raise
        except Exception as error:
            raise ValueError(f"Item {index} of '{self.name}' cannot be read: {type(error).__name__}: {error}"
                             ) from error
        image, label = self._keys
        if isinstance(item, Mapping):
            if image not in item and {'bytes', 'path'} <= set(item):
                return item, None
            if image not in item:
                raise ValueError(f"Item {index} of '{self.name}' has the keys {', '.join(map(str, item))}: "
                                 f'expected {_WANTED}.')
            return item[image], item.get(label)
        if isinstance(item, tuple | list):
            if not 1 <= len(item) <= 2:
                raise ValueError(f"Item {index} of '{self.name}' is a {type(item).__name__} of {len(item)}: "
                                 f'expected {_WANTED}.')
            return item[0], item[1] if len(item) == 2 else None
        return item, None

    def _check_first(self) -> None:
        """ValueError, at once, where the first item that can be read will not do, or none can be."""
        for index in range(self.num_examples):
            try:
                self.load(index)
                return
            except (BadImage, OSError) as error:
                self.skip(index, error)
        raise ValueError(f"No item of '{self.name}' can be read; item 0: {self.unreadable[0]}.")

    def _read_labels(self) -> list:
        """The labels of all items; that images are read for them costs a pass, and is said."""
        if not isinstance(self._items, list | tuple) and all(
                label is None for label in self.sampled(lambda index: self._split(index)[1])):
            return [None] * self.num_examples
        with futures.ThreadPoolExecutor() as pool:
            return list(pool.map(self._label, range(self.num_examples), chunksize=_AT_ONCE))

    def _label(self, index: int) -> Any:
        try:
            return self._split(index)[1]
        except (BadImage, OSError) as error:
            self.skip(index, error)
            return None


def splits_of(anything: Any, arguments: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The splits that `as_source` can be asked for; what takes a `split` is taken to have train and test."""
    if makes(anything):
        if _takes_split(anything):
            return ('train', 'test')
        anything = _called(anything, 'train', arguments or {}, _name_of(anything))
    return tuple(anything) if isinstance(anything, Mapping) else ('train',)


def makes(anything: Any) -> bool:
    """Whether it is a class or a function that is to be called."""
    return isinstance(anything, type) or callable(anything) and not isinstance(anything, RandomAccess)


def _takes_split(make: Callable) -> bool:
    parameters = inspect.signature(make).parameters
    return 'split' in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _called(make: Callable, split: str, arguments: Mapping[str, Any], name: str) -> Any:
    keywords = {'split': split, **arguments} if _takes_split(make) else dict(arguments)
    try:
        return make(**keywords)
    except Exception as error:
        given = ', '.join(f'{key}={value!r}' for key, value in keywords.items())
        fix = ": data.test_split='none' asks for no split to measure on" if split == 'test' else ''
        raise ValueError(f"data.source '{name}' cannot be made with ({given}): {type(error).__name__}: "
                         f'{error}{fix}.') from error


def _name_of(anything: Any) -> str:
    return anything.__qualname__ if isinstance(anything, type) or inspect.isfunction(anything) else type(
        anything).__name__


def first_feature(features: Mapping[str, Any], kind: type, prefer: str) -> str | None:
    """The key of the top-level feature of exactly this kind; of several, the preferred one."""
    keys = [key for key, feature in features.items() if type(feature) is kind]
    return prefer if prefer in keys else min(keys, default=None)


def _of_hugging_face(items: Any, datasets: Any
                     ) -> tuple[Any, tuple[str, str], Sequence | None, Sequence[str] | None]:
    """(items of undecoded images, keys of image and label, labels, class names), by the features' types."""
    image = first_feature(items.features, datasets.Image, 'image')
    label = first_feature(items.features, datasets.ClassLabel, 'label')
    if image is None:
        return items, ('image', 'label'), None, None
    items = items.cast_column(image, datasets.Image(decode=False))
    label = label or ('label' if 'label' in items.features else None)
    labels = None if label is None else items.with_format('numpy')[label][:]
    if labels is not None and labels.dtype.kind not in 'iubU':      # numpy has no null
        labels = list(items.with_format(None)[label])
    if label is not None and type(items.features[label]) is datasets.ClassLabel:
        return items, (image, label), labels, items.features[label].names
    return items, (image, label or 'label'), labels if label else [None] * len(items), None
