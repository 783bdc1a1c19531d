"""TensorFlow's form of the colour against oracles in float64 and against tf.image."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from simclr_jax.views import host_colour
from simclr_jax.views.fields import Blur, Grey, Jitter, Solarize, View
from tests import augment_oracles as oracles

NOTHING = (-1, -1, -1, -1)


def on_pixels(function, image, *arguments):
    """A function of planes, of an image [H, W, 3]."""
    return np.moveaxis(function(tf.constant(np.moveaxis(image, -1, 0)), *arguments).numpy(), 0, -1)


def finished(images, view, **choices):
    """Views [N, S, S, 3] by what was drawn: lists of N, or one value for all."""
    names = ('order', 'amounts', 'grey', 'sobel', 'noise', 'sigma', 'solarize', 'top', 'left')
    drawn = {'order': NOTHING, 'amounts': (0.0,) * 4, 'top': -99, 'left': -99, **choices}
    rows = [np.concatenate([np.ravel(drawn.get(name, 0)[row] if isinstance(drawn.get(name), list)
                                     else drawn.get(name, 0)) for name in names])
            for row in range(len(images))]
    finish = host_colour.make_finish(view, 'float32')
    return finish(np.float32(images), np.float32(rows), np.zeros(len(images), np.float32)).numpy()


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.8])
@pytest.mark.parametrize('size', [5, 33])
def test_contrast_keeps_the_mean_of_each_channel(factor, size):
    image = oracles.random_image(size, size, -0.05, 1.05) * np.float32([1.0, 0.5, 0.2])
    result = on_pixels(host_colour.adjust_contrast, image, factor)
    np.testing.assert_allclose(result, oracles.contrast(image, factor), atol=2e-6)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.8])
def test_saturation_is_scaled_in_hsv(factor):
    image = oracles.random_image(8, 8)
    expected = oracles.in_hsv(image, lambda h, s, v: (h, min(s * factor, 1.0), v))
    np.testing.assert_allclose(on_pixels(host_colour.adjust_saturation, image, factor), expected, atol=2e-6)


@pytest.mark.parametrize('delta', [-0.5, -0.2, 0.07, 0.5])
def test_hue_turns_the_colour_circle(delta):
    image = oracles.random_image(8, 8)
    np.testing.assert_allclose(on_pixels(host_colour.adjust_hue, image, delta), oracles.hue(image, delta),
                               atol=2e-6)


def test_saturation_and_hue_take_the_overshoot_of_bicubic():
    # Greatest channel above 1, least below 0: what a bicubic resize hands to the first colour op.
    image = oracles.random_image(12, 12, -0.05, 1.05)
    image[0, 0], image[0, 1], image[0, 2] = -0.04, (-0.01, -0.02, -0.03), 0.0
    expected = tf.image.adjust_saturation(image, 0.5).numpy().clip(0, 1)
    result = on_pixels(host_colour.adjust_saturation, image, 0.5).clip(0, 1)
    np.testing.assert_allclose(result, expected, atol=2e-6)
    turned = on_pixels(host_colour.adjust_hue, image, 1 / 3)
    np.testing.assert_allclose(turned, np.roll(image, 1, axis=-1), atol=2e-6)


def test_saturation_and_hue_leave_grey_pixels_alone():
    image = np.repeat(oracles.random_image(4, 4)[..., :1], 3, axis=-1)
    result = on_pixels(host_colour.adjust_hue, on_pixels(host_colour.adjust_saturation, image, 1.7), 0.3)
    np.testing.assert_allclose(result, image, atol=1e-7)


@pytest.mark.parametrize('mode', ['multiply', 'add'])
def test_jitter_in_every_order_clips_after_each(mode):
    orders = list(itertools.permutations(range(4)))
    image = oracles.random_image(5, 5)
    amounts = np.float32([1.6 if mode == 'multiply' else -0.3, 1.5, 0.4, 0.15])
    view = View(jitter=Jitter(1.0, brightness_mode=mode))
    results = finished([image] * 24, view, order=orders, amounts=amounts)
    for order, result in zip(orders, results):
        expected = oracles.jitter(image, order, amounts, [True] * 4, mode)
        np.testing.assert_allclose(result, expected, atol=1e-5)
    assert len(np.unique(results, axis=0)) > 12  # the order matters


def test_operation_four_clips_and_does_no_more():
    image = oracles.random_image(6, 6, -0.3, 1.3)
    result, = finished([image], View(jitter=Jitter(1.0)), order=(4, 1, -1, -1), amounts=(0, 0.5, 0, 0))
    np.testing.assert_allclose(result, oracles.contrast(image.clip(0, 1), 0.5), atol=1e-6)


def test_nothing_but_a_clip_unless_it_was_drawn():
    images = np.stack([oracles.random_image(9, 9, -0.2, 1.2)] * 2)
    for view in (View(), View(grey=Grey(0.5), blur=Blur(0.5, kernel_fraction=0.4), jitter=Jitter(0.5))):
        np.testing.assert_array_equal(finished(images, view), images.clip(0, 1))


def test_grey_weights():
    image = oracles.random_image(5, 5)
    np.testing.assert_allclose(on_pixels(host_colour.to_grey, image), oracles.grey(image), atol=1e-6)


def test_solarize_is_pils():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    solarized, = finished([image / 255], View(solarize=Solarize(1.0, threshold=128 / 255)), solarize=1)
    np.testing.assert_allclose(solarized * 255, expected, atol=1e-4)


@pytest.mark.parametrize('radius, sigma', [(1, 0.1), (1, 1.7), (3, 2.0)])
def test_blur_is_a_gaussian_with_zeros_beyond_the_border(radius, sigma):
    image = oracles.random_image(6, 6)
    result = on_pixels(host_colour.gaussian_blur, image, sigma, 2 * radius + 1)
    np.testing.assert_allclose(result, oracles.blur(image, sigma, 2 * radius + 1), atol=1e-6)


def test_sobel_is_the_length_of_the_gradient():
    image = oracles.random_image(7, 7)
    np.testing.assert_allclose(on_pixels(host_colour.sobel, image), oracles.sobel(image), atol=1e-6)


@pytest.mark.parametrize('size', [31, 32, 33, 70])
def test_blur_of_larger_images_is_a_product_with_a_band_on_each_side(size):
    image, radius, sigma = oracles.random_image(size, size), 5, 1.3
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    band = np.where(abs(distance) <= radius, np.exp(-distance ** 2 / (2 * sigma ** 2)), 0)
    band /= np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2)).sum()
    expected = np.einsum('ij,jkc,lk->ilc', band, image, band)
    result = on_pixels(host_colour.gaussian_blur, image, sigma, 2 * radius + 1)
    np.testing.assert_allclose(result, expected, atol=1e-6)
