"""What may be brought as a source of images, what every source tells of itself, and split expressions."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from simclr_jax.data.pixels import Rules

_NAMED = 3      # of the unreadable files, in an error
_SAMPLED = 64   # images of which a source is judged before it is read


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

    Random-access sources also have `labels` int32 [N]. Where `uniform`, `images` uint8 [N, H, W, 3] lie in
    memory; else `load(index)` gives one, an encoded file as bytes or pixels uint8 [H, W, 3], and
    `name_of(index)` names it. `Streamed` ones have `stream` and `ordered` instead.
    """

    labels: np.ndarray
    images: np.ndarray
    uniform = False         # whether all images share one shape and lie in memory
    max_bad_share = 0.05    # of the examples, that may be unreadable; a caller may set another
    rules = Rules()         # by which files become pixels; a caller may set others
    held_out: str = ''      # '10%', of a part that was cut from a training split

    def __init__(self, name: str, split: str, num_examples: int, class_names: tuple[str, ...] | None):
        self.name, self.split, self.num_examples = name, split, num_examples
        self.class_names = class_names      # None when unlabelled
        self.notes: list[str] = []    # What is to be said of the data when a run begins.
        self.skipped: list[str] = []  # Names of those found unreadable so far.
        self._skipped_rows: set[int] = set()
        self._skip_lock = threading.Lock()
        if self.num_examples == 0:
            raise ValueError(f"Split '{self.split}' of '{self.name}' holds no images.")

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{'image', 'label'} of an example of random access: what a user's own source gives too."""
        return {'image': self.load(index), 'label': int(self.labels[index])}

    def load(self, index: int) -> bytes | np.ndarray:
        """An encoded file's bytes or pixels uint8 [H, W, 3]. OSError: it cannot be read."""
        raise NotImplementedError(f'{type(self).__name__} has no random access.')

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
            if index not in self._skipped_rows:
                self._skipped_rows.add(index)
                self.skipped.append(self.name_of(index))
                logging.warning('Skipping the unreadable image %s: %s', self.skipped[-1], error)

    def is_skipped(self, index: int) -> bool:
        """Whether the example is known to be unreadable."""
        return index in self._skipped_rows

    def check_bad_share(self) -> None:
        """ValueError once more than `max_bad_share` of the examples are known to be unreadable."""
        count, share = len(self.skipped), len(self.skipped) / self.num_examples
        if count and share > self.max_bad_share:
            some = ', '.join(self.skipped[:_NAMED]) + (', ...' if count > _NAMED else '')
            raise ValueError(
                f"{count} of the {self.num_examples} images of '{self.name}', split {self.split}, cannot be "
                f'read ({some}): {share:.1%}, more than data.max_bad_share = {self.max_bad_share:g}. Mend or '
                'remove them, or allow a larger share.')


def split_name(split: str) -> str:
    """'train' for 'train' and for 'train[:10%]'."""
    return _parse(split)[0]


def split_rows(split: str, num_examples: int) -> slice:
    """The rows that an expression such as 'train[100:200]' or 'train[:10%]' takes of N examples."""
    bounds = [None if bound is None
              else round(int(bound[:-1]) * num_examples / 100) if bound.endswith('%')
              else int(bound) for bound in _parse(split)[1:]]
    return slice(*bounds)


def _parse(split: str) -> tuple[str, str | None, str | None]:
    match = re.fullmatch(r'(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
    if not match:
        raise ValueError(f"Split '{split}' is not of the form name, name[a:b] or name[a%:b%].")
    return match[1], match[2], match[3]
