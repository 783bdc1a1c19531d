"""Some of the examples of a source with random access, as a source."""

import numpy as np

from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.source import Source


def take_rows(source: Source, rows: np.ndarray) -> Source:
    """The examples `rows` [n] of `source`, in that order; it keeps name, classes and split.

    ValueError for a source that is streamed.
    """
    labels = labels_of(source)
    if source.uniform:
        return ArraySource(source.name, source.split, source.images[rows], labels[rows], source.class_names)
    return _Rows(source, rows)


def labels_of(source: Source) -> np.ndarray:
    """int32 [N]; ValueError for a source that is streamed: its examples come in an order of its own."""
    if not hasattr(source, 'labels'):
        raise ValueError(f'{source.name} is read as a stream, from which single images cannot be chosen: set '
                         "data.cache, use a folder, or a ready subset such as 'imagenet2012_subset/1pct'.")
    return source.labels


class _Rows(Source):
    """Rows of a source whose images are read one by one."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source, self._rows = source, rows
        self.labels, self.max_bad_share = source.labels[rows], source.max_bad_share
        super().__init__(source.name, source.split, len(rows), source.class_names)

    def load(self, index: int) -> bytes | np.ndarray:
        return self._source.load(int(self._rows[index]))

    def name_of(self, index: int) -> str:
        return self._source.name_of(int(self._rows[index]))
