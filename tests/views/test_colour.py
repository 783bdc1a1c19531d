"""The colour and neighbourhoods of both forms of the augmentation against float64, PIL and tf.image."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from simclr_jax.views import host_colour, ops
from simclr_jax.views.fields import Blur, Grey, Jitter, Solarize, View
from tests import augment_oracles as oracles

NOTHING = (-1, -1, -1, -1)
ORDERS = np.array(list(itertools.permutations(range(4))))


def on_device(name, image, *arguments):
    """A function of planes [3, H, W] of ops.py, of an image [H, W, 3]."""
    run = jax.jit(getattr(ops, name), static_argnums=2 if name == 'gaussian_blur' else ())
    return np.moveaxis(np.asarray(run(np.moveaxis(image, -1, 0), *arguments)), 0, -1)


def on_host(name, image, *arguments):
    """The one of the same name of host_colour.py."""
    return np.moveaxis(getattr(host_colour, name)(tf.constant(np.moveaxis(image, -1, 0)), *arguments).numpy(), 0, -1)


FORMS = pytest.mark.parametrize('run', [on_device, on_host])


def finished(images, view, **choices):
    """Views [N, S, S, 3] of the host by what was drawn: lists of N, or one value for all."""
    names = ('order', 'amounts', 'grey', 'sobel', 'noise', 'sigma', 'solarize', 'top', 'left')
    drawn = {'order': NOTHING, 'amounts': (0.0,) * 4, 'top': -99, 'left': -99, **choices}
    rows = [np.concatenate([np.ravel(drawn.get(name, 0)[row] if isinstance(drawn.get(name), list)
                                     else drawn.get(name, 0)) for name in names])
            for row in range(len(images))]
    finish = host_colour.make_finish(view, 'float32')
    return finish(np.float32(images), np.float32(rows), np.zeros(len(images), np.float32)).numpy()


@FORMS
@pytest.mark.parametrize('size', [5, 33])
def test_contrast_keeps_the_mean_of_each_channel(run, size):
    image = oracles.random_image(size, size, -0.05, 1.05) * np.float32([1.0, 0.5, 0.2])
    for factor in (0.0, 0.3, 1.8):
        np.testing.assert_allclose(run('adjust_contrast', image, factor), oracles.contrast(image, factor), atol=2e-6)


@FORMS
def test_saturation_is_scaled_in_hsv_and_hue_turns_the_colour_circle(run):
    image = oracles.random_image(8, 8)
    for factor in (0.0, 0.4, 1.0, 1.8):
        expected = oracles.in_hsv(image, lambda h, s, v: (h, min(s * factor, 1.0), v))
        np.testing.assert_allclose(run('adjust_saturation', image, factor), expected, atol=2e-6)
    for delta in (-0.5, -0.2, 0.07, 0.5):
        np.testing.assert_allclose(run('adjust_hue', image, delta), oracles.hue(image, delta), atol=2e-6)


@FORMS
def test_saturation_and_hue_take_the_overshoot_of_bicubic(run):
    # Greatest channel above 1, least below 0: what a bicubic resize hands to the first colour op.
    image = oracles.random_image(8, 8, -0.05, 1.05)
    image[0, 0], image[0, 1], image[0, 2] = -0.04, (-0.01, -0.02, -0.03), 0.0
    expected = tf.image.adjust_saturation(image, 0.5).numpy().clip(0, 1)
    np.testing.assert_allclose(run('adjust_saturation', image, 0.5).clip(0, 1), expected, atol=2e-6)
    if run is on_device:        # which clips later; of grey pixels, as in the first row, the formula is 0 / 0
        result = np.asarray(run('adjust_saturation', image, 0.5))
        np.testing.assert_allclose(result[1:], oracles.saturation(image[1:], 0.5), atol=2e-6)
    np.testing.assert_allclose(run('adjust_hue', image, 1 / 3), np.roll(image, 1, axis=-1), atol=2e-6)


@FORMS
def test_a_grey_pixel_has_no_saturation_and_no_hue_to_change(run):
    image = np.float32([[-0.02, 0.0], [0.4, 1.02]])[..., None].repeat(3, -1)
    for name in ('adjust_saturation', 'adjust_hue'):
        np.testing.assert_allclose(run(name, image, 0.3), image, rtol=0, atol=0 if run is on_device else 1e-7)


@FORMS
def test_grey_weights_and_sobel_is_the_length_of_the_gradient(run):
    image = oracles.random_image(6, 6)
    np.testing.assert_allclose(run('to_grey', image), oracles.grey(image), atol=1e-6)
    np.testing.assert_allclose(run('sobel', image), oracles.sobel(image), atol=1e-6)


@FORMS
def test_solarize_is_pils(run):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    floats = np.float32(image / 255)
    solarized = (ops.solarize(floats, 128 / 255) if run is on_device else
                 finished([floats], View(solarize=Solarize(1.0, threshold=128 / 255)), solarize=1)[0])
    np.testing.assert_allclose(255 * np.asarray(solarized), expected, atol=1e-4)


@FORMS
@pytest.mark.parametrize('mode', ['multiply', 'add'])
def test_jitter_in_every_order_clips_after_each(run, mode):
    image = oracles.random_image(5, 5)
    amounts = jnp.float32([1.6 if mode == 'multiply' else -0.3, 1.5, 0.4, 0.15])
    if run is on_device:
        results = jax.jit(jax.vmap(lambda order: ops.jitter(
            jnp.moveaxis(image, -1, 0), order, amounts, active=[True] * 4, brightness_mode=mode)))(ORDERS)
        results = np.moveaxis(np.asarray(results), 1, -1)
    else:
        view = View(jitter=Jitter(1.0, brightness_mode=mode))
        results = finished([image] * 24, view, order=list(ORDERS), amounts=amounts)
    for order, result in zip(ORDERS, results):
        np.testing.assert_allclose(result, oracles.jitter(image, order, amounts, [True] * 4, mode), atol=1e-5)
    assert len(np.unique(results, axis=0)) > 12  # the order matters


def test_an_inactive_jitter_op_of_the_device_only_keeps_its_turn():
    image, order = oracles.random_image(5, 5, -0.05, 1.05), (2, 0, 3, 1)
    amounts, active = jnp.float32([9.0, 1.3, 9.0, 0.1]), [False, True, False, True]
    result = jax.jit(lambda image: ops.jitter(image, jnp.array(order), amounts, active=active, brightness_mode='add'))(
        np.moveaxis(image, -1, 0))
    np.testing.assert_allclose(np.moveaxis(result, 0, -1), oracles.jitter(image, order, amounts, active), atol=1e-5)


def test_operation_four_of_the_host_clips_and_does_no_more():
    image = oracles.random_image(6, 6, -0.3, 1.3)
    result, = finished([image], View(jitter=Jitter(1.0)), order=(4, 1, -1, -1), amounts=(0, 0.5, 0, 0))
    np.testing.assert_allclose(result, oracles.contrast(image.clip(0, 1), 0.5), atol=1e-6)


def test_nothing_but_a_clip_on_the_host_unless_it_was_drawn():
    images = np.stack([oracles.random_image(9, 9, -0.2, 1.2)] * 2)
    for view in (View(), View(grey=Grey(0.5), blur=Blur(0.5, kernel_fraction=0.4), jitter=Jitter(0.5))):
        np.testing.assert_array_equal(finished(images, view), images.clip(0, 1))


def test_sobel_reaches_one_and_no_more():
    # All 2^9 black and white neighbourhoods of a pixel, side by side: the steepest gives exactly 1.
    patches = np.array(list(itertools.product([0.0, 1.0], repeat=9)), np.float32)
    image = np.concatenate(patches.reshape(512, 3, 3), axis=1)[..., None].repeat(3, -1)
    assert on_device('sobel', image)[1, 1::3].max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize('run, height, width, kernel_size, sigmas', [
    (on_device, 6, 6, 3, (0.1, 1.7)), (on_device, 7, 4, 5, (1.0,)), (on_device, 3, 3, 9, (1.5,)),
    (on_host, 6, 6, 3, (0.1, 1.7)), (on_host, 6, 6, 7, (2.0,))])
def test_blur_is_a_gaussian_with_zeros_beyond_the_border(run, height, width, kernel_size, sigmas):
    image = oracles.random_image(height, width)
    for sigma in sigmas:
        np.testing.assert_allclose(run('gaussian_blur', image, sigma, kernel_size),
                                   oracles.blur(image, sigma, kernel_size), atol=1e-6)


@pytest.mark.parametrize('size', [31, 32, 33, 70])
def test_blur_of_larger_images_of_the_host_is_a_product_with_a_band_on_each_side(size):
    image, radius, sigma = oracles.random_image(size, size), 5, 1.3
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    band = np.where(abs(distance) <= radius, np.exp(-distance ** 2 / (2 * sigma ** 2)), 0)
    band /= np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2)).sum()
    expected = np.einsum('ij,jkc,lk->ilc', band, image, band)
    np.testing.assert_allclose(on_host('gaussian_blur', image, sigma, 2 * radius + 1), expected, atol=1e-6)
