"""Decodes image files: the needed part of a plain JPEG by TensorFlow, all else whole by Pillow.

TensorFlow decodes a box of a JPEG without the rest and releases Python's lock meanwhile. Both decoders give
upright RGB uint8, and whether a file can be read does not depend on the box asked for.
"""

import functools
import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from simclr_jax.data import pixels
from simclr_jax.views.draws import Box

# Frames that both decoders read alike: baseline, extended and progressive, Huffman coded.
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)
_MARGIN = 2     # columns: libjpeg's smooth upsampling of colour looks over the edge of a box


class BadImage(ValueError):
    """A file that cannot be decoded."""


class EncodedImage:
    """An image whose pixels are decoded box by box; raises BadImage where they cannot be.

    Args:
        data: a file's bytes in any format that Pillow reads, or pixels uint8 [H, W, 3].
        rules: by which pixels become RGB uint8.
    """

    def __init__(self, data: bytes | np.ndarray, rules: pixels.Rules = pixels.DEFAULT):
        self._data, self._pixels, self._rules, size = data, data, rules, None
        if not isinstance(data, np.ndarray):
            size = _plain_jpeg_size(data, rules.max_pixels)
            size = size if size and _tensorflow() else None
            self._pixels = read_image(io.BytesIO(data), rules) if size is None else None
        self.height, self.width = size or self._pixels.shape[:2]

    def region(self, box: Box) -> np.ndarray:
        """The pixels of a box, uint8 [height, width, 3], equal to those of the whole image decoded."""
        top, left, height, width = box
        if self._pixels is None:
            margin = min(left, _MARGIN)
            wide = (top, left - margin, height, min(width + margin + _MARGIN, self.width - left + margin))
            try:
                return _decode_jpeg(self._data, wide)[:, margin:margin + width]
            except _tensorflow().errors.OpError:
                self._pixels = read_image(io.BytesIO(self._data), self._rules)    # the last word
        return self._pixels[top:top + height, left:left + width]


def read_image(file: str | BinaryIO, rules: pixels.Rules = pixels.DEFAULT) -> np.ndarray:
    """Decodes a whole image file to RGB uint8 [H, W, 3], upright by its EXIF orientation.

    Grey is repeated, CMYK converted, depth and transparency go by `rules`; of an animation, the first frame.

    A .npy file is an image too, [H, W] or [H, W, C].

    Raises:
        BadImage: it is no image, is cut short, or has more pixels than `rules` allow.
    """
    try:
        return pixels.read(file, rules)
    except UnidentifiedImageError as error:
        raise BadImage('it is not an image of a known format') from error
    except Exception as error:  # Pillow meets broken files with errors of many types.
        raise BadImage(str(error)) from error


def decoded(image: bytes | np.ndarray, rules: pixels.Rules = pixels.DEFAULT) -> np.ndarray:
    """What a source's `load` gives, as uint8 [H, W, 3]. BadImage: it cannot be decoded."""
    return read_image(io.BytesIO(image), rules) if isinstance(image, bytes) else image


def _decode_jpeg(data: bytes, box: Box) -> np.ndarray:
    # TensorFlow's own default is the fast inverse transform, off by a few levels. Pillow's is this one.
    tensor = _tensorflow().raw_ops.DecodeAndCropJpeg(
        contents=data, crop_window=np.array(box, np.int32), channels=3, dct_method='INTEGER_ACCURATE')
    return np.asarray(memoryview(tensor))     # the tensor's own memory, which .numpy() would copy


@functools.cache
def _tensorflow():
    """The module, or None where it is not installed."""
    try:
        import tensorflow as tf
    except ImportError:
        return None
    tf.config.set_visible_devices([], 'GPU')  # They are JAX's.
    return tf


def _plain_jpeg_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG that both decoders read alike, None of anything else.

    That is: whole, grey or of three channels of 8 bits, not to be turned, of at most `max_pixels`.
    """
    if data[:2] != b'\xff\xd8' or not _is_whole(data):
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


def _is_whole(data: bytes) -> bool:
    """Whether the end-of-image marker is there: a decoder of a box may stop before it."""
    return data.endswith(b'\xff\xd9') or data[-64:].rstrip(b'\0').endswith(b'\xff\xd9')


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(0x0112, 1) in range(2, 9)
    except Exception:  # as in read_image, which then says what is wrong
        return True
