"""The operations behind `views.device`: JAX functions of one image and explicit parameters.

Images are float32 [3, H, W]: with one plane per colour, colour runs in whole vectors and a resize or a
blur is two plain matrix products. Nothing clips but `jitter`: the caller does. `crop_box` takes a key
and is a pure function of it. The formulas are those of tf.image, which the official code uses, without
forming HSV: the same numbers to float32 rounding for fewer operations.

Sources: google-research/simclr tf2/data_util.py (crop, colour, blur); deepmind-research
byol/utils/augmentations.py (additive brightness, solarize).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from simclr_jax.views.resize import Resize

# Products in full float32: at an accelerator's default (bfloat16 or TF32) the weights of a resize or a
# blur lose 13 to 16 bits, which moves values by up to 2.2/255.
_PRECISION = 'highest'
# tf.image.resize reads the cubic at multiples of this step.
_CUBIC_STEPS = 1024


# ---- colour --------------------------------------------------------------------------------------


def _extremes(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The greatest channel, the least, and their distance, or 1 where it is 0, to divide by."""
    # Not image.max(0): a reduction would end the fusion that all of the colour work runs in.
    red, green, blue = image
    most, least = jnp.maximum(red, jnp.maximum(green, blue)), jnp.minimum(red, jnp.minimum(green, blue))
    # In a grey pixel all that is divided is multiplied by 0 later.
    return most, least, jnp.where(most - least > 0.0, most - least, 1.0)


def adjust_brightness(image: jax.Array, amount: jax.Array, mode: str) -> jax.Array:
    """image * amount (mode 'multiply', SimCLR v2) or image + amount ('add', SimCLR v1 and BYOL)."""
    return image * amount if mode == 'multiply' else image + amount


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the distance to each channel's own mean by `factor`, as tf.image.adjust_contrast."""
    mean = image.mean((1, 2), keepdims=True)
    return (image - mean) * factor + mean


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies the saturation S in HSV by `factor` and keeps it within [0, 1].

    In closed form: v - (v - x) min(factor, 1 / S), v the greatest channel.
    """
    most, _, divisor = _extremes(image)
    return most - (most - image) * jnp.minimum(factor, most / divisor)


def adjust_hue(image: jax.Array, delta: jax.Array) -> jax.Array:
    """Turns the hue in HSV by `delta` of a full circle.

    In closed form, with the hue h in sixths of the circle and o = 0, 4, 2 for red, green and blue:
    least + (most - least) clip(|(h + 6 delta + o) mod 6 - 3| - 1, 0, 1).
    """
    red, green, blue = image
    most, least, divisor = _extremes(image)
    sixths = jnp.where(most == red, green - blue, jnp.where(most == green, blue - red, red - green))
    sixths /= divisor
    sixths += jnp.where(most == red, 0.0, jnp.where(most == green, 2.0, 4.0))
    turned = sixths + 6.0 * delta + jnp.array([0.0, 4.0, 2.0])[:, None, None]
    turned -= 6.0 * jnp.floor(turned / 6.0)
    return least + (most - least) * jnp.clip(jnp.abs(turned - 3.0) - 1.0, 0.0, 1.0)


def jitter(image: jax.Array, order: jax.Array, amounts: jax.Array, *, active: Sequence[bool],
           brightness_mode: str) -> jax.Array:
    """Brightness (0), contrast (1), saturation (2) and hue (3), each once, with a clip after each.

    Args:
      image: float32 [3, H, W].
      order: int32 [4], a permutation of the four.
      amounts: float32 [4], by operation (not by turn).
      active: by operation; one that is not active leaves the image alone on its turn.
      brightness_mode: 'multiply' or 'add'.

    Returns:
      float32 [3, H, W] in [0, 1].
    """
    functions = [functools.partial(adjust_brightness, mode=brightness_mode), adjust_contrast,
                 adjust_saturation, adjust_hue]
    functions = [function if is_active else lambda image, _: image
                 for function, is_active in zip(functions, active)]
    # The clip inside each branch, where it joins its kernel.
    clipped = [lambda *arguments, function=function: jnp.clip(function(*arguments), 0.0, 1.0)
               for function in functions]

    def turn(number, image):
        which = order[number]
        return jax.lax.switch(which, clipped, image, amounts[which])

    # A loop and not four copies of the body: its boundary keeps the compiler from fusing one turn into
    # the next, and so from recomputing it there.
    return jax.lax.fori_loop(0, len(functions), turn, image)


def to_grey(image: jax.Array) -> jax.Array:
    """0.2989 R + 0.587 G + 0.114 B in all three channels."""
    red, green, blue = image
    return jnp.broadcast_to(0.2989 * red + 0.587 * green + 0.114 * blue, image.shape)


def solarize(image: jax.Array, threshold: float) -> jax.Array:
    """Inverts every value >= threshold, as PIL and BYOL do."""
    return jnp.where(image < threshold, image, 1.0 - image)


# ---- geometry and neighbourhoods -----------------------------------------------------------------


def rotate(image: jax.Array, quarter_turns: jax.Array) -> jax.Array:
    """Turns a square image counter-clockwise by `quarter_turns` (1, 2 or 3) times 90 degrees."""
    turns = [functools.partial(jnp.rot90, k=turns, axes=(1, 2)) for turns in (1, 2, 3)]
    return jax.lax.switch(quarter_turns - 1, turns, image)


def sobel(image: jax.Array) -> jax.Array:
    """Length of each channel's Sobel gradient, borders reflected; at least 2x2 pixels.

    Divided by sqrt(20), the greatest length that pixels in [0, 1] can give, so it stays in [0, 1].
    """
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1)), 'reflect')
    across = padded[..., 2:] - padded[..., :-2]                # [3, H + 2, W]
    down = padded[:, 2:] - padded[:, :-2]                      # [3, H, W + 2]
    across = across[:, :-2] + 2.0 * across[:, 1:-1] + across[:, 2:]
    down = down[..., :-2] + 2.0 * down[..., 1:-1] + down[..., 2:]
    return jnp.sqrt((jnp.square(across) + jnp.square(down)) / 20.0)


def gaussian_blur(image: jax.Array, sigma: jax.Array, kernel_size: int) -> jax.Array:
    """Separable Gaussian blur with an odd kernel; pixels beyond the border count as zeros.

    Two products with banded matrices, which accelerators do faster than a convolution of three channels.
    """
    radius = kernel_size // 2

    def weights(distance):
        return jnp.exp(-jnp.square(distance.astype(jnp.float32)) / (2.0 * jnp.square(sigma)))

    total = weights(jnp.arange(-radius, radius + 1)).sum()

    def band(size):                                            # [size, size]
        distance = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size))
        return jnp.where(distance <= radius, weights(distance) / total, 0.0)

    return _separable(image, band(image.shape[1]), band(image.shape[2]))


def cutout(image: jax.Array, centre: jax.Array, side: int) -> jax.Array:
    """Zeros the square of `side` pixels that begins at `centre` - side // 2, centre int32 [2].

    What lies beyond the border is lost, as in DeVries and Taylor (arXiv 1708.04552).
    """
    inside = []
    for length, begin in zip(image.shape[1:], centre - side // 2):
        offset = jnp.arange(length) - begin
        inside.append((offset >= 0) & (offset < side))
    return jnp.where(inside[0][:, None] & inside[1], 0.0, image)


def _separable(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """rows [h, H] @ image [3, H, W] @ columns [w, W] transposed: [3, h, w]."""
    # Rows three times over, so that no product has to turn the planes: a tenth to a third faster.
    rows = jnp.broadcast_to(rows, (len(image), *rows.shape))
    image = jnp.matmul(rows, image, precision=_PRECISION)
    return jnp.matmul(image, columns.T, precision=_PRECISION)


# ---- crop and resize -----------------------------------------------------------------------------


def resize_box(image: jax.Array, box: jax.Array, image_size: int, flip: bool | jax.Array = False,
               resize: Resize = Resize()) -> jax.Array:
    """A box of the image, resized to a square with half-pixel centres.

    What tf.image.resize(method='bicubic') gives for the box cut out, or Pillow where `resize` is antialiased:
    no pixel outside it counts, and at its border the weights of the pixels that are left are renormalised.

    Args:
      image: uint8 [3, H, W], or float32 [3, H, W] in [0, 1].
      box: int32 [4], (top, left, height, width) inside the image; may be traced.
      image_size: side of the result.
      flip: left to right; may be traced. It costs nothing here.
      resize: its method and antialiasing.

    Returns:
      float32 [3, image_size, image_size] around [0, 1], with the overshoot of the cubic; antialiased it is
      clipped.
    """
    image, scale = _as_float(image)
    top, left, height, width = box
    rows = _weights(top, height, image.shape[1], image_size, False, resize)
    columns = _weights(left, width, image.shape[2], image_size, flip, resize)
    resized = _separable(image, rows * scale, columns)
    return jnp.clip(resized, 0.0, 1.0) if resize.antialias else resized


def unit_range(image: jax.Array) -> jax.Array:
    """uint8 or float32 of any shape to float32 in [0, 1]; ValueError for another dtype."""
    image, scale = _as_float(image)
    return image * scale


def _as_float(image: jax.Array) -> tuple[jax.Array, float]:
    """The values in float32 and the factor that brings them to [0, 1]."""
    if image.dtype not in (jnp.uint8, jnp.float32):
        raise ValueError('An image must be uint8, or float32 in [0, 1]; '
                         f'got {image.dtype.name}: cast it first.')
    return image.astype(jnp.float32), 1.0 / 255.0 if image.dtype == jnp.uint8 else 1.0


def _weights(begin: jax.Array, length: jax.Array, size: int, target: int, reverse: bool | jax.Array,
             resize: Resize) -> jax.Array:
    """float32 [target, size]: the share of each of `size` pixels in each of `target` results.

    The results lie evenly spread over the `length` pixels from `begin` on, backwards if `reverse`.
    """
    place = jnp.arange(target)
    place = jnp.where(reverse, target - 1 - place, place).astype(jnp.float32)
    scale = jnp.float32(length) / target
    centre = (place + 0.5) * scale - 0.5
    if resize == Resize():
        centre = jnp.round(centre * _CUBIC_STEPS) / _CUBIC_STEPS
    tap = jnp.arange(size) - begin
    x = jnp.abs(centre[:, None] - tap)
    if resize.antialias:
        x /= jnp.maximum(scale, 1.0)
    if resize.method == 'bilinear':
        weights = jnp.maximum(1.0 - x, 0.0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
        weights = jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))
    weights = jnp.where((tap >= 0) & (tap < length), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def crop_box(key: jax.Array, height: int | jax.Array, width: int | jax.Array, *, law: str,
             area: tuple[float, float], aspect: tuple[float, float]) -> jax.Array:
    """Draws a crop of an image of `height` by `width` pixels.

    Args:
      key: the box is a pure function of it and of the size.
      height, width: of the image, in pixels; may be traced.
      law: 'tf' draws the height uniformly between its limits and covers at least a tenth of the
        image, as the official SimCLR code does through tf.image.sample_distorted_bounding_box (mean
        area 0.39 at 375x500). 'uniform' draws the area uniformly and the aspect ratio
        log-uniformly, as torchvision's RandomResizedCrop does for MoCo and BYOL (mean area 0.43).
      area: least and greatest share of the image's area.
      aspect: least and greatest width / height.

    Returns:
      int32 [4], (top, left, height, width). Where no try fits: the whole image ('tf', after 100 tries) or the
      largest central crop with an aspect ratio within the limits ('uniform', after 10 tries).
    """
    size = jnp.stack([jnp.float32(height), jnp.float32(width)])
    sizes_key, begin_key = jax.random.split(key)
    draw_sizes = _tf_sizes if law == 'tf' else _uniform_sizes
    sizes, fits, fallback, last_place = draw_sizes(sizes_key, size, area, aspect)
    chosen = jnp.where(fits.any(), sizes[fits.argmax()], fallback)     # the first that fits
    # Whether a try fits does not depend on its place, so only the chosen one's is drawn.
    places = jnp.where(chosen < size, size - chosen + last_place, 1.0)
    begin = jnp.floor(jax.random.uniform(begin_key, [2]) * places)
    begin = jnp.where(fits.any(), begin, jnp.floor((size - fallback) / 2.0))
    return jnp.concatenate([begin, chosen]).astype(jnp.int32)


# Sizes that were tried [tries, 2], whether they fit [tries], the size if none does [2], and whether a
# box may touch the lower or right border (1 or 0); all in whole float32 numbers.
_Tries = tuple[jax.Array, jax.Array, jax.Array, float]


def _tf_sizes(key: jax.Array, size: jax.Array, area: tuple[float, float],
              aspect: tuple[float, float]) -> _Tries:
    """GenerateRandomCrop of tensorflow's sample_distorted_bounding_box_op.cc, 100 tries at once."""
    height, width = size
    draws = jax.random.uniform(key, [200]).reshape(2, 100)      # the same numbers; LLVM unrolls [2, 100]
    least, most = area[0] * width * height, area[1] * width * height
    aspects = jnp.float32(aspect[0]) + draws[0] * jnp.float32(aspect[1] - aspect[0])

    def widths(heights):
        return jnp.round(heights * aspects)

    highest = jnp.round(jnp.sqrt(most / aspects))
    widest = jnp.floor((width + 0.5) / aspects)                # its width rounds to the image's
    widest -= widths(widest) > width
    highest = jnp.where(widths(highest) > width, widest, highest)
    highest = jnp.minimum(highest, height)
    heights = jnp.minimum(jnp.round(jnp.sqrt(least / aspects)), highest)
    heights += jnp.floor(draws[1] * (highest - heights + 1.0))
    # One pixel up or down where only rounding leaves the limits.
    heights += heights * widths(heights) < least
    heights -= heights * widths(heights) > most
    areas = heights * widths(heights)
    sizes = jnp.stack([heights, widths(heights)], 1)
    fits = ((areas >= least) & (areas <= most) & (sizes <= size).all(1) & (sizes > 0.0).all(1)
            & (10.0 * areas >= width * height))     # a quotient of exactly a tenth may be rounded below it
    return sizes, fits, size, 0.0


def _uniform_sizes(key: jax.Array, size: jax.Array, area: tuple[float, float],
                   aspect: tuple[float, float]) -> _Tries:
    """torchvision/transforms RandomResizedCrop.get_params, its 10 tries at once."""
    height, width = size
    draws = jax.random.uniform(key, [20]).reshape(2, 10)
    areas = height * width * (area[0] + draws[0] * (area[1] - area[0]))
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = jnp.exp(low + draws[1] * (high - low))
    sizes = jnp.round(jnp.sqrt(jnp.stack([areas / aspects, areas * aspects], 1)))
    fits = ((sizes >= 1.0) & (sizes <= size)).all(1)
    fallback = jnp.stack([jnp.minimum(height, jnp.round(width / aspect[0])),
                          jnp.minimum(width, jnp.round(height * aspect[1]))])
    return sizes, fits, jnp.maximum(fallback, 1.0), 1.0
