"""A few images of a source: a seeded sample of it, and their pixels."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.data import sources
from simclr_jax.data.source import Source, Streamed
from simclr_jax.data.decode import BadImage, EncodedImage
from simclr_jax.data.subset import take_rows


class _Encoded(Source):
    """The encoded images of some examples of a stream, in memory, as a source of random access."""

    def __init__(self, of: Source, examples: list[dict[str, Any]]):
        self._images = [example['image'] for example in examples]
        self._indices = [example['index'] for example in examples]
        self.labels = np.array([example['label'] for example in examples], np.int32)
        super().__init__(of.name, of.split, len(examples), of.class_names)
        self.max_bad_share = of.max_bad_share

    def load(self, index: int) -> bytes:
        return self._images[index]

    def name_of(self, index: int) -> str:
        return f'example {self._indices[index]}'


def sample(source: Source, count: int, seed: int) -> tuple[Source, np.ndarray, str]:
    """At most `count` images of `source` in its order, their rows in it, and how they were chosen, in words.

    A function of (source, count, seed). Of a stream they are the first ones: TFDS shuffles a data set when
    it prepares it, and what lies further back would have to be read past.
    """
    if isinstance(source, Streamed):
        found = list(itertools.islice(
            source.ordered(shard_index=0, shard_count=1, is_decoded=False).as_numpy_iterator(), count))
        indices = np.array([example['index'] for example in found])
        words = f'the first {len(found):,} of {source.num_examples:,} as stored'
        return _Encoded(source, found), indices, words
    if source.num_examples <= count:
        return source, np.arange(source.num_examples), f'all {source.num_examples:,}'
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(source.num_examples, count, replace=False))
    return take_rows(source, indices), indices, (f'{count:,} of {source.num_examples:,}, chosen at random '
                                                 f'(seed {seed})')


def picture(source: Source, index: int) -> np.ndarray | None:
    """The pixels uint8 [H, W, 3] of an example of random access; None where it cannot be read."""
    if source.uniform:
        return source.images[index]
    try:
        image = EncodedImage(source.load(index), source.rules)
        return image.region((0, 0, image.height, image.width))
    except (BadImage, OSError):
        return None


def pictures(name: str, split: str, indices: np.ndarray, options: Mapping[str, Any]
             ) -> dict[int, np.ndarray | None]:
    """{index: pixels or None} of a split by its name; `options`: of `sources.load_source`.

    Raises FileNotFoundError or ValueError where the data are no longer there.
    """
    source = sources.load_source(name, split, **options)
    if not isinstance(source, Streamed):
        return {int(index): picture(source, int(index)) if index < source.num_examples else None
                for index in indices}
    if '[' in split:
        raise ValueError(f'{name} is streamed, and single images of a slice of it cannot be fetched')
    found = {}
    for index in map(int, indices):
        rows, _, _ = sample(sources.load_source(name, f'{split}[{index}:{index + 1}]', **options), 1, 0)
        found[index] = picture(rows, 0)
    return found
