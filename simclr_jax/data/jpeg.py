"""A box of a plain JPEG without the rest, by the libjpeg-turbo that Pillow itself decodes with.

The pixels are those that Pillow gives of the whole file. Where the compiled loop is not built, or Pillow has another
library, Pillow decodes the whole: the same pixels, more slowly.
"""

import ctypes
import functools
import io
import struct

import numpy as np
from absl import logging
from PIL import Image

from simclr_jax.data import compiled
from simclr_jax.views.draws import Box

_FUNCTIONS = ('std_error', 'CreateDecompress', 'mem_src', 'read_header', 'start_decompress', 'crop_scanline',
              'skip_scanlines', 'read_scanlines', 'destroy_decompress')      # in the order of _jpeg.c
# Frames whose boxes can be read: baseline, extended and progressive, Huffman coded.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
_MARGIN = 2     # columns: libjpeg's smooth upsampling of colour looks over the edge of a box
_BLOCK = 32     # pixels, at most: a box is read from the left edge of a block on


def plain_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `read_box` can read, None of anything else.

    That is: whole, grey or of three channels of 8 bits, not to be turned, of at most `max_pixels`.
    """
    # A decoder of a box may stop before the end-of-image marker.
    is_whole = data.endswith(b'\xff\xd9') or data[-64:].rstrip(b'\0').endswith(b'\xff\xd9')
    if data[:2] != b'\xff\xd8' or not is_whole or library() is None:
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


def read_box(data: bytes, size: tuple[int, int], box: Box) -> np.ndarray | None:
    """The pixels of a box, uint8 [height, width, 3]; None where libjpeg has a word to say of the file.

    size: of `plain_size`.
    """
    found = library()
    return _read_box(*found, data, size, box) if found else None


def _read_box(loop: ctypes.CDLL, libjpeg: ctypes.Array, data: bytes, size: tuple[int, int], box: Box
              ) -> np.ndarray | None:
    top, left, height, width = box
    first, last = max(left - _MARGIN, 0), min(left + width + _MARGIN, size[1])
    rows = np.empty((height, min(last - first + _BLOCK, size[1]), 3), np.uint8)
    begin = ctypes.c_uint(first)
    if loop.jpeg_box(libjpeg, data, len(data), *size, top, ctypes.byref(begin), height, last - first,
                     rows.ctypes.data, rows.strides[0]):
        return None
    left -= begin.value
    return rows[:, left:left + width]


@functools.cache
def library() -> tuple[ctypes.CDLL, ctypes.Array] | None:
    """The compiled loop and the functions of Pillow's libjpeg, or None where they do not give Pillow's pixels."""
    loop = compiled.library()
    if loop is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    loop.jpeg_box.argtypes = [pointer, ctypes.c_char_p, ctypes.c_ulong, *[number] * 3, pointer, *[number] * 2,
                              pointer, ctypes.c_int64]
    try:
        of_pillow = ctypes.CDLL(Image.core.__file__)     # symbols of what it is linked with are found too
        libjpeg = (pointer * len(_FUNCTIONS))(*[
            ctypes.cast(getattr(of_pillow, f'jpeg_{name}'), pointer).value for name in _FUNCTIONS])
        if _agrees(loop, libjpeg):
            return loop, libjpeg
    except (OSError, AttributeError, TypeError):
        pass
    logging.info("Boxes of JPEGs are not read by this Pillow's libjpeg: whole files are decoded, more slowly.")
    return None


def _agrees(loop: ctypes.CDLL, libjpeg: ctypes.Array) -> bool:
    """Whether a box of a small JPEG has the pixels that Pillow gives."""
    y, x = np.mgrid[:40, :72]
    image = Image.fromarray(np.stack([3 * x, 5 * y, 20 * (x + y) % 256], -1).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG')
    whole = np.asarray(Image.open(buffer))
    pixels = _read_box(loop, libjpeg, buffer.getvalue(), (40, 72), (9, 21, 20, 30))
    return pixels is not None and np.array_equal(pixels, whole[9:29, 21:51])


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # as in decode.read_image, which then says what is wrong
        return True
