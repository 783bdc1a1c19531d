"""Random views: their law, their reproducibility, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

from simclr_jax.views.fields import JITTER_ORDERS, jitter_range
from simclr_jax.data import kernels
from simclr_jax.views import host as host_augment
from simclr_jax.views.draws import Draws
from tests import augment_oracles as oracles
from tests.official_views import assert_same_distribution, official_views, smooth_image
from tests.view_fields import ALL_OFF, ALL_ON, CROP, JITTER, OFF, SIMCLR


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def views_of(image, view, count, image_size):
    """`count` views, of examples 0, 1, ..."""
    return np.stack([host_augment.augment(image, Draws(0, 0, i, 0), image_size=image_size, **view)
                     for i in range(count)])


# ---- views -------------------------------------------------------------------------------------


def test_views_have_the_official_distribution():
    image = smooth_image()
    assert_same_distribution(views_of(image, SIMCLR, 1500, 32), official_views(image, 1500))


def reference(image, draws, view):
    """A view of a square image that keeps its size, in float64, from the same numbers."""
    size = len(image)
    image = image / 255.0
    image = image[:, ::-1] if draws.of('flip', view['flip']) else image
    if numbers := draws.of('rotate', view['rotate']):
        image = np.rot90(image, 1 + int(3 * numbers[0]))
    if numbers := draws.of('jitter', view['jitter']):
        low, high = jitter_range(view['jitter'])
        order = JITTER_ORDERS[int(24 * numbers[0])]
        image = oracles.jitter(image, order, low + np.array(numbers[1:]) * (high - low), [True] * 4)
    image = oracles.grey(image) if draws.of('grey', view['grey']) else image
    image = oracles.sobel(image) if draws.of('sobel', view['sobel']) else image
    if draws.of('noise', view['noise']):
        image = (image + view['noise']['std'] * draws.normals(image.shape)).clip(0, 1)
    if numbers := draws.of('blur', view['blur']):
        low, high = view['blur']['sigma']
        image = oracles.blur(image, low + numbers[0] * (high - low), 3)
    if draws.of('solarize', view['solarize']):
        image = np.where(image < view['solarize']['threshold'], image, 1 - image)
    if numbers := draws.of('cutout', view['cutout']):
        image = oracles.cutout(image, [int(size * share) for share in numbers[:2]], round(size / 2))
    return image


@pytest.mark.parametrize('implementation', ['compiled', 'tensorflow'])
def test_operations_run_in_the_documented_order(monkeypatch, implementation):
    """Each on or off in turn, against the same operations one after another in float64."""
    if implementation == 'tensorflow':
        monkeypatch.setattr(kernels, 'library', lambda: None)
    image = random_image(12, 12)
    half = {op: fields | {'probability': 0.5} for op, fields in ALL_ON.items()}
    half |= {'crop': OFF, 'blur': half['blur'] | {'kernel_fraction': 0.2}}
    for index in range(40):
        result = host_augment.augment(image, Draws(3, 1, index, 0), image_size=12, **half)
        np.testing.assert_allclose(result, reference(image, Draws(3, 1, index, 0), half), atol=2e-5)


@pytest.mark.parametrize('op', list(ALL_ON))
def test_each_probability_is_honoured(op):
    image = random_image(16, 16)
    on = {op: ALL_ON[op] | {'probability': 0.3}}
    if op == 'blur':
        on[op] |= {'sigma': (1.0, 2.0), 'kernel_fraction': 0.2}
    untouched = views_of(image, ALL_OFF, 1, 16)
    changed = (views_of(image, ALL_OFF | on, 600, 16) != untouched).any((1, 2, 3)).mean()
    assert changed == pytest.approx(0.3, abs=0.06)  # three standard deviations


def test_rotation_takes_each_quarter_turn_equally_often():
    image = random_image(8, 8)
    views = views_of(image, ALL_OFF | {'rotate': {'probability': 1.0}}, 600, 8)
    for turns in (1, 2, 3):
        share = (np.rint(255 * views) == np.rot90(image, turns)).all((1, 2, 3)).mean()
        assert share == pytest.approx(1 / 3, abs=0.06)


def test_a_view_is_a_pure_function_of_image_and_key():
    image = random_image(20, 24)
    one = views_of(image, ALL_ON, 40, 16)
    np.testing.assert_array_equal(one, views_of(image, ALL_ON, 40, 16))
    assert len(np.unique(one, axis=0)) == 40


def test_a_jitter_strength_of_zero_leaves_that_one_out():
    image = random_image(16, 16)
    still = JITTER | {'probability': 1.0, 'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
    views = views_of(image, ALL_OFF | {'jitter': still}, 5, 16)
    np.testing.assert_array_equal(views, views_of(image, ALL_OFF, 5, 16))


def test_bytes_are_the_floats_rounded():
    image, make = random_image(20, 24), host_augment.make_augment(image_size=16, **ALL_ON)
    for index in range(5):
        draws = Draws(0, 0, index, 0)
        floats, data = (make(image, (2, 3, 15, 18), draws, np.empty((16, 16, 3), dtype))
                        for dtype in (np.float32, np.uint8))
        np.testing.assert_array_equal(data, np.rint(255 * floats))


def test_crop_and_flip_makes_the_same_crop_as_augment():
    image, flip = random_image(30, 40), {'probability': 0.5}
    make = host_augment.make_crop_and_flip(image_size=16, crop=CROP, flip=flip)
    in_view = views_of(image, ALL_OFF | {'crop': CROP, 'flip': flip}, 20, 16)
    for index, view in enumerate(in_view):
        draws = Draws(0, 0, index, 0)
        alone = make(image, draws.box(30, 40, CROP), draws, np.empty((16, 16, 3), np.float32))
        np.testing.assert_allclose(alone, view, atol=1e-7)


@pytest.mark.parametrize('law', ['tf', 'uniform'])
def test_odd_images_give_views_in_range(law):
    view = ALL_ON | {'crop': CROP | {'law': law}} | dict.fromkeys(('sobel', 'grey', 'cutout'), OFF)
    for shape in [(1, 1), (1, 500), (500, 1), (2000, 3), (7, 5)]:
        image = random_image(*shape)
        for result in (views_of(image, view, 4, 24),
                       host_augment.eval_crop(image, image_size=24, proportion=0.875)[None]):
            assert result.shape[1:] == (24, 24, 3) and result.dtype == np.float32
            assert 0.0 <= result.min() and result.max() <= 1.0 and result.max() > 0.1


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize('height, width, box', [
    (375, 500, (24, 86, 328)),  # 0.875 * 375 = 328.125
    (500, 333, (105, 21, 291)),  # 0.875 * 333 = 291.375
    (36, 36, (2, 2, 32)),  # 31.5 rounds to even
    (1, 9, (0, 4, 1)),
])
def test_evaluation_crop(height, width, box):
    y, x, side = box
    image = random_image(height, width)
    view = host_augment.eval_crop(image, image_size=24, proportion=0.875)
    expected = tf.image.resize(image[y:y + side, x:x + side], [24, 24], 'bicubic').numpy() / 255
    np.testing.assert_allclose(view, expected.clip(0, 1), atol=1e-6)


def test_evaluation_leaves_an_image_of_the_right_size_unchanged():
    image = random_image(32, 32)
    view = host_augment.eval_crop(image, image_size=32, proportion=1.0)
    np.testing.assert_allclose(view, image / 255.0, atol=1e-7)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize('change, message', [
    ({'blurr': OFF}, 'Unknown augmentation: blurr; valid names are crop, flip'),
    ({'flip': {'probability': 0.5, 'axis': 1}}, "Unknown field of augmentation 'flip': axis"),
    ({'noise': {'probability': 0.5}}, "Missing field of augmentation 'noise': std"),
    ({'grey': {}}, "Missing field of augmentation 'grey': probability"),
    ({'flip': {'probability': 1.5}}, r'flip.probability must be a number in \[0, 1\]; got 1.5'),
    ({'crop': CROP | {'law': 'torch'}}, "crop.law must be one of 'tf', 'uniform'; got 'torch'"),
    ({'crop': CROP | {'area': (0.5, 0.1)}}, r'crop.area must be a pair \(low, high\)'),
    ({'crop': CROP | {'area': (0.5, 1.1)}}, r'crop.area must be .*high <= 1; got'),
    ({'crop': CROP | {'aspect': (0.0, 1.3)}}, r'crop.aspect must be a pair .* with 0 < low'),
    ({'crop': CROP | {'aspect': 0.75}}, 'crop.aspect must be a pair'),
    ({'jitter': JITTER | {'contrast': 1.2}}, r'jitter.contrast .*would be negative; got 1.2'),
    ({'jitter': JITTER | {'hue': 0.6}}, r'jitter.hue must be a number in \[0, 0.5\]'),
    ({'jitter': JITTER | {'brightness_mode': 'mul'}}, "jitter.brightness_mode must be one of"),
])
def test_a_wrong_view_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        host_augment.check_view(ALL_ON | change)


def test_a_missing_operation_is_named():
    with pytest.raises(ValueError, match='Missing augmentation: sobel'):
        host_augment.check_view({op: OFF for op in ALL_ON if op != 'sobel'})


def test_wrong_arguments_are_named_at_once():
    blur = ALL_ON['blur'] | {'sigma': (0.0, 2.0)}
    with pytest.raises(ValueError, match='blur.sigma must be a pair'):
        host_augment.make_augment(image_size=4, **ALL_ON | {'blur': blur})
    with pytest.raises(ValueError, match='crop.aspect must be a pair'):
        host_augment.make_crop_and_flip(image_size=4, crop=CROP | {'aspect': 1.0}, flip=OFF)
    with pytest.raises(ValueError, match='proportion must be in'):
        host_augment.eval_crop(random_image(4, 4), image_size=4, proportion=87.5)
