"""The accelerator's augmentation formulas against the host's oracles, and its crops against TensorFlow."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from scipy import stats

from simclr_jax.views import ops
from tests import augment_oracles as oracles

LIMITS = {'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)}


def on_pixels(function, image, *args, **kwargs):
    """function of planes [3, H, W], applied to [H, W, 3]."""
    planes = function(jnp.asarray(np.moveaxis(image, -1, 0)), *args, **kwargs)
    return np.moveaxis(np.asarray(planes), 0, -1)


# ---- colour ------------------------------------------------------------------------------------


def test_brightness_multiplies_or_adds():
    image = oracles.random_image(4, 5)
    np.testing.assert_allclose(ops.adjust_brightness(image, 1.5, 'multiply'), image * 1.5, rtol=1e-6)
    np.testing.assert_allclose(ops.adjust_brightness(image, -0.3, 'add'), image - 0.3, atol=1e-6)


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.8])
def test_contrast_keeps_the_mean_of_each_channel(factor):
    image = oracles.random_image(6, 9, -0.05, 1.05) * np.float32([1.0, 0.5, 0.2])
    np.testing.assert_allclose(
        on_pixels(ops.adjust_contrast, image, factor), oracles.contrast(image, factor), atol=2e-6)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.8])
def test_saturation_is_scaled_in_hsv(factor):
    image = oracles.random_image(8, 8)
    expected = oracles.in_hsv(image, lambda h, s, v: (h, min(s * factor, 1.0), v))
    np.testing.assert_allclose(on_pixels(ops.adjust_saturation, image, factor), expected, atol=2e-6)


@pytest.mark.parametrize('delta', [-0.2, 0.07, 0.5])
def test_hue_turns_the_colour_circle(delta):
    image = oracles.random_image(8, 8)
    np.testing.assert_allclose(
        on_pixels(ops.adjust_hue, image, delta), oracles.hue(image, delta), atol=2e-6)


def test_saturation_and_hue_take_the_overshoot_of_bicubic():
    # Greatest channel above 1, least below 0: what a bicubic resize hands to the first colour op.
    image = oracles.random_image(8, 8, -0.05, 1.05)
    np.testing.assert_allclose(
        on_pixels(ops.adjust_saturation, image, 0.5), oracles.saturation(image, 0.5), atol=2e-6)
    turned = on_pixels(ops.adjust_hue, image, 1 / 3)
    np.testing.assert_allclose(turned, np.roll(image, 1, axis=-1), atol=2e-6)


@pytest.mark.parametrize('value', [-0.02, 0.0, 0.4, 1.02])
def test_a_grey_pixel_has_no_saturation_and_no_hue_to_change(value):
    image = np.full((2, 2, 3), value, np.float32)
    for function in (ops.adjust_saturation, ops.adjust_hue):
        np.testing.assert_array_equal(on_pixels(function, image, 0.3), image)


def test_grey_weights():
    image = oracles.random_image(5, 4)
    np.testing.assert_allclose(on_pixels(ops.to_grey, image), oracles.grey(image), atol=1e-6)


def test_solarize_is_pils():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    solarized = ops.solarize(image.astype(np.float32) / 255.0, 128 / 255)
    np.testing.assert_allclose(np.asarray(solarized) * 255.0, expected, atol=1e-4)


def test_jitter_in_every_order_clips_after_each():
    image = oracles.random_image(5, 5, -0.05, 1.05)
    amounts = np.float32([1.6, 1.5, 0.4, 0.15])
    orders = np.array(list(itertools.permutations(range(4))))
    results = jax.vmap(lambda order: ops.jitter(
        jnp.moveaxis(image, -1, 0), order, jnp.asarray(amounts), active=[True] * 4,
        brightness_mode='multiply'))(orders)
    for order, result in zip(orders, np.moveaxis(np.asarray(results), 1, -1)):
        expected = oracles.jitter(image, order, amounts, [True] * 4)
        if order[0] != 3:  # the standard library's HSV does not take overshoot
            np.testing.assert_allclose(result, expected, atol=1e-5)
    assert len(np.unique(results, axis=0)) > 12  # the order matters


def test_an_inactive_jitter_op_only_keeps_its_turn():
    image, order = oracles.random_image(5, 5, -0.05, 1.05), (2, 0, 3, 1)
    amounts, active = np.float32([9.0, 1.3, 9.0, 0.1]), [False, True, False, True]
    result = on_pixels(ops.jitter, image, jnp.array(order), jnp.asarray(amounts), active=active,
                       brightness_mode='add')
    np.testing.assert_allclose(result, oracles.jitter(image, order, amounts, active), atol=1e-5)


# ---- geometry and neighbourhoods ---------------------------------------------------------------


def test_rotation_is_numpys():
    image = oracles.random_image(6, 6)
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(on_pixels(ops.rotate, image, turns), np.rot90(image, turns))


def test_sobel_is_the_length_of_the_gradient():
    image = oracles.random_image(6, 7)
    np.testing.assert_allclose(on_pixels(ops.sobel, image), oracles.sobel(image), atol=1e-6)


def test_sobel_reaches_one_and_no_more():
    # All 2^9 black and white neighbourhoods of a pixel, side by side: the steepest gives exactly 1.
    patches = np.array(list(itertools.product([0.0, 1.0], repeat=9)), np.float32)
    image = np.concatenate(patches.reshape(512, 3, 3), axis=1)[..., None].repeat(3, -1)
    assert on_pixels(ops.sobel, image)[1, 1::3].max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize('height, width, kernel_size, sigma', [
    (6, 6, 3, 0.1), (6, 6, 3, 1.7), (7, 7, 7, 2.0), (7, 4, 5, 1.0), (3, 3, 9, 1.5)])
def test_blur_is_a_gaussian_with_zeros_beyond_the_border(height, width, kernel_size, sigma):
    image = oracles.random_image(height, width)
    np.testing.assert_allclose(on_pixels(ops.gaussian_blur, image, sigma, kernel_size),
                               oracles.blur(image, sigma, kernel_size), atol=1e-6)


@pytest.mark.parametrize('centre, side', [((3, 4), 3), ((0, 7), 4), ((7, 0), 16), ((2, 2), 0)])
def test_cutout_zeros_a_square_that_may_leave_the_image(centre, side):
    image = oracles.random_image(8, 8, 0.1)
    np.testing.assert_array_equal(on_pixels(ops.cutout, image, jnp.array(centre), side),
                                  oracles.cutout(image, centre, side))


# ---- resize ------------------------------------------------------------------------------------

BOXES = {  # of an image of 40 by 50 pixels, to 24
    'down': (3, 5, 30, 41), 'up': (11, 20, 9, 7), 'both': (2, 1, 38, 12), 'one pixel': (39, 49, 1, 1),
    'one row': (0, 8, 1, 33), 'same size': (16, 26, 24, 24), 'whole': (0, 0, 40, 50)}


@pytest.fixture(scope='module')
def resize_boxes():
    """For float32 and uint8: the image and its resized boxes by name, straight and flipped."""
    resize = jax.jit(jax.vmap(ops.resize_box, (None, 0, None, 0)), static_argnums=2)
    boxes = jnp.array([*BOXES.values()] * 2)
    flips = jnp.arange(len(boxes)) >= len(BOXES)
    image = oracles.random_image(40, 50)
    results = {}
    for dtype, pixels in ((np.float32, image), (np.uint8, (256 * image).astype(np.uint8))):
        planes = np.moveaxis(np.asarray(resize(jnp.moveaxis(pixels, -1, 0), boxes, 24, flips)), 1, -1)
        results[dtype] = pixels, dict(zip(BOXES, planes)), dict(zip(BOXES, planes[len(BOXES):]))
    return results


@pytest.mark.parametrize('dtype', [np.float32, np.uint8])
@pytest.mark.parametrize('name', BOXES)
def test_a_resized_box_is_the_box_cut_out_and_resized_by_tf_image(resize_boxes, name, dtype):
    image, straight, flipped = resize_boxes[dtype]
    top, left, height, width = BOXES[name]
    crop = image[top:top + height, left:left + width]
    scale = np.float32(255 if dtype == np.uint8 else 1)
    expected = tf.image.resize(crop, [24, 24], 'bicubic').numpy() / scale
    np.testing.assert_allclose(straight[name], expected, atol=2e-6)
    np.testing.assert_allclose(flipped[name], straight[name][:, ::-1], atol=1e-6)
    # TensorFlow reads the cubic from a table of 1024 entries.
    np.testing.assert_allclose(straight[name], oracles.resize(crop, 24) / scale, atol=2e-3)


def test_no_pixel_outside_the_box_counts():
    image = np.full((3, 30, 20), 1e30, np.float32)
    image[:, 4:13, 6:17] = 0.25
    resized = ops.resize_box(jnp.asarray(image), jnp.array([4, 6, 9, 11]), 16)
    np.testing.assert_allclose(resized, 0.25, rtol=1e-6)


def test_an_image_of_another_dtype_is_named():
    with pytest.raises(ValueError, match='must be uint8, or float32.*got int32: cast it first'):
        ops.resize_box(jnp.zeros([3, 4, 4], jnp.int32), jnp.array([0, 0, 4, 4]), 4)


# ---- crop --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def draw_boxes():
    """draw_boxes(law, height, width, count) -> int [count, 4]; one compilation per law and count."""
    def draw(law, keys, height, width):
        return jax.vmap(lambda key: ops.crop_box(key, height, width, law=law, **LIMITS))(keys)

    compiled = jax.jit(draw, static_argnums=0)
    return lambda law, height, width, count=3000: np.asarray(
        compiled(law, jax.random.split(jax.random.key(0), count), height, width))


def tf_boxes(height, width, count=3000):
    def draw(index):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.constant([height, width, 3]), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            tf.stack([index, 7]), min_object_covered=0.1, aspect_ratio_range=LIMITS['aspect'],
            area_range=LIMITS['area'], max_attempts=100)
        return tf.concat([begin[:2], size[:2]], 0)

    return next(tf.data.Dataset.range(count).map(draw).batch(count).as_numpy_iterator())


@pytest.mark.parametrize('height, width', [(375, 500), (500, 333), (32, 32), (40, 110)])
def test_tf_crop_has_the_law_of_tensorflows_op(draw_boxes, height, width):
    ours, theirs = draw_boxes('tf', height, width), tf_boxes(height, width)
    assert ours.min() >= 0 and (ours[:, :2] + ours[:, 2:] <= (height, width)).all()

    def statistics(boxes):
        top, left, box_height, box_width = boxes.T
        return [top, left, box_height, box_width, box_height * box_width, box_width / box_height]

    for our_statistic, their_statistic in zip(statistics(ours), statistics(theirs)):
        assert stats.ks_2samp(our_statistic, their_statistic).pvalue > 1e-3


@pytest.mark.parametrize('height, width', [(4, 5), (7, 4), (3, 3), (2, 3)])
def test_on_small_images_every_box_is_as_likely_as_in_tensorflows_op(draw_boxes, height, width):
    ours, theirs = (collections.Counter(map(tuple, boxes.tolist())) for boxes in (
        draw_boxes('tf', height, width), tf_boxes(height, width)))
    frequent = [box for box in ours | theirs if ours[box] + theirs[box] >= 20]
    table = np.array([[counts[box] for box in frequent] for counts in (ours, theirs)])
    assert len(frequent) >= 3 and table.sum(1).min() > 2700
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize('height, width', [(1, 1), (1, 50), (60, 1), (2, 200)])
def test_where_no_tf_crop_fits_it_is_the_whole_image(draw_boxes, height, width):
    assert (tf_boxes(height, width, 50) == (0, 0, height, width)).all()
    assert (draw_boxes('tf', height, width) == (0, 0, height, width)).all()


@pytest.mark.parametrize('height, width', [(40, 110), (64, 64), (90, 31)])
def test_uniform_crop_is_torchvisions(draw_boxes, height, width):
    ours, theirs = draw_boxes('uniform', height, width), oracles.torchvision_boxes(height, width, 3000)
    for ours_column, theirs_column in zip(ours.T, theirs.T):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3


def test_where_ten_uniform_crops_miss_both_take_the_same_central_crop(draw_boxes):
    central = (0, 28, 40, 53)
    theirs = (oracles.torchvision_boxes(40, 110, 3000) == central).all(1).mean()
    assert theirs > 0.01
    ours = (draw_boxes('uniform', 40, 110) == central).all(1).mean()
    assert ours == pytest.approx(theirs, abs=0.02)
