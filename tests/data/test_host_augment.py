"""Random views: their law, their reproducibility, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax.data import augment_ops as ops
from simclr_jax.data import host_augment

OFF = {'probability': 0.0}
CROP = {'probability': 1.0, 'law': 'tf', 'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)}
JITTER = {'probability': 0.8, 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1,
          'brightness_mode': 'multiply'}
# Every operation always runs.
ALL_ON = {
    'crop': CROP,
    'flip': {'probability': 1.0},
    'rotate': {'probability': 1.0},
    'jitter': JITTER | {'probability': 1.0},
    'grey': {'probability': 1.0},
    'sobel': {'probability': 1.0},
    'noise': {'probability': 1.0, 'std': 0.1},
    'blur': {'probability': 1.0, 'sigma': (0.1, 2.0), 'kernel_fraction': 0.1},
    'solarize': {'probability': 1.0, 'threshold': 0.5},
    'cutout': {'probability': 1.0, 'size': 0.5},
}
ALL_OFF = dict.fromkeys(ALL_ON, OFF)
SIMCLR = ALL_OFF | {'crop': CROP, 'flip': {'probability': 0.5}, 'jitter': JITTER,
                    'grey': {'probability': 0.2}}


def random_image(height, width):
    image = np.random.default_rng(0).uniform(0.0, 1.0, (height, width, 3))
    return image.astype(np.float32)


def draw_many(function, count, num_parallel_calls=None):
    """Stacks function([index, 7]) over `count` seeds, in one traced map."""
    dataset = tf.data.Dataset.range(count).map(
        lambda index: function(tf.stack([index, 7])), num_parallel_calls=num_parallel_calls)
    return next(dataset.batch(count).as_numpy_iterator())


# ---- views -------------------------------------------------------------------------------------


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


def test_views_have_the_official_distribution():
    rng = np.random.default_rng(0)
    coarse = tf.constant(rng.uniform(0.0, 255.0, (6, 8, 3)).astype(np.float32))
    image = tf.cast(tf.clip_by_value(tf.image.resize(coarse, [48, 64]), 0, 255), tf.uint8)
    tf.random.set_seed(0)
    theirs = draw_many(lambda _: official_view(image), 1500)
    ours = draw_many(
        lambda seed: host_augment.augment(image, seed, image_size=32, **SIMCLR), 1500)

    def statistics(views):
        half = views[:, :, :16].mean((1, 2, 3)) - views[:, :, 16:].mean((1, 2, 3))
        return [views.mean((1, 2, 3)), views.std((1, 2, 3)), views.max(-1).mean((1, 2)), half,
                np.ptp(views, axis=-1).mean((1, 2)), views[..., 0].mean((1, 2)),
                np.abs(np.diff(views, axis=2)).mean((1, 2, 3)), (views == 1.0).mean((1, 2, 3))]

    for our_statistic, their_statistic in zip(statistics(ours), statistics(theirs)):
        assert stats.ks_2samp(our_statistic, their_statistic).pvalue > 1e-3


@pytest.mark.parametrize('op', list(ALL_ON))
def test_each_probability_is_honoured(op):
    image = tf.constant(random_image(16, 16))
    on = {op: ALL_ON[op] | {'probability': 0.3}}
    if op == 'blur':
        on[op] |= {'sigma': (1.0, 2.0), 'kernel_fraction': 0.2}
    untouched = host_augment.augment(image, tf.constant([0, 0]), image_size=16, **ALL_OFF)
    views = draw_many(
        lambda seed: host_augment.augment(image, seed, image_size=16, **ALL_OFF | on), 600)
    changed = (views != untouched.numpy()).any((1, 2, 3)).mean()
    assert changed == pytest.approx(0.3, abs=0.06)  # three standard deviations


def test_rotation_takes_each_quarter_turn_equally_often():
    image = random_image(8, 8)
    view = ALL_OFF | {'rotate': {'probability': 1.0}}
    views = draw_many(lambda seed: host_augment.augment(image, seed, image_size=8, **view), 600)
    for turns in (1, 2, 3):
        share = (views == np.rot90(image, turns)).all((1, 2, 3)).mean()
        assert share == pytest.approx(1 / 3, abs=0.06)


def test_a_view_is_a_pure_function_of_image_and_seed():
    image = tf.constant(random_image(20, 24))

    def views(num_parallel_calls):
        return draw_many(lambda seed: host_augment.augment(image, seed, image_size=16, **ALL_ON),
                         40, num_parallel_calls)

    one = views(1)
    np.testing.assert_array_equal(one, views(4))
    assert len(np.unique(one, axis=0)) == 40


def recorded_choices(monkeypatch, seed, view):
    """What the operations are told to do, by name, in the order in which they run."""
    choices = {}

    def record(name, original):
        def spy(image, *args, **kwargs):
            choices[name] = [np.asarray(arg) for arg in args]
            return original(image, *args, **kwargs)
        return spy

    names = {'crop': 'crop_box', 'noise': 'gaussian_noise', 'blur': 'gaussian_blur',
             'grey': 'to_grey'}
    with monkeypatch.context() as patch:
        for op in ALL_ON:
            name = names.get(op, op)
            patch.setattr(ops, name, record(op, getattr(ops, name)))
        host_augment.augment(random_image(40, 40), tf.constant(seed), image_size=32, **view)
    return choices


def test_switching_an_op_off_leaves_the_choices_of_the_others(monkeypatch):
    half = {op: fields | {'probability': 0.5} for op, fields in ALL_ON.items()}
    for seed in ([0, 1], [3, 5], [2, 2]):
        full = recorded_choices(monkeypatch, seed, half)
        for op in ALL_ON:
            without = recorded_choices(monkeypatch, seed, half | {op: OFF})
            expected = {name: args for name, args in full.items() if name != op}
            assert list(without) == list(expected)
            for name, args in without.items():
                for arg, expected_arg in zip(args, expected[name], strict=True):
                    np.testing.assert_array_equal(arg, expected_arg)


def test_operations_run_in_the_documented_order(monkeypatch):
    assert list(recorded_choices(monkeypatch, [0, 0], ALL_ON)) == list(ALL_ON)


def test_crop_and_flip_makes_the_same_crop_as_augment():
    image = tf.constant(random_image(30, 40))
    crop, flip = CROP, {'probability': 0.5}
    alone = draw_many(lambda seed: host_augment.crop_and_flip(
        image, seed, image_size=16, crop=crop, flip=flip), 20)
    view = ALL_OFF | {'crop': crop, 'flip': flip}
    in_view = draw_many(lambda seed: host_augment.augment(image, seed, image_size=16, **view), 20)
    np.testing.assert_array_equal(alone, in_view)


@pytest.mark.parametrize('law', ['tf', 'uniform'])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_odd_images_give_views_in_range(law, dtype):
    shapes = [(1, 1), (1, 500), (500, 1), (2000, 3), (7, 5)]
    images = [(random_image(*shape) * (255 if dtype == np.uint8 else 1)).astype(dtype)
              for shape in shapes]
    dataset = tf.data.Dataset.from_generator(
        lambda: images * 4, output_signature=tf.TensorSpec([None, None, 3], dtype))
    view = ALL_ON | {'crop': CROP | {'law': law}} | dict.fromkeys(('sobel', 'grey', 'cutout'), OFF)
    dataset = dataset.enumerate().map(lambda index, image: (
        host_augment.augment(image, tf.stack([index, 0]), image_size=24, **view),
        host_augment.eval_crop(image, image_size=24, proportion=0.875)))
    assert dataset.element_spec == (tf.TensorSpec([24, 24, 3], tf.float32),) * 2
    views = np.array(list(dataset.as_numpy_iterator()))
    assert views.shape == (20, 2, 24, 24, 3)
    assert views.min() >= 0.0 and views.max() <= 1.0 and views.max() > 0.5


def test_a_missed_crop_is_the_whole_image():
    image = tf.constant(random_image(9, 14))
    view = host_augment.augment(image, tf.constant([0, 0]), image_size=8, **ALL_OFF)
    np.testing.assert_array_equal(view, tf.clip_by_value(ops.resize(image, 8), 0.0, 1.0))


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
    view = host_augment.eval_crop(tf.constant(image), image_size=24, proportion=0.875)
    expected = ops.resize(tf.constant(image[y:y + side, x:x + side]), 24)
    np.testing.assert_array_equal(view, np.clip(expected, 0.0, 1.0))


def test_evaluation_leaves_an_image_of_the_right_size_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    view = host_augment.eval_crop(tf.constant(image), image_size=32, proportion=1.0)
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


def test_augment_checks_its_view():
    with pytest.raises(ValueError, match='blur.sigma must be a pair'):
        host_augment.augment(random_image(4, 4), tf.constant([0, 0]), image_size=4,
                             **ALL_ON | {'blur': ALL_ON['blur'] | {'sigma': (0.0, 2.0)}})


def test_wrong_dtypes_and_proportions_are_named():
    with pytest.raises(ValueError, match='must be uint8, or float32.*got int32'):
        host_augment.eval_crop(tf.zeros([4, 4, 3], tf.int32), image_size=4, proportion=1.0)
    with pytest.raises(ValueError, match='proportion must be in'):
        host_augment.eval_crop(tf.zeros([4, 4, 3]), image_size=4, proportion=87.5)
