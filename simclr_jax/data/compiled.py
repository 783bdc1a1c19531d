"""What compiled C does to an image on the host: a box of a JPEG is decoded without the rest, and a crop resized.

`setup.py` builds `_crop.c` and `_jpeg.c` as an optional extension (`pip install .`, or `python setup.py build_ext
--inplace`). Without it numpy makes TensorFlow's crops, the same bit for bit, five to ten times slower, and Pillow
decodes whole files. The decoder is the libjpeg-turbo that Pillow itself has: its pixels are those of the whole file.
"""

import ctypes
import functools
import importlib.util
import io
import struct
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from simclr_jax.views.draws import Box
from simclr_jax.views.resize import Resize, taps

_VERSION = 5    # that crop_version() of the build must give
_UNIT = np.float32(1 / 255)
_OFFICIAL = Resize()
_TABLE = 1024   # entries between two pixels, from which TensorFlow's kernel reads the cubic
_FUNCTIONS = ('std_error', 'CreateDecompress', 'mem_src', 'read_header', 'start_decompress', 'crop_scanline',
              'skip_scanlines', 'read_scanlines', 'destroy_decompress')      # of libjpeg, in the order of _jpeg.c
# Frames whose boxes can be read: baseline, extended and progressive, Huffman coded.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
_MARGIN = 2     # columns: libjpeg's smooth upsampling of colour looks over the edge of a box
_BLOCK = 32     # pixels, at most: a box is read from the left edge of a block on


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
    if min(top, left, height - 1, width - 1) < 0 or top + height > len(image) or left + width > image.shape[1]:
        raise ValueError(f'The box {box} is not inside an image of shape {image.shape}.')
    loop, rows, columns = library(), _taps(height, image_size, resize), _taps(width, image_size, resize, is_flipped)
    if loop is None:
        resized = _weighted(image[top:top + height, left:left + width], image_size, rows, columns)
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
    failed = loop.crop_resize(
        image.ctypes.data + top * image.strides[0] + 3 * left, image.strides[0], width, image_size,
        *rows.pointers, *columns.pointers, _UNIT, floats, data)
    if failed:
        raise MemoryError
    return np.clip(out, 0, 1, out=out) if floats and resize.antialias else out


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where it is not built or is of other sources than these."""
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
    loop.crop_resize.argtypes = [pointer, ctypes.c_int64, integer, integer, *[integer, pointer, pointer] * 2,
                                 ctypes.c_float, pointer, pointer]
    loop.jpeg_box.argtypes = [pointer, ctypes.c_char_p, ctypes.c_ulong, *[ctypes.c_uint] * 3, pointer,
                              *[ctypes.c_uint] * 2, pointer, ctypes.c_int64]
    return loop


class _Taps(NamedTuple):
    """Which pixels count in each that they become, and how much."""

    first: np.ndarray           # int32 [S]; these and the T-1 next ones
    weights: np.ndarray         # float32 [S, T]
    pointers: tuple[int, int, int]      # T, and where the two lie


@functools.lru_cache(maxsize=1024)      # a few kilobytes each; the crops of a data set have some hundred sizes
def _taps(size: int, target: int, resize: Resize, is_flipped: bool = False) -> _Taps:
    """See `views.resize.taps`; of the official way TensorFlow's, float by float."""
    first, weights = _official_taps(size, target) if resize == _OFFICIAL else taps(size, target, resize)
    if is_flipped:
        first, weights = first[::-1].copy(), weights[::-1].copy()
    return _Taps(first, weights, (weights.shape[1], first.ctypes.data, weights.ctypes.data))


def _weighted(image: np.ndarray, image_size: int, rows: _Taps, columns: _Taps) -> np.ndarray:
    """What the loop computes before it rounds or scales, float by float: float32 [S, S, C] in 0..255."""
    height, width, channels = image.shape
    half, whole = (np.zeros((image_size, size, channels), np.float32) for size in (width, image_size))
    for tap, weights in enumerate(rows.weights.T):
        half += weights[:, None, None] * image[rows.first + tap]
    for tap, weights in enumerate(columns.weights.T):
        whole += weights[:, None] * half[:, columns.first + tap]
    return whole


def _official_taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * (np.float32(size) / np.float32(target))
    at -= np.float32(0.5)
    below = np.floor(at)
    offset = np.rint((at - below) * np.float32(_TABLE)).astype(int)
    table = np.stack([_cubic(offset, True), _cubic(offset, False), _cubic(_TABLE - offset, False),
                      _cubic(_TABLE - offset, True)], 1)
    first = below.astype(int) - 1       # of four
    four = first[:, None] + np.arange(4)
    # Those beyond the border weigh nothing, and the others are scaled to sum to one.
    weights = np.where((four >= 0) & (four < size), table, np.float32(0))
    weights *= (np.float32(1) / (weights[:, 0] + weights[:, 1] + weights[:, 2] + weights[:, 3]))[:, None]
    inside = np.clip(first, 0, max(size - 4, 0))
    places = (inside - first + 3)[:, None] + np.arange(min(size, 4))
    return inside.astype(np.int32), np.take_along_axis(np.pad(weights, ((0, 0), (3, 3))), places, 1)


def _cubic(offset: np.ndarray, is_outer: bool) -> np.ndarray:
    """Keys' cubic, a = -0.5, at entries of the table: the outer or the inner tap, float32."""
    a, x = -0.5, (offset / _TABLE).astype(np.float32)
    if is_outer:
        x = (x + np.float32(1)).astype(np.float64)
        return (((a * x - 5 * a) * x + 8 * a) * x - 4 * a).astype(np.float32)
    x = x.astype(np.float64)
    return (((a + 2) * x - (a + 3)) * x * x + 1).astype(np.float32)

# ---- boxes of JPEGs ------------------------------------------------------------------------------------


def plain_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `read_box` can read, None of anything else.

    That is: whole, grey or of three channels of 8 bits, not to be turned, of at most `max_pixels`.
    """
    # A decoder of a box may stop before the end-of-image marker.
    is_whole = data.endswith(b'\xff\xd9') or data[-64:].rstrip(b'\0').endswith(b'\xff\xd9')
    if data[:2] != b'\xff\xd8' or not is_whole or libjpeg() is None:
        return None
    position, is_exif = 2, False
    try:
        while data[position] == 0xFF:
            marker, length = data[position + 1], int.from_bytes(data[position + 2:position + 4], 'big')
            if marker == 0xFF:  # a fill byte
                position += 1
                continue
            if marker in _PLAIN_FRAMES:
                bits, height, width, channels = struct.unpack_from('>BHHB', data, position + 4)
                is_plain = bits == 8 and channels in (1, 3) and 0 < height * width <= max_pixels
                return (height, width) if is_plain and not (is_exif and _is_turned(data)) else None
            if length < 2 or 0xC0 <= marker <= 0xDA and marker not in (0xC4, 0xC8, 0xCC):
                return None  # another kind of frame, or pixels before any frame
            is_exif |= marker == 0xE1
            position += 2 + length
    except (IndexError, struct.error):
        pass
    return None


def read_box(data: bytes, size: tuple[int, int], box: Box, functions: ctypes.Array | None = None) -> np.ndarray | None:
    """The pixels of a box, uint8 [height, width, 3]; None where libjpeg has a word to say of the file.

    Args:
        size: of `plain_size`.
        functions: those of `libjpeg`, unless they are still to be tried.
    """
    functions, loop = functions or libjpeg(), library()
    if functions is None or loop is None:
        return None
    top, left, height, width = box
    first, last = max(left - _MARGIN, 0), min(left + width + _MARGIN, size[1])
    rows = np.empty((height, min(last - first + _BLOCK, size[1]), 3), np.uint8)
    begin = ctypes.c_uint(first)
    if loop.jpeg_box(functions, data, len(data), *size, top, ctypes.byref(begin), height, last - first,
                     rows.ctypes.data, rows.strides[0]):
        return None
    left -= begin.value
    return rows[:, left:left + width]


@functools.cache
def libjpeg() -> ctypes.Array | None:
    """The functions of Pillow's libjpeg, or None where a box by them has not the pixels that Pillow gives."""
    if library() is None:
        return None
    pointer = ctypes.c_void_p
    try:
        of_pillow = ctypes.CDLL(Image.core.__file__)     # symbols of what it is linked with are found too
        functions = (pointer * len(_FUNCTIONS))(*[
            ctypes.cast(getattr(of_pillow, f'jpeg_{name}'), pointer).value for name in _FUNCTIONS])
        y, x = np.mgrid[:40, :72]
        image = Image.fromarray(np.stack([3 * x, 5 * y, 20 * (x + y) % 256], -1).astype(np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, 'JPEG')
        pixels = read_box(buffer.getvalue(), (40, 72), (9, 21, 20, 30), functions)
        if pixels is not None and np.array_equal(pixels, np.asarray(Image.open(buffer))[9:29, 21:51]):
            return functions
    except (OSError, AttributeError, TypeError):
        pass
    logging.info("Boxes of JPEGs are not read by this Pillow's libjpeg: whole files are decoded, more slowly.")
    return None


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # as in decode.read_image, which then says what is wrong
        return True
