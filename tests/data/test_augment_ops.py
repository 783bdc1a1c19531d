"""Every augmentation formula against an oracle in float64, and the crop laws by their counts."""

import colorsys
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from scipy import stats

from simclr_jax.data import augment_ops as ops


def random_image(height, width, low=0.0, high=1.0):
    image = np.random.default_rng(0).uniform(low, high, (height, width, 3))
    return image.astype(np.float32)


def draw_many(function, count):
    """Stacks function([index, 7]) over `count` seeds, in one traced map."""
    dataset = tf.data.Dataset.range(count).map(lambda index: function(tf.stack([index, 7])))
    return next(dataset.batch(count).as_numpy_iterator())


# ---- colour ------------------------------------------------------------------------------------


def contrast_oracle(image, factor):
    mean = image.mean((0, 1), dtype=np.float64)
    return (image - mean) * factor + mean


def saturation_oracle(image, factor):
    """v - (v - x) * min(f, 1 / S): HSV saturation scaled and kept at or below 1."""
    image = image.astype(np.float64)
    value, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    with np.errstate(divide='ignore'):
        return value - (value - image) * np.minimum(factor, value / (value - low))


def hue_oracle(image, delta):
    """One pixel at a time through the standard library."""
    result = np.empty(image.shape, np.float64)
    for i, j in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[i, j].astype(np.float64))
        result[i, j] = colorsys.hsv_to_rgb((hue + delta) % 1.0, saturation, value)
    return result


def grey_oracle(image):
    return np.repeat(image.astype(np.float64) @ [[0.2989], [0.587], [0.114]], 3, axis=-1)


def test_brightness_multiplies_or_adds():
    image = random_image(4, 5)
    np.testing.assert_allclose(
        ops.adjust_brightness(image, 1.5, 'multiply'), image * 1.5, rtol=1e-6)
    np.testing.assert_allclose(ops.adjust_brightness(image, -0.3, 'add'), image - 0.3, atol=1e-6)


@pytest.mark.parametrize('factor', [0.0, 0.3, 1.8])
def test_contrast_keeps_the_mean_of_each_channel(factor):
    image = random_image(6, 9, -0.05, 1.05) * np.float32([1.0, 0.5, 0.2])
    np.testing.assert_allclose(
        ops.adjust_contrast(image, factor), contrast_oracle(image, factor), atol=2e-6)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.8])
def test_saturation_is_scaled_in_hsv(factor):
    image = random_image(8, 8)
    expected = np.empty(image.shape)
    for i, j in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[i, j].astype(np.float64))
        expected[i, j] = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)
    np.testing.assert_allclose(ops.adjust_saturation(image, factor), expected, atol=2e-6)
    np.testing.assert_allclose(saturation_oracle(image, factor), expected, atol=1e-12)


def test_saturation_and_hue_take_the_overshoot_of_bicubic():
    # Greatest channel above 1, least below 0: what a bicubic resize hands to the first colour op.
    image = random_image(8, 8, -0.05, 1.05)
    np.testing.assert_allclose(
        ops.adjust_saturation(image, 0.5), saturation_oracle(image, 0.5), atol=2e-6)
    turned = ops.adjust_hue(image, 1 / 3)
    np.testing.assert_allclose(turned, np.roll(image, 1, axis=-1), atol=2e-6)


@pytest.mark.parametrize('delta', [-0.2, 0.07, 0.5])
def test_hue_turns_the_colour_circle(delta):
    image = random_image(8, 8)
    np.testing.assert_allclose(ops.adjust_hue(image, delta), hue_oracle(image, delta), atol=2e-6)


def test_grey_weights():
    image = random_image(5, 4)
    np.testing.assert_allclose(ops.to_grey(image), grey_oracle(image), atol=1e-6)


def test_solarize_is_pils():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold=128))
    solarized = ops.solarize(image.astype(np.float32) / 255.0, 128 / 255)
    np.testing.assert_allclose(np.asarray(solarized) * 255.0, expected, atol=1e-4)


def jitter_oracle(image, order, amounts, active):
    functions = [lambda x, amount: x * amount, contrast_oracle, saturation_oracle, hue_oracle]
    for which in order:
        if active[which]:
            image = functions[which](image, amounts[which])
        image = np.clip(image, 0.0, 1.0)
    return image


def test_jitter_in_every_order_clips_after_each():
    image = random_image(5, 5, -0.05, 1.05)
    amounts = np.float32([1.6, 1.5, 0.4, 0.15])
    jitter = tf.function(lambda order: ops.jitter(
        image, order, amounts, active=[True] * 4, brightness_mode='multiply'))
    results = []
    for order in itertools.permutations(range(4)):
        results.append(jitter(tf.constant(order)).numpy())
        expected = jitter_oracle(image, order, amounts, [True] * 4)
        if order[0] != 3:  # the standard library's HSV does not take overshoot
            np.testing.assert_allclose(results[-1], expected, atol=1e-5)
    assert len(np.unique(np.stack(results), axis=0)) > 12  # the order matters


def test_an_inactive_jitter_op_only_keeps_its_turn():
    image, order = random_image(5, 5, -0.05, 1.05), (2, 0, 3, 1)
    amounts, active = np.float32([9.0, 1.3, 9.0, 0.1]), [False, True, False, True]
    result = ops.jitter(image, tf.constant(order), amounts, active=active, brightness_mode='add')
    np.testing.assert_allclose(result, jitter_oracle(image, order, amounts, active), atol=1e-5)


# ---- geometry and neighbourhoods ---------------------------------------------------------------


def test_flip_and_rotate_are_numpys():
    image = random_image(6, 6)
    np.testing.assert_array_equal(ops.flip(image), image[:, ::-1])
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(
            ops.rotate(tf.constant(image), tf.constant(turns)), np.rot90(image, turns))


def test_sobel_is_the_length_of_the_gradient():
    image = random_image(6, 7)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float64)
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), 'reflect')
    expected = np.empty((6, 7, 3))
    for i, j, c in np.ndindex(6, 7, 3):
        patch = padded[i:i + 3, j:j + 3, c]
        expected[i, j, c] = np.hypot((patch * kernel).sum(), (patch * kernel.T).sum())
    np.testing.assert_allclose(ops.sobel(tf.constant(image)), expected / np.sqrt(20.0), atol=1e-6)


def test_sobel_reaches_one_and_no_more():
    # All 2^9 black and white neighbourhoods of a pixel, side by side: the steepest gives exactly 1.
    patches = np.array(list(itertools.product([0.0, 1.0], repeat=9)), np.float32)
    image = np.concatenate(patches.reshape(512, 3, 3), axis=1)[..., None].repeat(3, -1)
    centres = ops.sobel(tf.constant(image))[1, 1::3]
    assert float(tf.reduce_max(centres)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize('kernel_size, sigma', [(3, 0.1), (3, 1.7), (7, 2.0)])
def test_blur_is_a_gaussian_with_zeros_beyond_the_border(kernel_size, sigma):
    image, radius = random_image(6, 6), kernel_size // 2
    weights = [math.exp(-d * d / (2 * sigma * sigma)) for d in range(-radius, radius + 1)]
    total, expected = sum(weights), np.zeros((6, 6, 3))
    for i, j, k, l in np.ndindex(6, 6, 6, 6):
        if abs(i - k) <= radius and abs(j - l) <= radius:
            weight = weights[k - i + radius] * weights[l - j + radius] / total ** 2
            expected[i, j] += weight * image[k, l]
    np.testing.assert_allclose(ops.gaussian_blur(image, sigma, kernel_size), expected, atol=1e-6)


def test_blur_kernel_has_the_official_sizes():
    sizes = [ops.blur_kernel_size(size, 0.1) for size in (19, 20, 32, 96, 224)]
    assert sizes == [1, 3, 3, 9, 23]


@pytest.mark.parametrize('centre, side', [((3, 4), 3), ((0, 7), 4), ((7, 0), 16), ((2, 2), 0)])
def test_cutout_zeros_a_square_that_may_leave_the_image(centre, side):
    image = random_image(8, 8, 0.1)
    expected = image.copy()
    for i, j in np.ndindex(8, 8):
        if 0 <= i - (centre[0] - side // 2) < side and 0 <= j - (centre[1] - side // 2) < side:
            expected[i, j] = 0.0
    np.testing.assert_array_equal(
        ops.cutout(tf.constant(image), tf.constant(centre), side), expected)


def test_noise_has_the_standard_deviation_asked_for():
    noise = ops.gaussian_noise(tf.zeros([64, 64, 3]), tf.constant([1, 2]), 0.25).numpy()
    assert stats.kstest(noise.ravel() / 0.25, 'norm').pvalue > 0.01


# ---- crop and resize ---------------------------------------------------------------------------


def keys_weights(size, target):
    """[target, size] weights of Keys' cubic, a = -0.5; taps beyond the border are left out."""
    weights = np.zeros((target, size))
    for i in range(target):
        source = (i + 0.5) * size / target - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            x = abs(source - tap)
            weight = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            if 0 <= tap < size:
                weights[i, tap] = weight
    return weights / weights.sum(1, keepdims=True)


def resize_oracle(image, target):
    rows, columns = (keys_weights(size, target) for size in image.shape[:2])
    return np.einsum('ih,jw,hwc->ijc', rows, columns, image.astype(np.float64))


@pytest.mark.parametrize('height, width', [(12, 20), (45, 7), (1, 30), (16, 16), (1, 1)])
def test_resize_is_keys_bicubic_with_its_overshoot(height, width):
    image = (random_image(height, width) > 0.5).astype(np.float32)
    expected = resize_oracle(image, 16)
    # TensorFlow reads the cubic from a table of 1024 entries.
    np.testing.assert_allclose(ops.resize(tf.constant(image), 16), expected, atol=2e-3)
    from_uint8 = ops.resize(tf.constant((255 * image).astype(np.uint8)), 16)
    np.testing.assert_allclose(from_uint8, ops.resize(tf.constant(image), 16), atol=1e-6)


def draw_boxes(law, height, width, count=3000):
    return draw_many(lambda seed: tf.concat(ops.crop_box(
        tf.constant([height, width, 3]), seed, law=law, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)),
        0), count)


@pytest.mark.parametrize('law, mean, median', [('tf', 0.39, 0.36), ('uniform', 0.43, 0.42)])
def test_crop_boxes_follow_their_law(law, mean, median):
    y, x, _, height, width, _ = draw_boxes(law, 375, 500).T
    area = height * width / (375 * 500)
    assert area.mean() == pytest.approx(mean, abs=0.015)
    assert np.median(area) == pytest.approx(median, abs=0.02)
    assert area.min() > (0.099 if law == 'tf' else 0.079)
    assert ((height + 1) * 4 / 3 >= width - 1).all() and ((width + 1) * 4 / 3 >= height - 1).all()
    assert min(y.min(), x.min()) >= 0
    assert (y + height).max() <= 375 and (x + width).max() <= 500
    share = (y / np.maximum(375 - height, 1))[height < 300]
    assert share.mean() == pytest.approx(0.5, abs=0.03)


def torchvision_boxes(height, width, count):
    """RandomResizedCrop as torchvision writes it, one try at a time."""
    rng, boxes = np.random.default_rng(0), []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1.0)
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
                break
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(boxes)


def test_uniform_crop_is_torchvisions():
    ours, theirs = draw_boxes('uniform', 40, 110), torchvision_boxes(40, 110, 3000)
    for ours_column, theirs_column in zip(ours[:, [0, 1, 3, 4]].T, theirs.T):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3
    # Some crops of so wide an image fail ten times: both then take the same central crop.
    central = (theirs == (0, 28, 40, 53)).all(1).mean()
    assert central > 0.01
    assert (ours[:, [0, 1, 3, 4]] == (0, 28, 40, 53)).all(1).mean() == pytest.approx(
        central, abs=0.02)
