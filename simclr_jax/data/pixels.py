"""What a file or an array holds -> RGB uint8: depth, transparency, channels and size, by one set of rules."""

import dataclasses
import io
import os
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

CHANNELS = (1, 3, 4)        # that an array [H, W, C] may have: grey, RGB, and RGB with transparency
AUTO = 'auto'
_NPY = b'\x93NUMPY'
# What Pillow reads by the high bytes alone -> the mode and raw mode that give all bytes, or the low ones.
_SIXTEEN = {'RGB;16B': 'RGB;16L', 'RGB;16L': 'RGB;16B', 'RGB;16N': 'RGB;16B', 'RGBA;16B': 'RGBA;16L',
            'RGBA;16L': 'RGBA;16B', 'RGBA;16N': 'RGBA;16B', 'LA;16B': 'RGBA'}


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pixels are read; one for a data set.

    Attributes:
        background: the colour, 0..255, that stands behind transparent pixels; None takes their own colour.
        range: (low, high), which become 0 and 255 where pixels are not of 8 bits; AUTO takes the extremes of
            a sample (see `resolved`); None all that 16 bits hold, [0, 1] of floats whose values lie there,
            and [0, 255] of others.
        max_pixels: of a larger image a JPEG is read at a half, a quarter or an eighth; any other is refused.
    """

    background: tuple[int, int, int] | None = (255, 255, 255)
    range: tuple[float, float] | str | None = None
    max_pixels: int = 178_956_970       # where Pillow's own check begins to refuse


DEFAULT, OF_A_SAMPLE = Rules(), Rules(range=AUTO)


def read(file: str | BinaryIO, rules: Rules = DEFAULT) -> np.ndarray:
    """A whole image file or .npy file as uint8 [H, W, 3], upright by its EXIF orientation.

    Of an animation, the first frame. Raises whatever Pillow raises, ValueError for what `rules` forbid.
    """
    array = _npy(file)
    if array is not None:
        return of_array(array, rules)
    with _opened(file, rules.max_pixels) as image:
        deep = _deep(image, file)
        return of_image(ImageOps.exif_transpose(image), rules) if deep is None else of_array(
            _turned(deep, image), rules)


def of_image(image: Image.Image, rules: Rules = DEFAULT) -> np.ndarray:
    """An image of Pillow, of any mode, as uint8 [H, W, 3]."""
    if image.mode.startswith('I') or image.mode == 'F':     # Pillow would clip them to 8 bits, not scale them
        return of_array(np.asarray(image), rules)
    if rules.background is not None and image.has_transparency_data:
        return of_array(np.asarray(image.convert('RGBA')), rules)
    return np.array(image.convert('RGB'))


def of_array(array: np.ndarray, rules: Rules = DEFAULT) -> np.ndarray:
    """uint8 [..., H, W, 3] of numbers [..., H, W, C] with C = 1, 3 or 4, or [H, W].

    ValueError: another shape, or what is neither integers nor floats.
    """
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim < 3 or array.shape[-1] not in CHANNELS or array.dtype.kind not in 'buif':
        raise ValueError(f'{array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, C] of C = 1, 3 or '
                         '4 channels, of integers or floats')
    colour, alpha = _eight_bits(array[..., :3], rules.range), array[..., 3:]
    if alpha.shape[-1] and rules.background is not None:
        colour = _over(colour, _eight_bits(alpha, None), rules.background)
    return np.repeat(colour, 3, axis=-1) if colour.shape[-1] == 1 else np.ascontiguousarray(colour)


def resolved(rules: Rules, sample: Iterable[np.ndarray | None]) -> tuple[Rules, list[str]]:
    """Rules with a range in the place of AUTO, and what is to be said of it.

    sample: images as `depth_of` gives them; without one of more than 8 bits the range becomes None.
    """
    if rules.range != AUTO:
        return rules, []
    deep = [array[..., :3] for array in sample if array is not None and array.size]
    if not deep:
        return dataclasses.replace(rules, range=None), []
    low, high = (float(limit) for limit in (min(map(np.nanmin, deep)), max(map(np.nanmax, deep))))
    note = (f'{np.dtype(deep[0].dtype).name} images: {low:g} to {high:g}, the extremes of {len(deep):,} of '
            'them, become 0 to 255 (data.range).')
    return dataclasses.replace(rules, range=(low, high if high > low else low + 1)), [note]


def depth_of(file: str | BinaryIO, rules: Rules) -> np.ndarray | None:
    """The numbers of an image of more than 8 bits, [H, W] or [H, W, C]; None of others, not decoded."""
    array = _npy(file)
    if array is not None:
        return None if array.dtype in (np.uint8, bool) else array
    with _opened(file, rules.max_pixels) as image:
        return _deep(image, file) if _is_deep(image) else None


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


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith('I') or image.mode == 'F' or _raw_mode(image) in _SIXTEEN


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for how the file holds pixels: 'RGB;16B' of a PNG that Pillow gives as 8 bits."""
    tiles = getattr(image, 'tile', None)        # Pillow's files alone have it
    arguments = tiles[0].args if tiles else ''
    return arguments[0] if isinstance(arguments, tuple) and arguments else str(arguments)


def _deep(image: Image.Image, file: str | BinaryIO) -> np.ndarray | None:
    """All bits of an image whose 16 bits Pillow would cut to 8; of other deep ones, Pillow's numbers."""
    if image.mode.startswith('I') or image.mode == 'F':
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
    alpha = alpha.astype(np.uint16)
    blended = colour * alpha + np.array(background, np.uint16) * (255 - alpha) + 127
    return (blended // 255).astype(np.uint8)
