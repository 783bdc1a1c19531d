"""What a file or an array holds -> pixels of 8 bits: decoding, depth, transparency, channels and size.

Of a plain JPEG a box is decoded without the rest, and without Python's lock (see `compiled`); Pillow decodes all else
whole. Both give the same upright RGB, and whether a file can be read does not depend on the box asked for.
"""

import contextlib
import dataclasses
import io
import math
import os
import threading
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from simclr_jax.data import compiled
from simclr_jax.views.draws import Box

CHANNELS = (1, 3, 4)    # of an array [H, W, C] that becomes RGB: grey, RGB, and RGB with transparency
MOST_CHANNELS = 16
AUTO = 'auto'
_DEEP = 'IF'         # what the modes of Pillow's images of more than 8 bits begin with
_NPY = b'\x93NUMPY'
# What Pillow reads by the high bytes alone -> the mode and raw mode that give all bytes, or the low ones.
_SIXTEEN = {'RGB;16B': 'RGB;16L', 'RGB;16L': 'RGB;16B', 'RGB;16N': 'RGB;16B', 'RGBA;16B': 'RGBA;16L',
            'RGBA;16L': 'RGBA;16B', 'RGBA;16N': 'RGBA;16B', 'LA;16B': 'RGBA'}
_AT_ONCE = 1 << 18      # pixels of an image that are converted at a time
_LARGE = 1 << 26        # pixels of an image that is decoded while no other such one is: each takes half a GB or more
_one_large_image = threading.Lock()


class BadImage(ValueError):
    """A file that cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pixels are read; one for a data set.

    Attributes:
        background: the colour, 0..255, that stands behind transparent pixels; None takes their own colour.
        range: (low, high), which become 0 and 255 where pixels are not of 8 bits; AUTO takes the extremes of
            a sample (see `resolved`); None all that 16 bits hold, [0, 1] of floats whose values lie there,
            and [0, 255] of others.
        max_pixels: of a larger image a JPEG is read at a half, a quarter or an eighth; any other is refused.
        channels: C of the result. 3 is RGB: grey is repeated, and the fourth of four is transparency. Another
            number takes the channels of an array, or the pages of a TIFF, as they are; 1 makes colour grey.
            0 takes what a sample has (see `resolved`).
    """

    background: tuple[int, int, int] | None = (255, 255, 255)
    range: tuple[float, float] | str | None = None
    max_pixels: int = 178_956_970       # where Pillow's own check begins to refuse
    channels: int = 3


DEFAULT, OF_A_SAMPLE = Rules(), Rules(range=AUTO, channels=0)


class EncodedImage:
    """An image whose pixels are decoded box by box; raises BadImage where they cannot be.

    Args:
        data: a file's bytes in any format that Pillow reads, or pixels uint8 [H, W, C].
        rules: by which pixels become uint8 of C channels.
    """

    def __init__(self, data: bytes | np.ndarray, rules: Rules = DEFAULT):
        self._data, self._rules, self._pixels = data, rules, None
        size = compiled.plain_size(data, rules.max_pixels) if isinstance(data, bytes) and rules.channels == 3 else None
        if size is None:
            self._pixels = read_image(io.BytesIO(data), rules) if isinstance(data, bytes) else data
            size = self._pixels.shape[:2]
        self.height, self.width = size

    def region(self, box: Box) -> np.ndarray:
        """The pixels of a box, uint8 [height, width, C], equal to those of the whole image decoded."""
        if self._pixels is None:
            assert isinstance(self._data, bytes)
            pixels = compiled.read_box(self._data, (self.height, self.width), box)
            if pixels is not None:
                return pixels
            self._pixels = read_image(io.BytesIO(self._data), self._rules)      # the last word
        top, left, height, width = box
        return self._pixels[top:top + height, left:left + width]


def decoded(image: bytes | np.ndarray, rules: Rules = DEFAULT) -> np.ndarray:
    """What a source's `load` gives, as uint8 [H, W, C]. BadImage: it cannot be decoded."""
    encoded = EncodedImage(image, rules)
    return encoded.region((0, 0, encoded.height, encoded.width))


def read_image(file: str | BinaryIO, rules: Rules = DEFAULT) -> np.ndarray:
    """Decodes a whole image or .npy file to uint8 [H, W, C], upright by its EXIF orientation.

    Depth, transparency and channels go by `rules`; CMYK is converted; of an animation, the first frame.

    Raises:
        BadImage: it is no image, is cut short, has more pixels than `rules` allow, or other channels.
    """
    try:
        array = _npy(file)
        if array is not None:
            return of_array(array, rules)
        with _opened(file, rules.max_pixels) as image, (
                _one_large_image if image.width * image.height > _LARGE else contextlib.nullcontext()):
            numbers = _numbers(image, file, rules)
            if numbers is not None:
                return of_array(_turned(numbers, image), rules)
            ImageOps.exif_transpose(image, in_place=True)       # otherwise it copies
            return of_image(image, rules)
    except UnidentifiedImageError as error:
        raise BadImage('it is not an image of a known format') from error
    except Exception as error:  # Pillow meets broken files with errors of many types.
        raise BadImage(str(error)) from error


def of_image(image: Image.Image, rules: Rules = DEFAULT) -> np.ndarray:
    """An image of Pillow, of any mode, as uint8 [H, W, C]."""
    if image.mode[0] in _DEEP:         # Pillow would clip them to 8 bits, not scale them
        return of_array(np.asarray(image), rules)
    if rules.channels != 3:
        return of_array(_bands(image, rules.channels), rules)
    is_laid_over = rules.background is not None and image.has_transparency_data
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, rows):        # copies of the whole would take five times the image
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        if is_laid_over:
            part, above = Image.new('RGB', part.size, rules.background), part.convert('RGBA')
            part.paste(above, mask=above)
        pixels[top:top + rows] = np.asarray(part.convert('RGB'))
    return pixels


def of_array(array: np.ndarray, rules: Rules = DEFAULT) -> np.ndarray:
    """uint8 [..., H, W, rules.channels] of numbers [..., H, W, C] or [H, W].

    ValueError: a C that `rules` do not take, or what is neither integers nor floats.
    """
    array = array[..., None] if array.ndim == 2 else array
    taken = CHANNELS if rules.channels == 3 else (rules.channels,)
    if array.ndim < 3 or array.shape[-1] not in taken or array.dtype.kind not in 'buif':
        wanted = '1, 3 or 4 channels' if rules.channels == 3 else f'{rules.channels} channels (data.channels)'
        raise ValueError(f'{array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, C] of C = {wanted}'
                         ', of integers or floats')
    if not math.prod(array.shape[-3:]):
        raise BadImage(f'{array.dtype} {list(array.shape)}: an image without pixels')
    if rules.channels != 3:
        return np.ascontiguousarray(_eight_bits(array, rules.range))
    colour, alpha = _eight_bits(array[..., :3], rules.range), array[..., 3:]
    if alpha.shape[-1] and rules.background is not None:
        colour = _over(colour, _eight_bits(alpha, None), rules.background)
    return np.repeat(colour, 3, axis=-1) if colour.shape[-1] == 1 else np.ascontiguousarray(colour)


# ---- what a data set holds -----------------------------------------------------------------------------


def resolved(rules: Rules, sample: Iterable[bytes | Image.Image | np.ndarray | None]) -> tuple[Rules, list[str]]:
    """Rules with a range and channels in the place of AUTO and 0, and what is to be said of them.

    sample: images as they are; None, and what cannot be read, does not count. Without one of more than 8 bits
    the range becomes None; channels are 3 unless the arrays have another number than 1, 3 or 4.
    """
    found = (_unusual(image, rules) for image in sample if image is not None)
    arrays = [array for array in found if array is not None and array.size]
    notes, channels = [], rules.channels
    if not channels:
        found = {array.shape[-1] for array in arrays if array.ndim > 2} - set(CHANNELS)
        channels = found.pop() if len(found) == 1 and max(found) <= MOST_CHANNELS else 3
        if channels != 3:
            notes.append(f'Images of {channels} channels, taken as they are (data.channels).')
    if rules.range != AUTO:
        return dataclasses.replace(rules, channels=channels), notes
    deep = [array[..., :3] if channels == 3 else array for array in arrays if _is_deep_type(array)]
    if not deep:
        return dataclasses.replace(rules, range=None, channels=channels), notes
    low, high = (float(limit) for limit in (min(map(np.nanmin, deep)), max(map(np.nanmax, deep))))
    notes.append(f'{np.dtype(deep[0].dtype).name} images: {low:g} to {high:g}, the extremes of {len(deep):,} '
                 'of them, become 0 to 255 (data.range).')
    return dataclasses.replace(rules, range=(low, high if high > low else low + 1), channels=channels), notes


def _unusual(image: bytes | Image.Image | np.ndarray, rules: Rules) -> np.ndarray | None:
    """The numbers [H, W] or [H, W, C] of an image of more than 8 bits or unusual channels; else None."""
    if isinstance(image, bytes):
        if compiled.plain_size(image, rules.max_pixels):
            return None
        file = io.BytesIO(image)
        try:
            array = _npy(file)
            if array is None:
                with _opened(file, rules.max_pixels) as opened:
                    is_plain = opened.mode[0] not in _DEEP and _raw_mode(opened) not in _SIXTEEN
                    return None if is_plain else _numbers(opened, file, rules)
        except Exception:       # it is skipped, and named, where it is met; Pillow's errors are many
            return None
    elif isinstance(image, Image.Image):
        return np.asarray(image) if image.mode[0] in _DEEP else None
    else:
        array = image
    has_channels = array.ndim > 2 and array.shape[-1] not in CHANNELS
    return array if has_channels or _is_deep_type(array) else None


def num_pages(data: bytes) -> int:
    """Of a TIFF that `Rules.channels` can take as channels; 1 of all else."""
    with Image.open(io.BytesIO(data)) as image:
        return getattr(image, 'n_frames', 1) if image.format == 'TIFF' else 1


def _npy(file: str | BinaryIO) -> np.ndarray | None:
    """The array of a .npy file, None of another kind of file."""
    if isinstance(file, str | os.PathLike):
        return np.load(file, allow_pickle=False) if os.fspath(file).lower().endswith('.npy') else None
    start = file.read(len(_NPY))
    file.seek(0)
    return np.load(file, allow_pickle=False) if start == _NPY else None


def _opened(file: str | BinaryIO, max_pixels: int) -> Image.Image:
    """An image whose pixels are not read yet, reduced where it is larger than `max_pixels` and a JPEG."""
    Image.MAX_IMAGE_PIXELS = None       # Pillow's check would warn into the progress lines; ours follows
    image = Image.open(file)
    width, height = image.size
    if width * height > max_pixels:
        for part in (2, 4, 8):
            if image.format == 'JPEG' and -(-width // part) * -(-height // part) <= max_pixels:
                image.draft(None, (width // part, height // part))
                return image
        image.close()
        raise ValueError(f'{width} x {height} pixels are more than data.max_pixels = {max_pixels}')
    return image


def _is_deep_type(array: np.ndarray) -> bool:
    return array.dtype not in (np.uint8, bool)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for how the file holds pixels: 'RGB;16B' of a PNG that Pillow gives as 8 bits."""
    tiles = getattr(image, 'tile', None)        # Pillow's files alone have it
    arguments = tiles[0].args if tiles else ''
    return arguments[0] if isinstance(arguments, tuple) and arguments else str(arguments)


def _numbers(image: Image.Image, file: str | BinaryIO, rules: Rules) -> np.ndarray | None:
    """What Pillow alone would not give: all of 16 bits, the pages of a TIFF; None of an image of 8 bits."""
    if rules.channels not in (1, 3) and image.format == 'TIFF' and getattr(image, 'n_frames', 1) > 1:
        pages = [_bands(page, rules.channels) for page in ImageSequence.Iterator(image)]
        return np.concatenate(pages, axis=-1)
    if image.mode[0] in _DEEP:
        return np.asarray(image)
    low_bytes = _SIXTEEN.get(_raw_mode(image))
    if low_bytes is None:
        return None
    if not isinstance(file, str | os.PathLike):
        file.seek(0)
        file = io.BytesIO(file.read())
    with Image.open(file) as again:
        again.tile = [tile._replace(args=(low_bytes, *tile.args[1:])
                                    if isinstance(tile.args, tuple) else low_bytes) for tile in again.tile]
        low = np.asarray(again).astype(np.uint16)
    if low_bytes == 'RGBA':     # grey and alpha, each of two bytes, high first
        grey, alpha = low[..., 0] << 8 | low[..., 1], low[..., 2] << 8 | low[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    return np.asarray(image).astype(np.uint16) << 8 | low


def _bands(image: Image.Image, channels: int) -> np.ndarray:
    """The channels that an image has, [H, W, C]; grey where one is wanted."""
    if image.mode[0] not in _DEEP:
        image = image.convert('L') if channels == 1 else image.convert() if image.mode == 'P' else image
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _turned(array: np.ndarray, image: Image.Image) -> np.ndarray:
    """`array` upright by the EXIF orientation of `image`."""
    turns = {2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True),
             8: (1, False)}
    quarters, is_mirrored = turns.get(image.getexif().get(0x0112, 1), (0, False))
    array = array[:, ::-1] if is_mirrored else array
    return np.rot90(array, quarters)


def _eight_bits(values: np.ndarray, limits: tuple[float, float] | str | None) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if not isinstance(limits, tuple) and values.dtype.kind in 'ui':
        return np.clip(values // 257, 0, 255).astype(np.uint8)
    if not isinstance(limits, tuple):
        limits = (0.0, 1.0) if np.nanmin(values) >= 0 and np.nanmax(values) <= 1 else (0.0, 255.0)
    low, high = limits
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """`colour` over `background`, rounded: uint8, alpha of one channel."""
    blended = np.empty((*colour.shape[:-1], 3), np.uint8)
    rows = max(1, _AT_ONCE // max(1, math.prod(colour.shape[1:-1])))
    for first in range(0, len(colour), rows):       # the numbers in between are larger than the image
        part, opaque = colour[first:first + rows], alpha[first:first + rows].astype(np.uint16)
        blended[first:first + rows] = (
            part * opaque + np.array(background, np.uint16) * (255 - opaque) + 127) // 255
    return blended
