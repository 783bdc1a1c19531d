"""What follows the crop of a view on the host, in TensorFlow: compiled once, one view after another.

Images are float32 [C, S, S], as in `ops`, whose formulas these are. A choice between operations is a real
branch: only what was drawn is computed.

Sources: google-research/simclr tf2/data_util.py (colour, blur); deepmind-research byol/utils/augmentations.py
(additive brightness, solarize).
"""

# pyright: reportArgumentType=false, reportOptionalOperand=false, reportOperatorIssue=false
# (as annotated, tensorflow has neither slices after an ellipsis nor static sizes)
import functools
from collections.abc import Callable

import tensorflow as tf

from simclr_jax.views.fields import JITTER_OPS, Jitter, View

_BLOCK = 32     # rows or columns of a blur at a time

tf.config.set_visible_devices([], 'GPU')  # They are JAX's.


@functools.cache
def make_finish(view: View, dtype: str) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """See `host.make_finish`."""

    def one(row):
        image, choices, noise = row
        image = _finish(tf.transpose(image, [2, 0, 1]), choices, noise, view)
        image = tf.transpose(image, [1, 2, 0])
        return tf.cast(tf.round(255.0 * image) if dtype == 'uint8' else image, dtype)

    @tf.function(jit_compile=True)
    def finish(crops, choices, noise):
        # The static shapes are XLA's need; a view does not depend on the others of its batch.
        return tf.map_fn(one, (crops, choices, noise),
                         fn_output_signature=tf.TensorSpec(crops.shape[1:], dtype))

    return finish


def _finish(image: tf.Tensor, choices: tf.Tensor, noise: tf.Tensor, view: View) -> tf.Tensor:
    order, amounts, rest = tf.cast(choices[:4], tf.int32), choices[4:8], choices[8:]
    grey, has_sobel, has_noise, sigma, has_solarize, top, left = tf.unstack(rest)

    def maybe(operation, happens, function, image, otherwise=lambda image: image):
        return tf.cond(happens > 0, lambda: function(image),
                       lambda: otherwise(image)) if operation.probability else otherwise(image)

    if view.jitter.probability:
        image = _jitter(image, order, amounts, view.jitter)
    image = maybe(view.grey, grey, lambda image: clip(to_grey(image)), image, otherwise=clip)
    image = maybe(view.sobel, has_sobel, sobel, image)
    image = maybe(view.noise, has_noise, lambda image: clip(
        image + view.noise.std * tf.transpose(noise, [2, 0, 1])), image)
    size = image.shape[1]
    kernel_size = view.blur.kernel_size(size)
    if kernel_size > 1:
        # Rounding can leave the weights' sum a hair above 1.
        image = maybe(view.blur, sigma, lambda image: clip(gaussian_blur(image, sigma, kernel_size)), image)
    image = maybe(view.solarize, has_solarize,
                  lambda image: tf.where(image < view.solarize.threshold, image, 1.0 - image), image)
    if view.cutout.probability:
        image = _cut_out(image, top, left, round(view.cutout.size * size))
    return image


def _jitter(image: tf.Tensor, order: tf.Tensor, amounts: tf.Tensor, jitter: Jitter) -> tf.Tensor:
    """The turns of `order`, each with a clip; -1 does nothing, and one past the operations clips alone."""
    brightness, contrast, saturation, hue = tf.unstack(amounts, len(JITTER_OPS))

    def turn(number, image):
        return number + 1, tf.switch_case(order[number] + 1, [
            lambda: image,
            lambda: clip(image * brightness if jitter.brightness_mode == 'multiply' else image + brightness),
            lambda: clip(adjust_contrast(image, contrast)),
            lambda: clip(adjust_saturation(image, saturation) if jitter.saturation else image),
            lambda: clip(adjust_hue(image, hue) if jitter.hue else image),
            lambda: clip(image)])

    # A loop: four copies of the branches take XLA a minute to compile.
    return tf.while_loop(lambda number, _: number < 4, turn, (0, image))[1]


def clip(image: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 1]."""
    return tf.clip_by_value(image, 0.0, 1.0)


def adjust_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """About each channel's own mean; torchvision takes the mean of the grey image for all three."""
    mean = tf.reduce_mean(image, [1, 2], keepdims=True)
    return (image - mean) * factor + mean


def _most_and_span(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The greatest channel, its distance to the least, and that or 1 where it is 0, to divide by."""
    red, green, blue = tf.unstack(image)
    most = tf.maximum(red, tf.maximum(green, blue))
    span = most - tf.minimum(red, tf.minimum(green, blue))
    return most, span, tf.where(span > 0.0, span, 1.0)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """In HSV, at most 1; torchvision blends the image with its grey version."""
    most, _, divisor = _most_and_span(image)
    return most - (most - image) * tf.minimum(factor, most / divisor)


def adjust_hue(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Turns the hue in HSV by `delta` of a full circle, by the closed form of `ops.adjust_hue`."""
    red, green, blue = tf.unstack(image)
    most, span, divisor = _most_and_span(image)
    sixths = tf.where(most == red, green - blue, tf.where(most == green, blue - red, red - green)) / divisor
    sixths += tf.where(most == red, 0.0, tf.where(most == green, 2.0, 4.0))
    turned = sixths + 6.0 * delta + tf.constant([0.0, 4.0, 2.0])[:, None, None]
    turned -= 6.0 * tf.floor(turned / 6.0)
    return most - span + span * clip(tf.abs(turned - 3.0) - 1.0)


def to_grey(image: tf.Tensor) -> tf.Tensor:
    """0.2989 R + 0.587 G + 0.114 B in all three channels."""
    red, green, blue = tf.unstack(image)
    return tf.broadcast_to(0.2989 * red + 0.587 * green + 0.114 * blue, image.shape)


def sobel(image: tf.Tensor) -> tf.Tensor:
    """See `ops.sobel`: in [0, 1]."""
    padded = tf.pad(image, [[0, 0], [1, 1], [1, 1]], 'REFLECT')
    across, down = padded[..., 2:] - padded[..., :-2], padded[:, 2:] - padded[:, :-2]
    across = across[:, :-2] + 2.0 * across[:, 1:-1] + across[:, 2:]
    down = down[..., :-2] + 2.0 * down[..., 1:-1] + down[..., 2:]
    return tf.sqrt((tf.square(across) + tf.square(down)) / 20.0)


def gaussian_blur(image: tf.Tensor, sigma: tf.Tensor, kernel_size: int) -> tf.Tensor:
    """Separable Gaussian blur with an odd kernel; zeros beyond the border.

    Products with a band, block by block: of a whole band nine tenths are zeros.
    """
    channels, size, _ = image.shape
    radius = kernel_size // 2
    count = -(-size // _BLOCK)

    def weights(distance):
        return tf.exp(-tf.square(tf.cast(distance, tf.float32)) / (2.0 * sigma * sigma))

    distance = tf.abs(tf.range(_BLOCK + 2 * radius) - tf.range(_BLOCK)[:, None] - radius)
    band = tf.where(distance <= radius, weights(distance), 0.0)         # [block, block + 2 radius]
    band /= tf.reduce_sum(weights(tf.range(-radius, radius + 1)))

    def windows(image, axis):       # overlapping: [C, count, ...]
        beyond = [[0, 0]] * 3
        beyond[axis] = [radius, radius + count * _BLOCK - size]
        image = tf.pad(image, beyond)
        return tf.stack([image[(slice(None),) * axis + (slice(begin, begin + _BLOCK + 2 * radius),)]
                         for begin in range(0, count * _BLOCK, _BLOCK)], 1)

    image = tf.broadcast_to(band, [channels, count, *band.shape]) @ windows(image, 1)
    image = tf.reshape(image, [channels, count * _BLOCK, size])[:, :size]
    image = tf.reshape(windows(image, 2), [channels * count * size, band.shape[1]]) @ tf.transpose(band)
    image = tf.transpose(tf.reshape(image, [channels, count, size, _BLOCK]), [0, 2, 1, 3])
    return tf.reshape(image, [channels, size, count * _BLOCK])[..., :size]


def _cut_out(image: tf.Tensor, top: tf.Tensor, left: tf.Tensor, side: int) -> tf.Tensor:
    """Zeros the square of `side` pixels at (top, left); what lies beyond the border is lost."""
    rows, columns = (tf.range(image.shape[1], dtype=tf.float32) - begin for begin in (top, left))
    inside = [(offset >= 0) & (offset < side) for offset in (rows, columns)]
    return tf.where(inside[0][:, None] & inside[1], 0.0, image)
