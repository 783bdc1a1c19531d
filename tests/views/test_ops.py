"""The accelerator's geometry against numpy, and its resize against TensorFlow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from simclr_jax.views import ops
from tests import augment_oracles as oracles


def on_pixels(function, image, *args):
    """function of planes [3, H, W], applied to [H, W, 3]."""
    return np.moveaxis(np.asarray(jax.jit(function)(np.moveaxis(image, -1, 0), *args)), 0, -1)


# ---- geometry ----------------------------------------------------------------------------------


def test_brightness_multiplies_or_adds():
    image = oracles.random_image(4, 5)
    np.testing.assert_allclose(ops.adjust_brightness(image, 1.5, 'multiply'), image * 1.5, rtol=1e-6)
    np.testing.assert_allclose(ops.adjust_brightness(image, -0.3, 'add'), image - 0.3, atol=1e-6)


def test_rotation_is_numpys():
    image = oracles.random_image(6, 6)
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(on_pixels(ops.rotate, image, turns), np.rot90(image, turns))


def test_cutout_zeros_a_square_that_may_leave_the_image():
    image = oracles.random_image(8, 8, 0.1)
    for centre, side in (((3, 4), 3), ((0, 7), 4), ((7, 0), 16), ((2, 2), 0)):
        ours = on_pixels(lambda planes, centre: ops.cutout(planes, centre, side), image, np.array(centre))
        np.testing.assert_array_equal(ours, oracles.cutout(image, centre, side))


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
