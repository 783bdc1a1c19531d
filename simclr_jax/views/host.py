"""Random views on the host: numbers drawn in `draws`, pixels computed in `kernels`.

The operations, their order, laws and clips are those of `simclr_jax.views.device`.

Sources: SimCLR (arXiv 2002.05709, section 3 and appendix A) and its code, google-research/simclr
tf2/data_util.py. Rotation, cutout, Sobel and noise are in the paper only.
"""

import math
from typing import Any, Callable, Mapping

import numpy as np

from simclr_jax.views.fields import (JITTER_OPS, JITTER_ORDERS, blur_kernel_size, check_op, check_view,
                                     jitter_range)
from simclr_jax.data import kernels
from simclr_jax.views.draws import Box, Draws

_CLIP_ONLY = 4      # in place of a jitter operation of strength 0


def make_augment(*, image_size: int, crop: Mapping, flip: Mapping, rotate: Mapping, jitter: Mapping,
                 grey: Mapping, sobel: Mapping, noise: Mapping, blur: Mapping, solarize: Mapping,
                 cutout: Mapping) -> Callable[[np.ndarray, Box, Draws, np.ndarray], np.ndarray]:
    """What makes one random view of a crop that is already chosen.

    The operations run in the order of the arguments, each with its own 'probability'; one whose probability
    is 0 needs no other field. As in the official code, colour starts from the unclipped bicubic crop and the
    image is clipped to [0, 1] once colour is done.

    Args:
        image_size: S, side of the view.
        crop: not read here, for the crop is chosen (see `augment`).
        flip to cutout: as in `simclr_jax.views.device.augment`.

    Returns:
        view(image uint8 [H, W, 3], box, draws, out) -> out [S, S, 3]: float32 in [0, 1], or uint8, rounded.

    Raises:
        ValueError: for an unknown or missing field or a value out of range (see `augment_fields.check_view`).
    """
    check_view({'crop': crop, 'flip': flip, 'rotate': rotate, 'jitter': jitter, 'grey': grey, 'sobel': sobel,
                'noise': noise, 'blur': blur, 'solarize': solarize, 'cutout': cutout})
    draw_jitter, draw_blur = _jitter_drawer(jitter), _blur_drawer(blur, image_size)

    def view(image: np.ndarray, box: Box, draws: Draws, out: np.ndarray) -> np.ndarray:
        pixels = np.empty(out.shape, np.float32)
        kernels.crop_resize(image, box, image_size, is_flipped=draws.of('flip', flip) is not None, out=pixels)
        if turns := draws.of('rotate', rotate):
            pixels = np.ascontiguousarray(np.rot90(pixels, 1 + int(3 * turns[0])))
        colour = draw_jitter(draws) | {'is_grey': draws.of('grey', grey) is not None}
        has_sobel, has_noise = draws.of('sobel', sobel), draws.of('noise', noise)
        if has_sobel or has_noise:      # between grey and blur, in numpy: no recipe has them
            kernels.change_colour(pixels, kernels.Colour(**colour), out=pixels)
            colour = {}
            if has_sobel:
                pixels = sobel_magnitude(pixels)
            if has_noise:
                pixels += np.float32(noise['std']) * draws.normals(pixels.shape)
        colour |= draw_blur(draws)
        if draws.of('solarize', solarize):
            colour['threshold'] = solarize['threshold']
        kernels.change_colour(pixels, kernels.Colour(**colour), out=out)
        if centre := draws.of('cutout', cutout):
            _cut_out(out, centre, round(cutout['size'] * image_size))
        return out

    return view


def augment(image: np.ndarray, draws: Draws, *, image_size: int, **view: Mapping) -> np.ndarray:
    """One random view of an image: crop box and all.

    Args:
        image: uint8 [H, W, 3] of any size.
        draws: of the view; the result is a pure function of (image, draws).
        image_size, view: as in `make_augment`.

    Returns:
        float32 [image_size, image_size, 3] in [0, 1].
    """
    function = make_augment(image_size=image_size, **view)
    box = draws.box(*image.shape[:2], view['crop'])
    return function(image, box, draws, np.empty((image_size, image_size, 3), np.float32))


def make_crop_and_flip(*, image_size: int, crop: Mapping, flip: Mapping
                       ) -> Callable[[np.ndarray, Box, Draws, np.ndarray], np.ndarray]:
    """The augmentation of linear evaluation and fine-tuning: `make_augment` with no more than these two."""
    check_op('crop', crop)
    check_op('flip', flip)

    def view(image: np.ndarray, box: Box, draws: Draws, out: np.ndarray) -> np.ndarray:
        kernels.crop_resize(image, box, image_size, is_flipped=draws.of('flip', flip) is not None, out=out)
        return np.clip(out, 0, 1, out=out)

    return view


def eval_box(height: int, width: int, proportion: float) -> Box:
    """The central square crop of evaluation (google-research/simclr tf2/data_util.py center_crop).

    Args:
        proportion: side of the crop over the image's shorter side, in (0, 1]: 0.875 for ImageNet.
    """
    if not 0.0 < proportion <= 1.0:
        raise ValueError(f'The evaluation crop proportion must be in (0, 1]; got {proportion!r}.')
    side = max(round(float(np.float32(proportion) * np.float32(min(height, width)))), 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def eval_crop(image: np.ndarray, *, image_size: int, proportion: float) -> np.ndarray:
    """The crop `eval_box` of an image uint8 [H, W, 3] as float32 [image_size, image_size, 3] in [0, 1].

    With a proportion of 1 a square image that has the size already passes unchanged.
    """
    out = np.empty((image_size, image_size, 3), np.float32)
    kernels.crop_resize(image, eval_box(*image.shape[:2], proportion), image_size, out=out)
    return np.clip(out, 0, 1, out=out)


def sobel_magnitude(image: np.ndarray) -> np.ndarray:
    """Length of each channel's Sobel gradient, borders reflected; float32 [H, W, 3], at least 2x2 pixels.

    Divided by sqrt(20), the greatest length that pixels in [0, 1] can give, so it stays in [0, 1].
    """
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), 'reflect')
    down, across = padded[2:] - padded[:-2], padded[:, 2:] - padded[:, :-2]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    return np.hypot(dy, dx) / np.float32(math.sqrt(20.0))


# ---- parameters -------------------------------------------------------------------------------------


def _jitter_drawer(fields: Mapping[str, Any]) -> Callable[[Draws], dict]:
    """draws -> the fields of `kernels.Colour` for the jitter."""
    if not fields['probability']:
        return lambda draws: {}
    low, high = (limits.tolist() for limits in jitter_range(fields))
    codes = [code if fields[name] > 0 else _CLIP_ONLY for code, name in enumerate(JITTER_OPS)]
    orders = [tuple(codes[code] for code in order) for order in JITTER_ORDERS.tolist()]
    brightness = 'multiply' if fields['brightness_mode'] == 'multiply' else 'add'

    def draw(draws):
        numbers = draws.of('jitter', fields)
        if numbers is None:
            return {}
        order, *shares = numbers
        amounts = [a + share * (b - a) for a, b, share in zip(low, high, shares)]
        return {'order': orders[int(len(orders) * order)],
                **dict(zip((brightness, *JITTER_OPS[1:]), amounts))}

    return draw


def _blur_drawer(fields: Mapping[str, Any], image_size: int) -> Callable[[Draws], dict]:
    if not fields['probability']:
        return lambda draws: {}
    radius = blur_kernel_size(image_size, fields['kernel_fraction']) // 2
    low, high = fields['sigma']

    def draw(draws):
        numbers = draws.of('blur', fields)
        return {} if numbers is None else {'sigma': low + numbers[0] * (high - low), 'radius': radius}

    return draw


def _cut_out(image: np.ndarray, centre: list[float], side: int) -> None:
    """Zeros the square of `side` pixels about a centre given in shares of the image's side.

    What lies beyond the border is lost, as in DeVries and Taylor (arXiv 1708.04552).
    """
    top, left = (int(len(image) * share) - side // 2 for share in centre[:2])
    image[max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)] = 0
