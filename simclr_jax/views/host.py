"""Random views on the host: numbers drawn in `draws`, pixels computed in `kernels`.

The operations, their order, laws and clips are those of `simclr_jax.views.device`.

Sources: SimCLR (arXiv 2002.05709, section 3 and appendix A) and its code, google-research/simclr
tf2/data_util.py. Rotation, cutout, Sobel and noise are in the paper only.
"""

import math
from typing import Callable

import numpy as np

from simclr_jax.views.fields import JITTER_OPS, JITTER_ORDERS, Blur, Jitter, View
from simclr_jax.data import kernels
from simclr_jax.views.draws import Box, Draws

_CLIP_ONLY = 4      # in place of a jitter operation of strength 0


def make_augment(view: View, image_size: int) -> Callable[[np.ndarray, Box, Draws, np.ndarray], np.ndarray]:
    """What makes one random view of a crop that is already chosen.

    The operations, their order and clips are those of `device.augment`.

    Returns:
        augment(image uint8 [H, W, 3], box, draws, out) -> out [S, S, 3]: float32 in [0, 1], or uint8, rounded.

    Raises:
        ValueError: the view has functions of its own, which are JAX's.
    """
    if view.extra:
        raise ValueError("augment.extra needs data.augment_on='device': its functions are JAX's.")
    draw_jitter, draw_blur = _jitter_drawer(view.jitter), _blur_drawer(view.blur, image_size)

    def augment(image: np.ndarray, box: Box, draws: Draws, out: np.ndarray) -> np.ndarray:
        pixels = np.empty(out.shape, np.float32)
        kernels.crop_resize(image, box, image_size, is_flipped=draws.of(view.flip) is not None, out=pixels)
        if turns := draws.of(view.rotate):
            pixels = np.ascontiguousarray(np.rot90(pixels, 1 + int(3 * turns[0])))
        colour = draw_jitter(draws) | {'is_grey': draws.of(view.grey) is not None}
        has_sobel, has_noise = draws.of(view.sobel), draws.of(view.noise)
        if has_sobel or has_noise:      # between grey and blur, in numpy: no recipe has them
            kernels.change_colour(pixels, kernels.Colour(**colour), out=pixels)
            colour = {}
            if has_sobel:
                pixels = sobel_magnitude(pixels)
            if has_noise:
                pixels += np.float32(view.noise.std) * draws.normals(pixels.shape)
        colour |= draw_blur(draws)
        if draws.of(view.solarize):
            colour['threshold'] = view.solarize.threshold
        kernels.change_colour(pixels, kernels.Colour(**colour), out=out)
        if centre := draws.of(view.cutout):
            _cut_out(out, centre, round(view.cutout.size * image_size))
        return out

    return augment


def augment(image: np.ndarray, draws: Draws, view: View, *, image_size: int) -> np.ndarray:
    """One random view of an image: crop box and all.

    Args:
        image: uint8 [H, W, 3] of any size.
        draws: of the view; the result is a pure function of (image, draws).

    Returns:
        float32 [image_size, image_size, 3] in [0, 1].
    """
    box = draws.box(*image.shape[:2], view.crop)
    return make_augment(view, image_size)(image, box, draws, np.empty((image_size, image_size, 3), np.float32))


def crop_and_flip(image: np.ndarray, box: Box, draws: Draws, view: View, out: np.ndarray) -> np.ndarray:
    """`make_augment` of no more than crop and flip: the augmentation of linear evaluation and fine-tuning."""
    kernels.crop_resize(image, box, len(out), is_flipped=draws.of(view.flip) is not None, out=out)
    return np.clip(out, 0, 1, out=out)


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


def _jitter_drawer(jitter: Jitter) -> Callable[[Draws], dict]:
    """draws -> the fields of `kernels.Colour` for the jitter."""
    low, high = (limits.tolist() for limits in jitter.limits())
    codes = [code if getattr(jitter, name) > 0 else _CLIP_ONLY for code, name in enumerate(JITTER_OPS)]
    orders = [tuple(codes[code] for code in order) for order in JITTER_ORDERS.tolist()]
    brightness = 'multiply' if jitter.brightness_mode == 'multiply' else 'add'

    def draw(draws):
        numbers = draws.of(jitter)
        if numbers is None:
            return {}
        order, *shares = numbers
        amounts = [a + share * (b - a) for a, b, share in zip(low, high, shares)]
        return {'order': orders[int(len(orders) * order)],
                **dict(zip((brightness, *JITTER_OPS[1:]), amounts))}

    return draw


def _blur_drawer(blur: Blur, image_size: int) -> Callable[[Draws], dict]:
    radius = blur.kernel_size(image_size) // 2
    low, high = blur.sigma

    def draw(draws):
        numbers = draws.of(blur)
        return {} if numbers is None else {'sigma': low + numbers[0] * (high - low), 'radius': radius}

    return draw


def _cut_out(image: np.ndarray, centre: list[float], side: int) -> None:
    """Zeros the square of `side` pixels about a centre given in shares of the image's side.

    What lies beyond the border is lost, as in DeVries and Taylor (arXiv 1708.04552).
    """
    top, left = (int(len(image) * share) - side // 2 for share in centre[:2])
    image[max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)] = 0
