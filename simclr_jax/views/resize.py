"""How images are resized, Google's way or torchvision's, and by which weights. numpy only, for host and device."""

import dataclasses

import numpy as np

METHODS = ('bicubic', 'bilinear')


@dataclasses.dataclass(frozen=True)
class Resize:
    """How an image becomes image_size pixels on each side. The defaults are those of google-research/simclr.

    Attributes:
        method: 'bicubic' (a = -0.5) or 'bilinear', half-pixel centres.
        antialias: whether the filter is as wide as a pixel of the result, where that is the wider one.
        resize_to: for evaluation. 0: the central crop, a share of the shorter side, is resized. Else the
            shorter side is resized to this many pixels (the longer in proportion, rounded down), and the
            central square of image_size is cut out of that, as torchvision's Resize and CenterCrop do.

    Raises:
        ValueError: another method, or a negative resize_to.
    """

    method: str = 'bicubic'
    antialias: bool = False
    resize_to: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f'eval.resize is {self.method!r}: it takes {" or ".join(METHODS)}.')
        if self.resize_to < 0:
            raise ValueError(f'eval.resize_to is {self.resize_to}: it must be 0 or more.')

    def __str__(self) -> str:
        before = f'shorter side to {self.resize_to}, then the central crop, ' * bool(self.resize_to)
        a = ', a = -0.5' * (self.method == 'bicubic')
        return f'{before}{self.method}{a}, half-pixel centres, {"" if self.antialias else "no "}antialiasing'


def resize_weights(height: int, width: int, image_size: int, proportion: float,
                   resize: Resize) -> tuple[np.ndarray, np.ndarray]:
    """([S, height], [S, width]) float32: result = rows @ image @ columns.T, each channel by itself.

    Args:
        height, width: of the image. image_size: S.
        proportion: side of the central crop over the shorter side; counts where resize_to is 0.

    Raises:
        ValueError: resize_to is less than image_size, or the proportion outside (0, 1].
    """
    shorter = min(height, width)
    if resize.resize_to:
        if resize.resize_to < image_size:
            raise ValueError(f'eval.resize_to is {resize.resize_to}, less than the {image_size} pixels that '
                             'are cut out of it.')
        sizes = [int(resize.resize_to * side / shorter) for side in (height, width)]
        boxes = [(round((size - image_size) / 2), side / size, 0, side)
                 for size, side in zip(sizes, (height, width))]
    else:
        crop = crop_side(shorter, proportion)
        boxes = [(0, crop / image_size, (side - crop + 1) // 2, crop) for side in (height, width)]
    return tuple(_weights(side, image_size, *box, resize) for side, box in zip((height, width), boxes))


def crop_side(shorter: int, proportion: float) -> int:
    """The side of the central crop in pixels; ValueError for a proportion outside (0, 1]."""
    if not 0.0 < proportion <= 1.0:
        raise ValueError(f'The evaluation crop proportion must be in (0, 1]; got {proportion!r}.')
    return max(round(float(np.float32(proportion) * np.float32(shorter))), 1)


def taps(length: int, target: int, resize: Resize) -> tuple[np.ndarray, np.ndarray]:
    """Which of `length` pixels count in each of the `target` that they become.

    Returns the first, int32 [target], and the shares of this and the next ones, float32 [target, T].
    """
    scale = length / target
    wide = max(scale, 1.0) if resize.antialias else 1.0
    radius = wide * (1 if resize.method == 'bilinear' else 2)
    centre = (np.arange(target) + 0.5) * scale - 0.5
    count = min(int(np.ceil(2 * radius)) + 1, length)
    first = np.clip(np.ceil(centre - radius), 0, length - count).astype(np.int32)
    weights = _kernel(np.abs(centre[:, None] - first[:, None] - np.arange(count)) / wide, resize.method)
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _kernel(x, method):
    """The share of a pixel at the distance x >= 0."""
    if method == 'bilinear':
        return np.maximum(1 - x, 0)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1,
                    np.where(x < 2, ((2.5 - 0.5 * x) * x - 4) * x + 2, 0))


def _weights(size, target, offset, scale, begin, length, resize):
    """The share of each of `size` pixels in each of `target`, which are `scale` pixels wide.

    They start `offset` of theirs into the `length` pixels from `begin` on; no other pixel counts.
    """
    centre = (np.arange(target) + offset + 0.5) * scale - 0.5
    tap = np.arange(size) - begin
    x = np.abs(centre[:, None] - tap) / (max(scale, 1.0) if resize.antialias else 1.0)
    weights = _kernel(x, resize.method) * ((tap >= 0) & (tap < length))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
