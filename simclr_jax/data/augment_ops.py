"""The operations behind `host_augment`: deterministic TensorFlow functions of explicit parameters.

Images are float32 [H, W, 3]. Nothing clips but `clip` and `jitter`: the caller does. `crop_box` and
`gaussian_noise` take a seed and are pure functions of it.

Sources: google-research/simclr tf2/data_util.py (crop, colour, blur); deepmind-research
byol/utils/augmentations.py (additive brightness, solarize).
"""

import functools
import math
from typing import Sequence

import tensorflow as tf

# (begin, size) as tf.slice takes them, int32 [3] each.
Box = tuple[tf.Tensor, tf.Tensor]


def clip(image: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 1]."""
    # One kernel, where tf.clip_by_value is two: at 32 pixels every kernel counts.
    return tf.raw_ops.ClipByValue(t=image, clip_value_min=0.0, clip_value_max=1.0)


# ---- colour ------------------------------------------------------------------------------------


def adjust_brightness(image: tf.Tensor, amount: tf.Tensor, mode: str) -> tf.Tensor:
    """image * amount (mode 'multiply', SimCLR v2) or image + amount ('add', SimCLR v1 and BYOL)."""
    return image * amount if mode == 'multiply' else image + amount


def adjust_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies the distance to each channel's own mean by `factor`.

    torchvision differs: it takes the mean of the grey image for all three channels.
    """
    return tf.image.adjust_contrast(image, factor)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies the saturation in HSV by `factor` and keeps it within [0, 1].

    torchvision differs: it blends the image with its grey version.
    """
    return tf.image.adjust_saturation(image, factor)


def adjust_hue(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Turns the hue in HSV by `delta` of a full circle."""
    return tf.image.adjust_hue(image, delta)


def jitter(image: tf.Tensor, order: tf.Tensor, amounts: tf.Tensor, *, active: Sequence[bool],
           brightness_mode: str) -> tf.Tensor:
    """Brightness (0), contrast (1), saturation (2) and hue (3), each once, with a clip after each.

    Args:
      image: float32 [H, W, 3].
      order: int32 [4], a permutation of the four.
      amounts: float32 [4], by operation (not by turn).
      active: by operation; one that is not active leaves the image alone on its turn.
      brightness_mode: 'multiply' or 'add'.

    Returns:
      float32 [H, W, 3] in [0, 1].
    """
    functions = [functools.partial(adjust_brightness, mode=brightness_mode), adjust_contrast,
                 adjust_saturation, adjust_hue]
    functions = [function if is_active else lambda image, _: image
                 for function, is_active in zip(functions, active)]
    for which, amount in zip(tf.unstack(order), tf.unstack(tf.gather(amounts, order))):
        # Branches, so that each turn runs one kernel and not four.
        image = clip(tf.switch_case(
            which, [functools.partial(function, image, amount) for function in functions]))
    return image


def to_grey(image: tf.Tensor) -> tf.Tensor:
    """0.2989 R + 0.587 G + 0.114 B in all three channels."""
    return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


def solarize(image: tf.Tensor, threshold: float) -> tf.Tensor:
    """Inverts every value >= threshold, as PIL and BYOL do."""
    return tf.where(image < threshold, image, 1.0 - image)


def gaussian_noise(image: tf.Tensor, seed: tf.Tensor, std: float) -> tf.Tensor:
    """Adds independent N(0, std^2) to every value; seed int [2]."""
    return image + std * tf.random.stateless_normal(image.shape, seed)


# ---- geometry and neighbourhoods ---------------------------------------------------------------


def flip(image: tf.Tensor) -> tf.Tensor:
    """Swaps left and right."""
    return tf.reverse(image, [1])


def rotate(image: tf.Tensor, quarter_turns: tf.Tensor) -> tf.Tensor:
    """Turns a square image counter-clockwise by `quarter_turns` times 90 degrees."""
    return tf.ensure_shape(tf.image.rot90(image, quarter_turns), image.shape)


def sobel(image: tf.Tensor) -> tf.Tensor:
    """Length of each channel's Sobel gradient, borders reflected; at least 2x2 pixels.

    Divided by sqrt(20), the greatest length that pixels in [0, 1] can give, so it stays in [0, 1].
    """
    gradient = tf.image.sobel_edges(image[None])[0]  # [H, W, 3, (dy, dx)]
    return tf.norm(gradient, axis=-1) / math.sqrt(20.0)


def blur_kernel_size(image_size: int, kernel_fraction: float) -> int:
    """The official odd kernel size: for a fraction of 0.1, 23 at 224 pixels and 3 at 32."""
    return 2 * int(int(image_size * kernel_fraction) / 2) + 1


def gaussian_blur(image: tf.Tensor, sigma: tf.Tensor, kernel_size: int) -> tf.Tensor:
    """Separable Gaussian blur with an odd kernel; pixels beyond the border count as zeros."""
    radius = kernel_size // 2
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    kernel = tf.exp(-tf.square(offsets) / (2.0 * tf.square(sigma)))
    kernel = tf.tile((kernel / tf.reduce_sum(kernel))[:, None, None, None], [1, 1, 3, 1])
    image = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], 'SAME')
    kernel = tf.transpose(kernel, [1, 0, 2, 3])
    return tf.nn.depthwise_conv2d(image, kernel, [1, 1, 1, 1], 'SAME')[0]


def cutout(image: tf.Tensor, centre: tf.Tensor, side: int) -> tf.Tensor:
    """Zeros the square of `side` pixels that begins at `centre` - side // 2, centre int32 [2].

    What lies beyond the border is lost, as in DeVries and Taylor (arXiv 1708.04552).
    """
    begin = centre - side // 2
    rows, columns = (tf.range(length) for length in image.shape[:2])
    in_rows = (rows >= begin[0]) & (rows < begin[0] + side)
    in_columns = (columns >= begin[1]) & (columns < begin[1] + side)
    return tf.where((in_rows[:, None] & in_columns[None, :])[..., None], 0.0, image)


# ---- crop and resize ---------------------------------------------------------------------------


def crop_box(shape: tf.Tensor, seed: tf.Tensor, *, law: str, area: tuple[float, float],
             aspect: tuple[float, float]) -> Box:
    """Draws a crop of an image of `shape`.

    Args:
      shape: int32 [3], (height, width, channels).
      seed: int [2].
      law: 'tf' draws the height uniformly between its limits and covers at least a tenth of the
        image, as the official SimCLR code does through tf.image.sample_distorted_bounding_box (mean
        area 0.39 at 375x500). 'uniform' draws the area uniformly and the aspect ratio
        log-uniformly, as torchvision's RandomResizedCrop does for MoCo and BYOL (mean area 0.43).
      area: least and greatest share of the image's area.
      aspect: least and greatest width / height.

    Returns:
      The box, (begin, size). Where no try fits: the whole image ('tf', after 100 tries) or the
      largest central crop with an aspect ratio within the limits ('uniform', after 10 tries).
    """
    if law == 'uniform':
        return _uniform_area_box(shape, seed, area, aspect)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape, tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed, min_object_covered=0.1,
        aspect_ratio_range=aspect, area_range=area, max_attempts=100)
    return begin, size


def _uniform_area_box(shape: tf.Tensor, seed: tf.Tensor, area: tuple[float, float],
                      aspect: tuple[float, float]) -> Box:
    image_size = tf.cast(shape[:2], tf.float32)  # (height, width)
    height, width = tf.unstack(image_size)
    draws = tf.random.stateless_uniform([10, 4], seed)  # ten tries at once: the first fit counts
    areas = height * width * (area[0] + draws[:, 0] * (area[1] - area[0]))
    log_aspect = math.log(aspect[0]), math.log(aspect[1])
    aspects = tf.exp(log_aspect[0] + draws[:, 1] * (log_aspect[1] - log_aspect[0]))
    sizes = tf.round(tf.sqrt(tf.stack([areas / aspects, areas * aspects], 1)))  # [10, 2]
    begins = tf.floor(draws[:, 2:] * (image_size - sizes + 1.0))
    fits = tf.reduce_all((sizes >= 1.0) & (sizes <= image_size), 1)

    fallback = tf.stack([tf.minimum(height, tf.round(width / aspect[0])),
                         tf.minimum(width, tf.round(height * aspect[1]))])
    fallback = tf.maximum(fallback, 1.0)
    sizes = tf.concat([sizes, fallback[None]], 0)
    begins = tf.concat([begins, tf.floor((image_size - fallback) / 2.0)[None]], 0)
    choice = tf.argmax(tf.concat([fits, [True]], 0), output_type=tf.int32)
    begin, size = tf.cast(begins[choice], tf.int32), tf.cast(sizes[choice], tf.int32)
    return tf.concat([begin, [0]], 0), tf.concat([size, [-1]], 0)  # -1: all channels


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Bicubic resize (a = -0.5, half-pixel centres, not antialiased) to a square.

    Args:
      image: uint8 [H, W, 3], or float32 [H, W, 3] in [0, 1].
      image_size: side of the result.

    Returns:
      float32 [image_size, image_size, 3] around [0, 1]: the overshoot of the cubic is kept.
    """
    if image.dtype not in (tf.uint8, tf.float32):
        raise ValueError('An image must be uint8, or float32 in [0, 1]; '
                         f'got {image.dtype.name}: cast it first.')
    resized = tf.image.resize(image, [image_size, image_size], 'bicubic')
    if image.dtype == tf.uint8:
        # Linear, so scaling the small result equals scaling the whole image first.
        resized = tf.cast(resized, tf.float32) * (1.0 / 255.0)
    return tf.ensure_shape(resized, [image_size, image_size, 3])
