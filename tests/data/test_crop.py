"""Crop and colour against oracles in float64 and against tf.image, compiled and not."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from simclr_jax.data import kernels
from simclr_jax.data.kernels import Colour
from tests import augment_oracles as oracles

ORDERS = list(itertools.permutations(range(4)))
NOTHING = (-1, -1, -1, -1)


@pytest.fixture(autouse=True, params=['compiled', 'tensorflow'])
def implementation(request, monkeypatch):
    if request.param == 'tensorflow':
        monkeypatch.setattr(kernels, 'library', lambda: None)
    elif kernels.library() is None:
        pytest.skip('the extension is not built: pip install -e .')
    return request.param


def changed(image, **fields):
    return kernels.change_colour(image, Colour(**fields), out=np.empty_like(image))


def only(operation):
    """The order in which this operation alone runs."""
    return NOTHING[:2] + (operation,) + NOTHING[3:]


# ---- colour ------------------------------------------------------------------------------------


def test_nothing_but_a_clip_unless_asked():
    image = oracles.random_image(9, 9, -0.2, 1.2)
    np.testing.assert_array_equal(changed(image), image.clip(0, 1))


def test_brightness_multiplies_or_adds():
    image = oracles.random_image(5, 5)
    for fields, expected in (({'multiply': 1.5}, image * 1.5), ({'add': -0.3}, image - 0.3)):
        result = changed(image, order=only(0), **fields)
        np.testing.assert_allclose(result, expected.clip(0, 1), atol=1e-7)


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.8])
@pytest.mark.parametrize('size', [5, 33])
def test_contrast_keeps_the_mean_of_each_channel(factor, size):
    image = oracles.random_image(size, size, -0.05, 1.05) * np.float32([1.0, 0.5, 0.2])
    expected = oracles.contrast(image, factor).clip(0, 1)
    np.testing.assert_allclose(changed(image, order=only(1), contrast=factor), expected, atol=2e-6)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.8])
def test_saturation_is_scaled_in_hsv(factor):
    image = oracles.random_image(8, 8)
    expected = oracles.in_hsv(image, lambda h, s, v: (h, min(s * factor, 1.0), v))
    np.testing.assert_allclose(changed(image, order=only(2), saturation=factor), expected, atol=2e-6)


@pytest.mark.parametrize('delta', [-0.5, -0.2, 0.07, 0.5])
def test_hue_turns_the_colour_circle(delta):
    image = oracles.random_image(8, 8)
    expected = oracles.hue(image, delta)
    np.testing.assert_allclose(changed(image, order=only(3), hue=delta), expected, atol=2e-6)


def test_saturation_and_hue_take_the_overshoot_of_bicubic():
    # Greatest channel above 1, least below 0: what a bicubic resize hands to the first colour op.
    image = oracles.random_image(12, 12, -0.05, 1.05)
    image[0, 0], image[0, 1], image[0, 2] = -0.04, (-0.01, -0.02, -0.03), 0.0
    expected = tf.image.adjust_saturation(image, 0.5).numpy().clip(0, 1)
    np.testing.assert_allclose(changed(image, order=only(2), saturation=0.5), expected, atol=2e-6)
    turned = changed(image, order=only(3), hue=1 / 3)
    np.testing.assert_allclose(turned, np.roll(image, 1, axis=-1).clip(0, 1), atol=2e-6)


def test_saturation_and_hue_leave_grey_pixels_alone():
    image = np.repeat(oracles.random_image(4, 4)[..., :1], 3, axis=-1)
    result = changed(image, order=(2, 3, -1, -1), saturation=1.7, hue=0.3)
    np.testing.assert_allclose(result, image, atol=1e-7)


def test_jitter_in_every_order_clips_after_each():
    image, amounts, results = oracles.random_image(5, 5), np.float32([1.6, 1.5, 0.4, 0.15]), []
    for order in ORDERS:
        results.append(changed(image, order=order, multiply=amounts[0], contrast=amounts[1],
                               saturation=amounts[2], hue=amounts[3]))
        np.testing.assert_allclose(results[-1], oracles.jitter(image, order, amounts, [True] * 4), atol=1e-5)
    assert len(np.unique(np.stack(results), axis=0)) > 12  # the order matters


def test_operation_four_clips_and_does_no_more():
    image = oracles.random_image(6, 6, -0.3, 1.3)
    result = changed(image, order=(4, 1, -1, -1), contrast=0.5)
    np.testing.assert_allclose(result, oracles.contrast(image.clip(0, 1), 0.5), atol=1e-6)


def test_grey_weights():
    image = oracles.random_image(5, 5)
    np.testing.assert_allclose(changed(image, is_grey=True), oracles.grey(image), atol=1e-6)


def test_solarize_is_pils():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    solarized = changed(image.astype(np.float32) / 255, threshold=128 / 255)
    np.testing.assert_allclose(solarized * 255, expected, atol=1e-4)


@pytest.mark.parametrize('radius, sigma', [(1, 0.1), (1, 1.7), (3, 2.0)])
def test_blur_is_a_gaussian_with_zeros_beyond_the_border(radius, sigma):
    image = oracles.random_image(6, 6)
    expected = oracles.blur(image, sigma, 2 * radius + 1)
    np.testing.assert_allclose(changed(image, sigma=sigma, radius=radius), expected, atol=1e-6)


@pytest.mark.parametrize('size', [31, 32, 33, 70])
def test_blur_of_larger_images_is_a_product_with_a_band_on_each_side(size):
    image, radius, sigma = oracles.random_image(size, size), 5, 1.3
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    band = np.where(abs(distance) <= radius, np.exp(-distance ** 2 / (2 * sigma ** 2)), 0)
    band /= np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2)).sum()
    expected = np.einsum('ij,jkc,lk->ilc', band, image, band)
    np.testing.assert_allclose(changed(image, sigma=sigma, radius=radius), expected, atol=1e-6)


def test_bytes_are_the_floats_rounded():
    image = oracles.random_image(20, 20)
    colour = Colour(order=(3, 0, 2, 1), multiply=1.2, contrast=0.7, saturation=1.4, hue=0.1, sigma=0.8,
                    radius=2)
    floats = kernels.change_colour(image, colour, out=np.empty_like(image))
    data = kernels.change_colour(image, colour, out=np.empty(image.shape, np.uint8))
    np.testing.assert_array_equal(data, np.rint(255 * floats))


# ---- crop and resize ---------------------------------------------------------------------------

BOXES = [(0, 0, 40, 60), (3, 5, 12, 20), (1, 7, 38, 2), (39, 59, 1, 1), (0, 0, 1, 60), (5, 6, 2, 3),
         (8, 9, 24, 24)]


def random_bytes(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def resized(image, box, size, dtype=np.float32, **options):
    return kernels.crop_resize(image, box, size, out=np.empty((size, size, 3), dtype), **options)


@pytest.mark.parametrize('box', BOXES)
@pytest.mark.parametrize('size', [24, 7])
def test_crops_equal_tensorflows_bit_for_bit(box, size):
    top, left, height, width = box
    image = random_bytes()
    expected = tf.image.resize(image[top:top + height, left:left + width], [size, size], 'bicubic').numpy()
    np.testing.assert_array_equal(resized(image, box, size), expected * np.float32(1 / 255))
    np.testing.assert_array_equal(resized(image, box, size, np.uint8), np.rint(expected).clip(0, 255))


def test_bytes_are_rounded_half_to_even():
    image = random_bytes()
    floats = tf.image.resize(image[:40, :40], [20, 20], 'bicubic').numpy()  # multiples of 1/256
    assert (floats % 1 == 0.5).sum() > 2
    np.testing.assert_array_equal(resized(image, (0, 0, 40, 40), 20, np.uint8), np.rint(floats).clip(0, 255))


def test_crops_are_keys_bicubic_with_its_overshoot():
    image = 255 * (random_bytes() > 127).astype(np.uint8)
    for box in BOXES:
        top, left, height, width = box
        expected = oracles.resize(image[top:top + height, left:left + width] / 255, 16)
        # The cubic is read from a table of 1024 entries.
        np.testing.assert_allclose(resized(image, box, 16), expected, atol=2e-3)


def test_a_crop_may_be_flipped():
    for dtype in (np.float32, np.uint8):
        crop, flipped = (resized(random_bytes(), (3, 5, 30, 20), 25, dtype, is_flipped=is_flipped)
                         for is_flipped in (False, True))
        np.testing.assert_array_equal(flipped, crop[:, ::-1])


def test_a_crop_sees_nothing_outside_its_box():
    image, other = random_bytes(), 255 - random_bytes()
    other[10:30, 20:45] = image[10:30, 20:45]
    np.testing.assert_array_equal(resized(image, (10, 20, 20, 25), 32), resized(other, (10, 20, 20, 25), 32))


def test_an_image_may_lie_in_memory_as_it_likes():
    image = random_bytes()
    expected = resized(image, (3, 5, 30, 20), 16)
    within = np.zeros((50, 70, 3), np.uint8)
    within[4:44, 6:66] = image
    for same in (within[4:44, 6:66], np.asfortranarray(image), image[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(resized(same, (3, 5, 30, 20), 16), expected)


@pytest.mark.parametrize('box', [(-1, 0, 5, 5), (0, -1, 5, 5), (36, 0, 5, 5), (0, 56, 5, 5), (0, 0, 0, 5),
                                 (0, 0, 5, 0)])
def test_a_box_that_leaves_the_image_is_named(box):
    with pytest.raises(ValueError, match=r'is not inside an image of shape \(40, 60, 3\)'):
        resized(random_bytes(), box, 8)


def test_a_build_of_other_sources_is_left_aside(monkeypatch, implementation):
    if implementation == 'compiled':
        monkeypatch.setattr(kernels, '_VERSION', -1)
        assert kernels.library.__wrapped__() is None
