"""Everything random of a view on the host: a pure function of (seed, epoch, index, view).

The numbers come from fixed places of one Philox stream, so that switching one operation on or off leaves
the choices of all the others as they were. numpy only.

Sources of the crop laws: SampleDistortedBoundingBoxV2 of TensorFlow, as google-research/simclr
tf2/data_util.py calls it; RandomResizedCrop of torchvision.
"""

import math
import threading
from collections.abc import Iterable

import numpy as np

from simclr_jax.views.fields import OPS, Crop, Operation

Box = tuple[int, int, int, int]     # (top, left, height, width), in pixels

# The most numbers that one operation takes: jitter's yes or no, its order and four amounts.
_DRAWS_PER_OP = 6
_TABLE = len(OPS) * _DRAWS_PER_OP
_DRAWS_PER_TRY = 4
_TRIES = {'tf': 100, 'uniform': 10}
_FIRST_TRIES = 4        # drawn with the table; most crops need no more
_MIN_COVERED = 0.1      # share of the image that a crop of law 'tf' covers, as the official code asks
_UNIFORM, _NORMAL = 1, 2


def crop_box(tries: Iterable[tuple[float, float, float, float]], height: int, width: int, crop: Crop) -> Box:
    """Draws a crop of an image of `height` x `width` pixels, by the laws of `ops.crop_box`.

    Args:
        tries: numbers in [0, 1), four for each try; the first try that fits counts.
        crop: its law, area and aspect.

    Returns:
        The box. Where no try fits: the whole image (law 'tf') or the largest central crop with an aspect
        ratio within the limits ('uniform').
    """
    draw = _tf_box if crop.law == 'tf' else _uniform_area_box
    for numbers in tries:
        box = draw(numbers, height, width, crop.area, crop.aspect)
        if box is not None:
            return box
    if crop.law == 'tf':
        return 0, 0, height, width
    crop_height = max(min(height, round(width / crop.aspect[0])), 1)
    crop_width = max(min(width, round(height * crop.aspect[1])), 1)
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _tf_box(numbers: tuple, height: int, width: int, area: tuple, aspect: tuple) -> Box | None:
    """One attempt of TensorFlow's kernel, rounding for rounding; its float32 are doubles here."""
    for_aspect, for_height, for_top, for_left = numbers
    ratio = aspect[0] + for_aspect * (aspect[1] - aspect[0])
    least, greatest = area[0] * height * width, area[1] * height * width
    crop_height, highest = round(math.sqrt(least / ratio)), round(math.sqrt(greatest / ratio))
    if round(highest * ratio) > width:
        highest = int((width + 0.5 - 1e-7) / ratio)
        highest -= round(highest * ratio) > width
    highest = min(highest, height)
    crop_height = min(crop_height, highest)
    crop_height += int(for_height * (highest - crop_height + 1))
    crop_width = round(crop_height * ratio)
    if crop_height * crop_width < least:        # by rounding: one pixel more or less may do
        crop_height += 1
        crop_width = round(crop_height * ratio)
    if crop_height * crop_width > greatest:
        crop_height -= 1
        crop_width = round(crop_height * ratio)
    size = crop_height * crop_width
    if not (0 < crop_height <= height and 0 < crop_width <= width and least <= size <= greatest):
        return None
    if size < _MIN_COVERED * height * width:
        return None
    # The kernel never takes the last place, but where the crop fills the image.
    top, left = int(for_top * (height - crop_height)), int(for_left * (width - crop_width))
    return top, left, crop_height, crop_width


def _uniform_area_box(numbers: tuple, height: int, width: int, area: tuple, aspect: tuple) -> Box | None:
    for_area, for_aspect, for_top, for_left = numbers
    size = height * width * (area[0] + for_area * (area[1] - area[0]))
    ratio = math.exp(math.log(aspect[0]) + for_aspect * math.log(aspect[1] / aspect[0]))
    crop_height, crop_width = round(math.sqrt(size / ratio)), round(math.sqrt(size * ratio))
    if not (0 < crop_height <= height and 0 < crop_width <= width):
        return None
    return (int(for_top * (height - crop_height + 1)), int(for_left * (width - crop_width + 1)), crop_height,
            crop_width)


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box that holds all of `boxes`."""
    tops, lefts, heights, widths = zip(*boxes)
    top, left = min(tops), min(lefts)
    return (top, left, max(map(sum, zip(tops, heights))) - top, max(map(sum, zip(lefts, widths))) - left)


class Draws:
    """The random numbers of one view of an example in an epoch.

    Args:
        seed: in [0, 2**63).
        epoch, index: of the example.
        view: its number: 0, 1, and from 2 on the small ones.
    """

    def __init__(self, seed: int, epoch: int, index: int, view: int):
        self._key = (seed, epoch, index, view)
        numbers = _generator(self._key, _UNIFORM).random(_TABLE + _FIRST_TRIES * _DRAWS_PER_TRY).tolist()
        self._ops = {op: numbers[i * _DRAWS_PER_OP:(i + 1) * _DRAWS_PER_OP] for i, op in enumerate(OPS)}
        self._tries = numbers[_TABLE:]

    def of(self, operation: Operation) -> list[float] | None:
        """Five numbers in [0, 1) for an operation that runs, None for one that does not."""
        decision, *numbers = self._ops[operation.name]
        return numbers if decision < operation.probability else None

    def box(self, height: int, width: int, crop: Crop) -> Box:
        """The crop of an image; the whole image where it does not run."""
        if self.of(crop) is None:
            return 0, 0, height, width
        return crop_box(self._all_tries(crop.law), height, width, crop)

    def normals(self, shape: tuple[int, ...]) -> np.ndarray:
        """Independent standard normal numbers, float32."""
        return _generator(self._key, _NORMAL).standard_normal(shape, np.float32)

    def _all_tries(self, law: str) -> Iterable[tuple]:
        yield from zip(*[iter(self._tries)] * _DRAWS_PER_TRY)
        numbers = _generator(self._key, _UNIFORM).random(_TABLE + _TRIES[law] * _DRAWS_PER_TRY)
        yield from zip(*[iter(numbers[_TABLE + len(self._tries):].tolist())] * _DRAWS_PER_TRY)


_of_thread = threading.local()


def _generator(key: tuple[int, int, int, int], purpose: int) -> np.random.Generator:
    """At the beginning of the stream of (key, purpose), until the thread calls this again.

    numpy gathers entropy of the system for every new Philox, even for one with a key: a state that is set
    takes a quarter of the time.
    """
    if not hasattr(_of_thread, 'generator'):
        _of_thread.generator = np.random.Generator(np.random.Philox(key=0))
    seed, epoch, index, view = key
    # A counter is advanced in its first word: no two streams meet, nor does that of the order (word 3 is 0).
    _of_thread.generator.bit_generator.state = {
        'bit_generator': 'Philox', 'has_uint32': 0, 'uinteger': 0, 'buffer_pos': 4, 'buffer': (0, 0, 0, 0),
        'state': {'counter': (0, view, index, purpose), 'key': (seed, epoch)}}
    return _of_thread.generator
