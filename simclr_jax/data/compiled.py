"""The crop of a view on the host, as TensorFlow's bicubic kernel computes it, or as Pillow: compiled C, or numpy.

`setup.py` builds `_crop.c` as an optional extension (`pip install .`, or `python setup.py build_ext
--inplace`). Without it TensorFlow's crops are the same bit for bit, five to ten times slower.
"""

import ctypes
import functools
import importlib.util

import numpy as np
from absl import logging

from simclr_jax.views.draws import Box
from simclr_jax.views.resize import Resize, taps

_VERSION = 4    # that crop_version() of the build must give
_UNIT = np.float32(1 / 255)
_OFFICIAL = Resize()
_TABLE = 1024   # entries between two pixels, from which TensorFlow's kernel reads the cubic


def crop_resize(image: np.ndarray, box: Box, image_size: int, *, is_flipped: bool = False,
                out: np.ndarray, resize: Resize = _OFFICIAL) -> np.ndarray:
    """A box of an image, resized to a square: tf.image.resize(method='bicubic') of it, bit for bit.

    Bicubic with a = -0.5, half-pixel centres, not antialiased; nothing outside the box is seen. Antialiased, it
    is what Pillow makes of the box for torchvision's RandomResizedCrop, but rounded once, not twice.

    Args:
        image: uint8 [H, W, C]; each row's pixels lie side by side.
        box: (top, left, height, width), inside the image.
        image_size: S, side of the result.
        is_flipped: swap left and right.
        out: [S, S, C], contiguous: uint8, rounded and clipped; or float32, in units of 1 with the
            overshoot of the cubic.
        resize: its method and antialiasing, with which there is no overshoot.

    Returns:
        `out`.
    """
    top, left, height, width = box
    rows, columns = image.shape[:2]
    if min(top, left, height - 1, width - 1) < 0 or top + height > rows or left + width > columns:
        raise ValueError(f'The box {box} is not inside an image of shape {image.shape}.')
    loop = library()
    if loop is None:
        resized = _weighted(image[top:top + height, left:left + width], image_size, is_flipped, resize)
        clipped = resized.clip(0, 255) if out.dtype == np.uint8 or resize.antialias else resized
        out[...] = np.rint(clipped) if out.dtype == np.uint8 else clipped * _UNIT
        return out
    channels = image.shape[2]
    if channels != 3:       # the loop takes three at a time
        image = image[top:top + height, left:left + width]
        for first in range(0, channels, 3):
            three = [min(first + number, channels - 1) for number in range(3)]
            out[..., first:first + 3] = crop_resize(
                image[..., three], (0, 0, height, width), image_size, is_flipped=is_flipped, resize=resize,
                out=np.empty((image_size, image_size, 3), out.dtype))[..., :channels - first]
        return out
    if image.strides[1:] != (3, 1):
        image = np.ascontiguousarray(image)
    floats, data = (None, out.ctypes.data) if out.dtype == np.uint8 else (out.ctypes.data, None)
    if resize == _OFFICIAL:
        failed = loop.crop_resize(image.ctypes.data, image.strides[0], top, left, height, width, image_size,
                                  is_flipped, _UNIT, floats, data)
    else:
        of_rows, of_columns = (taps(size, image_size, resize) for size in (height, width))
        filters = of_rows, [np.ascontiguousarray(part[::-1 if is_flipped else 1]) for part in of_columns]
        of_filters = [part for first, weights in filters
                      for part in (weights.shape[1], first.ctypes.data, weights.ctypes.data)]
        failed = loop.crop_weighted(image.ctypes.data + top * image.strides[0] + 3 * left, image.strides[0], width,
                                    image_size, *of_filters, _UNIT, floats, data)
    if failed:
        raise MemoryError
    return np.clip(out, 0, 1, out=out) if floats and resize.antialias else out


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loop, or None where it is not built or is of other sources than these."""
    found = importlib.util.find_spec('simclr_jax.data._crop')
    if found is None:
        logging.info('The compiled crop of the input path is not built: numpy does the work, more slowly. '
                     '`pip install -e .` builds it where there is a C compiler.')
        return None
    try:
        loop = ctypes.CDLL(found.origin)
        is_current = loop.crop_version() == _VERSION
    except (OSError, AttributeError):
        is_current = False
    if not is_current:
        logging.warning('%s was built from other sources or for another machine and is not used: build it '
                        'again with `pip install -e .`.', found.origin)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    loop.crop_resize.argtypes = [pointer, ctypes.c_int64, *[integer] * 6, ctypes.c_float, pointer, pointer]
    loop.crop_weighted.argtypes = [pointer, ctypes.c_int64, integer, integer, *[integer, pointer, pointer] * 2,
                                   ctypes.c_float, pointer, pointer]
    return loop


def _weighted(image: np.ndarray, image_size: int, is_flipped: bool, resize: Resize) -> np.ndarray:
    """What the loop computes before it rounds or scales, float by float: float32 [S, S, C] in 0..255."""
    height, width, channels = image.shape
    if resize == _OFFICIAL:
        rows, columns = (_taps(size, image_size) for size in (height, width))
    else:
        rows, columns = ((first[:, None] + np.arange(weights.shape[1]), weights) for first, weights in (
            taps(size, image_size, resize) for size in (height, width)))
    half, whole = (np.zeros((image_size, size, channels), np.float32) for size in (width, image_size))
    for which, weights in zip(rows[0].T, rows[1].T):
        half += weights[:, None, None] * image[which]
    for which, weights in zip(columns[0].T, columns[1].T):
        whole += weights[:, None] * half[:, which]
    return whole[:, ::-1] if is_flipped else whole


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Four taps, int [target, 4], and their weights, float32 [target, 4], of each target pixel."""
    at = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * (np.float32(size) / np.float32(target))
    at -= np.float32(0.5)
    below = np.floor(at)
    offset = np.rint((at - below) * np.float32(_TABLE)).astype(int)
    table = np.stack([_cubic(offset, True), _cubic(offset, False), _cubic(_TABLE - offset, False),
                      _cubic(_TABLE - offset, True)], 1)
    taps = below.astype(int)[:, None] + np.arange(-1, 3)
    # Taps beyond the border weigh nothing, and the others are scaled to sum to one.
    weights = np.where((taps >= 0) & (taps < size), table, np.float32(0))
    total = weights[:, 0] + weights[:, 1] + weights[:, 2] + weights[:, 3]
    return taps.clip(0, size - 1), weights * (np.float32(1) / total)[:, None]


def _cubic(offset: np.ndarray, is_outer: bool) -> np.ndarray:
    """Keys' cubic, a = -0.5, at entries of the table: the outer or the inner tap, float32."""
    a, x = -0.5, (offset / _TABLE).astype(np.float32)
    if is_outer:
        x = (x + np.float32(1)).astype(np.float64)
        return (((a * x - 5 * a) * x + 8 * a) * x - 4 * a).astype(np.float32)
    x = x.astype(np.float64)
    return (((a + 2) * x - (a + 3)) * x * x + 1).astype(np.float32)
