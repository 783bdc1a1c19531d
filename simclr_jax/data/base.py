"""What every source of images tells, and the split expressions of sources that are not TFDS."""

import dataclasses
import re


@dataclasses.dataclass
class Source:
    """One split of a data set.

    Random-access sources also have `uniform` (all images share one shape) and
    `fetch(index: int [n]) -> (images uint8 [n, H, W, 3], labels int32 [n], readable bool [n])`;
    n is 1 unless the source is uniform, and an unreadable image is replaced by the next readable
    one. Streamed sources have `stream` (see `tfds_source.StreamedSource`). Label -1 means none.
    """

    name: str
    split: str
    num_examples: int
    class_names: tuple[str, ...] | None  # None when unlabelled.

    def __post_init__(self):
        self.skipped: list[str] = []  # Files found unreadable so far.
        if self.num_examples == 0:
            raise ValueError(f"Split '{self.split}' of '{self.name}' holds no images.")

    @property
    def num_classes(self) -> int:
        """0 when unlabelled."""
        return len(self.class_names or ())


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
    return match.groups()
