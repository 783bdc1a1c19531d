"""The pixel operations of a view in TensorFlow: what `kernels` runs where the compiled form is not built.

Images are float32 [S, S, 3] about [0, 1]. Nothing clips but `clip`, `jitter` and `change_colour`.

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


def change_colour(image: tf.Tensor, colour) -> np.ndarray:
    """See `kernels.change_colour`; float32 [S, S, 3] in [0, 1]."""
    image = jitter(tf.convert_to_tensor(image), colour)
    if colour.is_grey:
        image = to_grey(image)
    image = clip(image)
    if colour.sigma and colour.radius:
        # Rounding can leave the weights' sum a hair above 1.
        image = clip(gaussian_blur(image, colour.sigma, 2 * colour.radius + 1))
    return solarize(image, colour.threshold).numpy()


def jitter(image: tf.Tensor, colour) -> tf.Tensor:
    """The operations of colour.order with a clip to [0, 1] after each."""
    operations = [
        lambda image: image * colour.multiply + colour.add,
        # About each channel's own mean; torchvision takes the mean of the grey image for all three.
        lambda image: tf.image.adjust_contrast(image, colour.contrast),
        # In HSV, at most 1; torchvision blends the image with its grey version.
        lambda image: tf.image.adjust_saturation(image, colour.saturation),
        lambda image: tf.image.adjust_hue(image, colour.hue),
        lambda image: image]
    for code in colour.order:
        if code >= 0:
            image = clip(operations[code](image))
    return image


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
