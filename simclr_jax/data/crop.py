"""The crop and the colour of a view on the host: compiled C where it was built, else TensorFlow.

`setup.py` builds `_kernels.c` as an optional extension (`pip install .`, or `python setup.py build_ext
--inplace`). Without it everything works the same, two to four times slower: the crop is equal bit for bit,
the colour to 1e-5.
"""

import ctypes
import functools
import importlib.util

import numpy as np
from absl import logging

from simclr_jax.views.draws import Box

_VERSION = 1    # that kernels_version() of the build must give
_NO_SOLARIZE = 2.0
_UNIT = np.float32(1 / 255)


class Colour(ctypes.Structure):
    """Parameters of `change_colour`; as created, it does nothing but clip."""

    _fields_ = [
        ('order', ctypes.c_int * 4),        # numbers in `augment_fields.JITTER_OPS`; 4 clips only, -1 is none
        ('multiply', ctypes.c_float),       # brightness: image * multiply + add
        ('add', ctypes.c_float),
        ('contrast', ctypes.c_float),       # a factor
        ('saturation', ctypes.c_float),     # a factor
        ('hue', ctypes.c_float),            # a share of the full circle
        ('is_grey', ctypes.c_int),
        ('sigma', ctypes.c_float),          # of the blur, in pixels; 0 for none
        ('radius', ctypes.c_int),           # (kernel size - 1) / 2
        ('threshold', ctypes.c_float),      # of solarize, above 1 for none
    ]

    def __init__(self, **fields):
        super().__init__(**{'order': (-1,) * 4, 'multiply': 1.0, 'threshold': _NO_SOLARIZE, **fields})


def crop_resize(image: np.ndarray, box: Box, image_size: int, *, is_flipped: bool = False,
                out: np.ndarray) -> np.ndarray:
    """A box of an image, resized to a square: tf.image.resize(method='bicubic') of it, bit for bit.

    Bicubic with a = -0.5, half-pixel centres, not antialiased; nothing outside the box is seen.

    Args:
        image: uint8 [H, W, 3]; each row's pixels lie side by side.
        box: (top, left, height, width), inside the image.
        image_size: S, side of the result.
        is_flipped: swap left and right.
        out: [S, S, 3], contiguous: uint8, rounded and clipped; or float32, in units of 1 with the
            overshoot of the cubic.

    Returns:
        `out`.
    """
    top, left, height, width = box
    rows, columns = image.shape[:2]
    if min(top, left, height - 1, width - 1) < 0 or top + height > rows or left + width > columns:
        raise ValueError(f'The box {box} is not inside an image of shape {image.shape}.')
    if library() is None:
        from simclr_jax.views import host_ops as augment_ops
        resized = augment_ops.crop_resize(image[top:top + height, left:left + width], image_size)
        resized = resized[:, ::-1] if is_flipped else resized
        out[...] = np.rint(resized).clip(0, 255) if out.dtype == np.uint8 else resized * _UNIT
        return out
    if image.strides[1:] != (3, 1):
        image = np.ascontiguousarray(image)
    if library().crop_resize(image.ctypes.data, image.strides[0], top, left, height, width, image_size,
                             is_flipped, _UNIT, *_pointers(out)):
        raise MemoryError
    return out


def change_colour(image: np.ndarray, colour: Colour, *, out: np.ndarray) -> np.ndarray:
    """Jitter with a clip after each of its operations, grey, a clip, blur and solarize, as `colour` says.

    Args:
        image: float32 [S, S, 3] about [0, 1], contiguous.
        colour: what to do.
        out: [S, S, 3], contiguous: float32 in [0, 1], or uint8 for 255 times that, rounded. May be `image`.

    Returns:
        `out`.
    """
    if library() is None:
        from simclr_jax.views import host_ops as augment_ops
        changed = augment_ops.change_colour(image, colour)
        out[...] = np.rint(255 * changed) if out.dtype == np.uint8 else changed
        return out
    if library().change_colour(image.ctypes.data, len(image), ctypes.byref(colour), *_pointers(out)):
        raise MemoryError
    return out


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are not built or are of other sources than these."""
    found = importlib.util.find_spec('simclr_jax.data._kernels')
    if found is None:
        logging.info('The compiled kernels of the input path are not built: TensorFlow does the work, more '
                     'slowly. `pip install -e .` builds them where there is a C compiler.')
        return None
    try:
        kernels = ctypes.CDLL(found.origin)
        is_current = kernels.kernels_version() == _VERSION
    except (OSError, AttributeError):
        is_current = False
    if not is_current:
        logging.warning('%s was built of other sources or for another machine and is left aside: build it '
                        'again with `pip install -e .`.', found.origin)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    kernels.crop_resize.argtypes = [pointer, ctypes.c_int64, *[integer] * 6, ctypes.c_float, pointer, pointer]
    kernels.change_colour.argtypes = [pointer, integer, pointer, pointer, pointer]
    return kernels


def _pointers(out: np.ndarray) -> tuple[int | None, int | None]:
    """(floats, bytes), as the kernels take their result."""
    return (None, out.ctypes.data) if out.dtype == np.uint8 else (out.ctypes.data, None)
