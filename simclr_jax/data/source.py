"""What may be brought as a source of images, what every source tells of itself, and parts of sources."""

import hashlib
import re
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from simclr_jax.data.decode import BadImage, Rules, decoded
from simclr_jax.data.labels import members

_NAMED = 3      # of the unreadable files, in an error
_SAMPLED = 64   # images of which a source is judged before it is read
_SLICES_SEED, _HOLD_OUT_SEED = 0x511CE, 0x4E1D  # the parts of a data set are the same in every run


@runtime_checkable
class RandomAccess(Protocol):
    """`len(source)` and `source[i]` -> {'image': ..., 'label': int (optional)}: grain's random access.

    What an image may be, and which other items are taken: `items.as_source`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class Streamed(Protocol):
    """A source whose examples come in an order of their own (see `tfds.StreamedSource`)."""

    def stream(self, *, seed: int, start: int, shard_index: int, shard_count: int) -> Any:
        """An endless tf.data set of {'image', 'label', 'epoch', 'index'}, shuffled, from position `start`."""

    def ordered(self, *, shard_index: int, shard_count: int, is_decoded: bool = True) -> Any:
        """One pass over this shard's examples, likewise, of epoch 0."""


class Source:
    """One split of a data set; label -1 means none.

    Random-access sources also have `labels` int32 [N]. Where `uniform`, `images` uint8 [N, H, W, C] lie in
    memory; else `load(index)` gives one, an encoded file as bytes or pixels uint8 [H, W, C], and
    `name_of(index)` names it. `Streamed` ones have `stream` and `ordered` instead.
    """

    labels: np.ndarray
    images: np.ndarray
    uniform = False         # whether all images share one shape and lie in memory
    is_remote = False       # whether every image is a request, which takes long and no processor
    max_bad_share = 0.05    # of the examples, that may be unreadable; a caller may set another
    rules = Rules()         # by which files become pixels; a caller may set others
    held_out: str = ''      # '10%', of a part that was cut from a training split

    def __init__(self, name: str, split: str, num_examples: int, class_names: tuple[str, ...] | None):
        self.name, self.split, self.num_examples = name, split, num_examples
        self.class_names = class_names      # None when unlabelled
        self.notes: list[str] = []    # What is to be said of the data when a run begins.
        self.skipped: list[str] = []  # Names of those found unreadable so far.
        self.unreadable: dict[int, str] = {}      # Why, by their numbers; an error itself would hold its image.
        self._skip_lock = threading.Lock()
        if self.num_examples == 0:
            raise ValueError(f"Split '{self.split}' of '{self.name}' holds no images.")

    def read_like(self, source: 'Source') -> None:
        """Takes the rules, the notes and the share that may be unreadable from the source of these images."""
        self.rules, self.notes, self.max_bad_share = source.rules, list(source.notes), source.max_bad_share
        self.is_remote = source.is_remote

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{'image', 'label'} of an example of random access: what a user's own source gives too."""
        return {'image': self.load(index), 'label': int(self.labels[index])}

    def load(self, index: int) -> bytes | np.ndarray:
        """An encoded file's bytes or pixels uint8 [H, W, C]. OSError: it cannot be read."""
        raise NotImplementedError(f'{type(self).__name__} has no random access.')

    def pixels(self, index: int) -> np.ndarray | None:
        """uint8 [H, W, C] of an example; None of one that cannot be read, which is noted by `skip`."""
        try:
            return decoded(self.load(index), self.rules)
        except (BadImage, OSError) as error:
            self.skip(index, error)

    @property
    def channels(self) -> int:
        """C of its images."""
        return self.rules.channels

    @property
    def num_classes(self) -> int:
        """0 when unlabelled."""
        return len(self.class_names or ())

    def name_of(self, index: int) -> str:
        """What a message calls an example."""
        return f'example {index}'

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with the number of examples, the classes, the labels, and some of the images.

        with_times: also with the times of files, where there are any.
        """
        digest = hashlib.sha256(repr((self.num_examples, self.class_names)).encode())
        digest.update(self.labels.tobytes())
        for image in self.sampled(self.load):
            digest.update(image if isinstance(image, bytes) else b'' if image is None else image.tobytes())
        return digest.hexdigest()

    def sampled(self, read: Callable[[int], Any]) -> Iterator[Any]:
        """read(index) of a few examples from all over the source; None of what cannot be read."""
        for index in np.unique(np.linspace(0, self.num_examples - 1, _SAMPLED, dtype=int)).tolist():
            try:
                yield read(index)
            except Exception:       # it is skipped, and named, where it is met; Pillow's errors are many
                yield None

    def skip(self, index: int, error: Exception) -> None:
        """Notes that an example cannot be read: in `skipped` and, once, in the log. From any thread."""
        with self._skip_lock:
            if index not in self.unreadable:
                self.unreadable[index] = str(error)
                self.skipped.append(self.name_of(index))
                logging.warning('Skipping the unreadable image %s: %s', self.skipped[-1], self.unreadable[index])

    def check_bad_share(self) -> None:
        """ValueError once more than `max_bad_share` of the examples are known to be unreadable."""
        count, share = len(self.skipped), len(self.skipped) / self.num_examples
        if count and share > self.max_bad_share:
            some = ', '.join(self.skipped[:_NAMED]) + (', ...' if count > _NAMED else '')
            raise ValueError(
                f"{count} of the {self.num_examples} images of '{self.name}', split {self.split}, cannot be "
                f'read ({some}): {share:.1%}, more than data.max_bad_share = {self.max_bad_share:g}. Repair or '
                'remove them, or allow a larger share.')


class ArraySource(Source):
    """images uint8 [N, H, W, C] and labels int32 [N] in memory."""

    uniform = True

    def __init__(self, name: str, split: str, images: np.ndarray, labels: np.ndarray,
                 class_names: tuple[str, ...] | None):
        super().__init__(name, split, len(images), class_names)
        self.images, self.labels = images, labels

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [H, W, C]."""
        return self.images[index]


class _Rows(Source):
    """Rows of a source whose images are read one by one."""

    def __init__(self, source: Source, rows: np.ndarray, split: str):
        self._source, self._rows = source, rows
        self.labels = source.labels[rows]
        super().__init__(source.name, split or source.split, len(rows), source.class_names)

    def load(self, index: int) -> bytes | np.ndarray:
        return self._source.load(int(self._rows[index]))

    def name_of(self, index: int) -> str:
        return self._source.name_of(int(self._rows[index]))

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with that of the whole, and with the rows."""
        whole = self._source.fingerprint(with_times=with_times)
        return hashlib.sha256(whole.encode() + self._rows.tobytes()).hexdigest()


# ---- parts -----------------------------------------------------------------------------------------------


def take_rows(source: Source, rows: np.ndarray, *, split: str = '') -> Source:
    """The examples `rows` [n] of `source`, in that order; it keeps name, classes and, unless given, split.

    ValueError for a source that is streamed.
    """
    labels = labels_of(source)
    part = ArraySource(source.name, split or source.split, source.images[rows], labels[rows],
                       source.class_names) if source.uniform else _Rows(source, rows, split)
    part.read_like(source)
    return part


def labels_of(source: Source) -> np.ndarray:
    """int32 [N]; ValueError for a source that is streamed: its examples come in an order of its own."""
    if isinstance(source, Streamed):
        raise ValueError(f'{source.name} is read as a stream, from which single images cannot be chosen: set '
                         "data.cache, use a folder, or a ready subset such as 'imagenet2012_subset/1pct'.")
    return source.labels


def take_split(source: Source, split: str, *, is_sorted: bool = False) -> Source:
    """The part of a whole split that an expression such as 'train[:80%]' names.

    Parts are cut from a seeded order in which every stretch has its share of each class, the same on every
    machine; 'train[:80%]' and 'train[80%:]' have no image in common. `is_sorted` cuts the order of the
    source itself, as runs did that were begun before parts were drawn.
    """
    rows = split_rows(split, source.num_examples)
    if rows == slice(None):
        return source
    order = np.arange(source.num_examples) if is_sorted else _even_order(labels_of(source))
    part = take_rows(source, np.sort(order[rows]), split=split)
    if not is_sorted:
        part.notes.append(f'{source.name}, {split}: images drawn at random, evenly of each class, the same '
                          'in every run.')
    return part


def hold_out(source: Source, percent: float) -> tuple[Source, Source]:
    """(what is left to train on, a part to measure on): `percent` of each class, at least one of two or more.

    ValueError: percent is not between 0 and 100, or nothing is left of one of the two.
    """
    labels = labels_of(source)
    if not 0 < percent < 100 or len(labels) < 2:
        raise ValueError(f"data.test_split is '{percent:g}%': of the {len(labels)} images of '{source.name}' "
                         'that leaves nothing to train on, or nothing to measure on.')
    rng, held_out = np.random.default_rng(_HOLD_OUT_SEED), []
    for _, rows in members(labels):
        rows = rng.permutation(rows)
        held_out.append(rows[:min(max(1, round(len(rows) * percent / 100)), len(rows) - 1)])
    held_out = np.sort(np.concatenate(held_out))
    if not held_out.size:       # each class has one image
        held_out = np.arange(1)
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    parts = (take_rows(source, train), take_rows(source, held_out, split=f'{percent:g}% of {source.split}'))
    parts[1].notes, parts[1].held_out = [], f'{percent:g}%'
    if source.uniform:      # what could not be read is no row of either
        parts[0].skipped = list(source.skipped)
    return parts


def _even_order(labels: np.ndarray) -> np.ndarray:
    """A seeded order of all examples [N] in which each class is spread evenly."""
    rng, place = np.random.default_rng(_SLICES_SEED), np.empty(len(labels))
    for _, rows in members(labels):
        place[rng.permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((rng.permutation(len(labels)), place))


def split_name(split: str, available: Collection[str] | None = None, name: str = '') -> str:
    """'train' for 'train' and for 'train[:10%]'; ValueError unless it is among those `available` of source `name`."""
    whole = _parse(split)[0]
    if available is not None and whole not in available:
        raise ValueError(f"'{name}' has no split '{whole}'; it has {', '.join(available)}.")
    return whole


def split_rows(split: str, num_examples: int) -> slice:
    """The rows that an expression such as 'train[100:200]' or 'train[:10%]' takes of N examples."""
    return slice(*(None if bound is None
                   else round(int(bound[:-1]) * num_examples / 100) if bound.endswith('%')
                   else int(bound) for bound in _parse(split)[1:]))


def _parse(split: str) -> tuple[str, str | None, str | None]:
    match = re.fullmatch(r'(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
    if not match:
        raise ValueError(f"Split '{split}' is not of the form name, name[a:b] or name[a%:b%].")
    return match[1], match[2], match[3]
