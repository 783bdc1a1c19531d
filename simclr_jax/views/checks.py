"""What the functions of images take; what will not do is named in one sentence."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def checked_images(images: Any, *, lone: bool = False, channels: int | None = 3
                   ) -> np.ndarray | jax.Array:
    """The images [N, H, W, C], or [H, W, C] where `lone`, as uint8 or float32; channels None: C is 1 to 16.

    Raises:
        ValueError: another shape or dtype, or floats outside [0, 1] or not finite. The values of a traced
            array are not known, and are not looked at.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    taken = range(1, 17) if channels is None else (channels,)
    axes, what, form = (3, 'image has', '[H, W, ') if lone else (4, 'images have', '[N, H, W, ')
    noun, shape = what.split()[0], list(images.shape)
    if len(shape) != axes or shape[-1] not in taken:
        advice = ''
        if len(shape) == axes and shape[-3] in taken:
            advice = ' The channels come first: transpose them.'
        elif lone and len(shape) == 4:
            advice = ' Use jax.vmap for a batch.'
        raise ValueError(f'The {what} the shape {shape}: expected {form}{channels or 3}].{advice}')
    if 0 in shape[-3:]:
        raise ValueError(f'The {what} the shape {shape}: there are no pixels.')
    if images.dtype == np.uint8:
        return images
    verb = 'is' if lone else 'are'
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f'The {noun} {verb} {images.dtype}: expected uint8, or floats in [0, 1].')
    if not isinstance(images, Tracer) and images.size:
        with jax.ensure_compile_time_eval():        # also where a program that is traced holds the images
            low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            verb = 'holds' if lone else 'hold'
            raise ValueError(f'The {noun} {verb} values from {low:g} to {high:g}: expected uint8, or floats in '
                             '[0, 1] that are not normalised yet.')
    return images.astype(np.float32)


def check_key(key: jax.Array) -> None:
    """ValueError for anything but one key of `jax.random`."""
    shape, dtype = getattr(key, 'shape', None), getattr(key, 'dtype', np.dtype(object))
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if typed else shape == jax.random.PRNGKey(0).shape and dtype == np.uint32):
        given = repr(key) if shape is None else f'an array of {"keys" if typed else dtype} {list(shape)}'
        raise ValueError(f'key must be one key, as jax.random.key(0) makes; got {given}.')


def check_image_size(image_size: int) -> None:
    """ValueError for a side that is not a whole number of pixels."""
    if not isinstance(image_size, numbers.Integral) or image_size < 1:
        raise ValueError(f'image_size is {image_size!r}: it must be a whole number of pixels, 1 or more.')
