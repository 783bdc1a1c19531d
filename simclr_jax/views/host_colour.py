"""The pixel operations of a view in TensorFlow: what `kernels` runs where the compiled form is not built.

Images are float32 [S, S, 3] about [0, 1]. Nothing clips but `clip` and `change_colour`.

Sources: google-research/simclr tf2/data_util.py (crop, colour, blur); deepmind-research
byol/utils/augmentations.py (additive brightness, solarize).
"""

import numpy as np
import tensorflow as tf

tf.config.set_visible_devices([], 'GPU')  # They are JAX's.


def crop_resize(crop: np.ndarray, image_size: int) -> np.ndarray:
    """Bicubic resize (a = -0.5, half-pixel centres, not antialiased) of uint8 [h, w, 3] to a square.

    Returns:
        float32 [image_size, image_size, 3] in 0..255 with the overshoot of the cubic.
    """
    return tf.image.resize(crop, [image_size, image_size], 'bicubic').numpy()


def change_colour(image: np.ndarray, colour) -> np.ndarray:
    """See `kernels.change_colour`; float32 [S, S, 3] in [0, 1]."""
    amounts = np.float32([colour.multiply, colour.add, colour.contrast, colour.saturation, colour.hue])
    kernel_size = 2 * colour.radius + 1 if colour.sigma > 0 else 1
    changed = _changed(image, np.int32(colour.order), amounts, np.bool_(colour.is_grey),
                       np.float32(colour.sigma), np.float32(colour.threshold), kernel_size=kernel_size,
                       has_solarize=colour.threshold <= 1)
    return changed.numpy()


@tf.function  # a graph for each size of image and kernel, with real branches
def _changed(image, order, amounts, is_grey, sigma, threshold, *, kernel_size, has_solarize):
    for turn in range(4):
        image = tf.switch_case(order[turn] + 1, [
            lambda image=image: image,
            lambda image=image: clip(image * amounts[0] + amounts[1]),
            # About each channel's own mean; torchvision takes the mean of the grey image for all three.
            lambda image=image: clip(tf.image.adjust_contrast(image, amounts[2])),
            # In HSV, at most 1; torchvision blends the image with its grey version.
            lambda image=image: clip(tf.image.adjust_saturation(image, amounts[3])),
            lambda image=image: clip(tf.image.adjust_hue(image, amounts[4])),
            lambda image=image: clip(image)])
    image = clip(tf.cond(is_grey, lambda: to_grey(image), lambda: image))
    if kernel_size > 1:
        # Rounding can leave the weights' sum a hair above 1.
        image = clip(gaussian_blur(image, sigma, kernel_size))
    return solarize(image, threshold) if has_solarize else image


def clip(image: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 1]."""
    return tf.clip_by_value(image, 0.0, 1.0)


def to_grey(image: tf.Tensor) -> tf.Tensor:
    """0.2989 R + 0.587 G + 0.114 B in all three channels."""
    return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


def solarize(image: tf.Tensor, threshold: float) -> tf.Tensor:
    """Inverts every value >= threshold, as PIL and BYOL do."""
    return tf.where(image < threshold, image, 1.0 - image)


def gaussian_blur(image: tf.Tensor, sigma: float, kernel_size: int) -> tf.Tensor:
    """Separable Gaussian blur with an odd kernel; pixels beyond the border count as zeros."""
    radius = kernel_size // 2
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.exp(-tf.square(offsets) / (2.0 * sigma * sigma))
    kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
    image = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], 'SAME')
    kernel = tf.transpose(kernel, [1, 0, 2, 3])
    return tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], 'SAME')[0]
