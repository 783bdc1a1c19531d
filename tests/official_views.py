"""Many views by the official preprocessing, and whether others have their distribution."""

import numpy as np
import tensorflow as tf
from scipy import stats


def smooth_image():
    """uint8 [48, 64, 3], with edges and colours of a photograph's kind, always the same."""
    coarse = np.random.default_rng(0).uniform(0.0, 255.0, (6, 8, 3)).astype(np.float32)
    return tf.cast(tf.clip_by_value(tf.image.resize(coarse, [48, 64]), 0, 255), tf.uint8).numpy()


def official_views(image, count):
    """float32 [count, 32, 32, 3], each by `official_view`."""
    tf.random.set_seed(0)
    views = tf.data.Dataset.range(count).map(lambda _: official_view(tf.constant(image))).batch(count)
    return next(views.as_numpy_iterator())


def official_view(image):
    """The official steps at strength 0.5, transcribed with TensorFlow's stateful random ops."""

    def maybe(function, probability, x):
        return tf.cond(tf.random.uniform([]) < probability, lambda: function(x), lambda: x)

    def jitter(x):
        order = tf.random.shuffle(tf.range(4))
        for i in range(4):
            x = tf.switch_case(order[i], [
                lambda x=x: x * tf.random.uniform([], 0.6, 1.4),
                lambda x=x: tf.image.random_contrast(x, 0.6, 1.4),
                lambda x=x: tf.image.random_saturation(x, 0.6, 1.4),
                lambda x=x: tf.image.random_hue(x, 0.1)])
            x = tf.clip_by_value(x, 0.0, 1.0)
        return x

    image = tf.image.convert_image_dtype(image, tf.float32)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), min_object_covered=0.1,
        aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0), max_attempts=100)
    image = tf.image.resize(tf.slice(image, begin, size), [32, 32], 'bicubic')
    image = tf.ensure_shape(image, [32, 32, 3])
    image = tf.image.random_flip_left_right(image)
    image = maybe(jitter, 0.8, image)
    image = maybe(lambda x: tf.tile(tf.image.rgb_to_grayscale(x), [1, 1, 3]), 0.2, image)
    return tf.clip_by_value(image, 0.0, 1.0)


def assert_same_distribution(ours, theirs):
    """Kolmogorov-Smirnov, of eight numbers that tell a view."""
    for our_statistic, their_statistic in zip(statistics(ours), statistics(theirs)):
        assert stats.ks_2samp(our_statistic, their_statistic).pvalue > 1e-3


def statistics(views):
    middle = views.shape[2] // 2
    half = views[:, :, :middle].mean((1, 2, 3)) - views[:, :, middle:].mean((1, 2, 3))
    return [views.mean((1, 2, 3)), views.std((1, 2, 3)), views.max(-1).mean((1, 2)), half,
            np.ptp(views, axis=-1).mean((1, 2)), views[..., 0].mean((1, 2)),
            np.abs(np.diff(views, axis=2)).mean((1, 2, 3)), (views > 1.0 - 1e-6).mean((1, 2, 3))]
