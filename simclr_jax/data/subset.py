"""Some of the examples of a source with random access, as a source: given rows, slices, a held-out part."""

import hashlib

import numpy as np

from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.source import Source, Streamed, split_rows

_SLICES, _HELD_OUT = 0x511CE, 0x4E1D    # seeds: the parts of a data set are the same in every run


def take_rows(source: Source, rows: np.ndarray, *, split: str = '') -> Source:
    """The examples `rows` [n] of `source`, in that order; it keeps name, classes and, unless given, split.

    ValueError for a source that is streamed.
    """
    labels = labels_of(source)
    part = ArraySource(source.name, split or source.split, source.images[rows], labels[rows],
                       source.class_names) if source.uniform else _Rows(source, rows, split)
    part.max_bad_share, part.rules = source.max_bad_share, source.rules
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
    part.notes = list(source.notes)
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
    rng, held_out = np.random.default_rng(_HELD_OUT), []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * percent / 100)), len(members) - 1)
        held_out.append(members[:count])
    held_out = np.sort(np.concatenate(held_out))
    if not held_out.size:       # each class has one image
        held_out = np.arange(1)
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    parts = (take_rows(source, train), take_rows(source, held_out, split=f'{percent:g}% of {source.split}'))
    parts[0].notes, parts[1].held_out = list(source.notes), f'{percent:g}%'
    if source.uniform:      # what could not be read is no row of either
        parts[0].skipped = list(source.skipped)
    return parts


def _even_order(labels: np.ndarray) -> np.ndarray:
    """A seeded order of all examples [N] in which each class is spread evenly."""
    rng, place = np.random.default_rng(_SLICES), np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.permutation(len(labels)), place))


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
