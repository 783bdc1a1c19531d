"""What an image file or an array holds -> RGB uint8: depth, transparency and channels, by one set of rules."""

import dataclasses

import numpy as np
from PIL import Image

CHANNELS = (1, 3, 4)        # that an array [H, W, C] may have: grey, RGB, and RGB with transparency


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pixels are read; one for a data set.

    Attributes:
        background: the colour, 0..255, that stands behind transparent pixels; None takes their own colour.
        range: (low, high), which become 0 and 255 where pixels are not of 8 bits; None takes all that 16 bits
            hold, [0, 1] of floats whose values lie there, and [0, 255] of others.
        max_pixels: of a larger image a JPEG is read at a half, a quarter or an eighth; any other is refused.
    """

    background: tuple[int, int, int] | None = (255, 255, 255)
    range: tuple[float, float] | None = None
    max_pixels: int = 178_956_970       # where Pillow's own check begins to refuse


def of_image(image: Image.Image, rules: Rules = Rules()) -> np.ndarray:
    """An image of Pillow, of any mode, as uint8 [H, W, 3]."""
    if image.mode.startswith('I') or image.mode == 'F':     # Pillow would clip them to 8 bits, not scale them
        return of_array(np.asarray(image), rules)
    if rules.background is not None and image.has_transparency_data:
        return of_array(np.asarray(image.convert('RGBA')), rules)
    return np.array(image.convert('RGB'))


def of_array(array: np.ndarray, rules: Rules = Rules()) -> np.ndarray:
    """uint8 [..., H, W, 3] of numbers [..., H, W, C] with C = 1, 3 or 4, or [H, W].

    ValueError: another shape, or what is neither integers nor floats.
    """
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim < 3 or array.shape[-1] not in CHANNELS or array.dtype.kind not in 'buif':
        raise ValueError(f'{array.dtype} {list(array.shape)}: an image is [H, W] or [H, W, C] of C = 1, 3 or 4 '
                         'channels, of integers or floats')
    colour, alpha = array[..., :3], array[..., 3:]
    colour = _eight_bits(colour, rules.range)
    if alpha.shape[-1] and rules.background is not None:
        colour = _over(colour, _eight_bits(alpha, None), rules.background)
    return np.repeat(colour, 3, axis=-1) if colour.shape[-1] == 1 else np.ascontiguousarray(colour)


def _eight_bits(values: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if limits is None and values.dtype.kind in 'ui':
        return np.clip(values // 257, 0, 255).astype(np.uint8)
    if limits is None:
        limits = (0.0, 1.0) if 0 <= values.min() and values.max() <= 1 else (0.0, 255.0)
    low, high = limits
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _over(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """`colour` over `background`, rounded: uint8, alpha of one channel."""
    alpha = alpha.astype(np.uint16)
    blended = colour * alpha + np.array(background, np.uint16) * (255 - alpha) + 127
    return (blended // 255).astype(np.uint8)
