"""The crop laws by their counts, and the numbers behind a view as a function of its key."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax.views import draws
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import OPS, Crop
from tests import augment_oracles as oracles

LIMITS = {'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)}


def our_boxes(height, width, law, count, **limits):
    crop = Crop(1.0, law, **LIMITS | limits)
    return np.array([Draws(0, 0, i, 0).box(height, width, crop) for i in range(count)])


def tensorflow_boxes(height, width, count, *, area, aspect):
    def one(i):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], [[[0.0, 0.0, 1.0, 1.0]]], [i, 7], min_object_covered=0.1,
            aspect_ratio_range=aspect, area_range=area, max_attempts=100)
        size = tf.where(size < 0, [height, width, 3], size)
        return tf.concat([begin[:2], size[:2]], 0)

    return next(tf.data.Dataset.range(count).map(one).batch(count).as_numpy_iterator())


@pytest.mark.parametrize('height, width, limits', [
    (375, 500, LIMITS), (32, 32, LIMITS), (40, 110, LIMITS), (500, 40, LIMITS),
    (60, 80, {'area': (0.2, 0.6), 'aspect': (0.5, 1.9)})])
def test_the_tf_law_is_tensorflows(height, width, limits):
    ours = our_boxes(height, width, 'tf', 4000, **limits)
    theirs = tensorflow_boxes(height, width, 4000, **limits)
    share = [np.column_stack([boxes, boxes[:, 2] * boxes[:, 3]]) for boxes in (ours, theirs)]
    for column in range(5):
        assert stats.ks_2samp(share[0][:, column], share[1][:, column]).pvalue > 1e-3
    assert ours[:, 0].max() < height and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize('height, width', [(1, 1), (2, 3), (5, 4), (1, 9)])
def test_of_tiny_images_each_box_is_as_frequent_as_in_tensorflow(height, width):
    kinds = [np.unique(boxes, axis=0, return_counts=True) for boxes in (
        our_boxes(height, width, 'tf', 3000), tensorflow_boxes(height, width, 3000, **LIMITS))]
    ours, theirs = ({tuple(box): count for box, count in zip(*kind)} for kind in kinds)
    frequent = [box for box in ours.keys() | theirs.keys() if ours.get(box, 0) + theirs.get(box, 0) >= 20]
    assert sum(ours.get(box, 0) for box in frequent) > 2900
    table = np.array([[found.get(box, 0) for box in frequent] for found in (ours, theirs)])
    assert len(frequent) == 1 or stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize('law, mean, median', [('tf', 0.39, 0.36), ('uniform', 0.43, 0.42)])
def test_mean_areas_are_those_of_the_two_codes(law, mean, median):
    boxes = our_boxes(375, 500, law, 3000)
    area = boxes[:, 2] * boxes[:, 3] / (375 * 500)
    assert area.mean() == pytest.approx(mean, abs=0.015)
    assert np.median(area) == pytest.approx(median, abs=0.02)
    assert area.min() > (0.099 if law == 'tf' else 0.079)


def test_the_uniform_law_is_torchvisions():
    ours, theirs = our_boxes(40, 110, 'uniform', 3000), oracles.torchvision_boxes(40, 110, 3000)
    for our_column, their_column in zip(ours.T, theirs.T):
        assert stats.ks_2samp(our_column, their_column).pvalue > 1e-3
    # Some crops of so wide an image fail ten times: both then take the same central crop.
    central = (theirs == (0, 28, 40, 53)).all(1).mean()
    assert central > 0.01
    assert (ours == (0, 28, 40, 53)).all(1).mean() == pytest.approx(central, abs=0.02)


def test_a_crop_that_does_not_run_is_the_whole_image():
    assert Draws(0, 0, 0, 0).box(9, 14, Crop(0.0)) == (0, 0, 9, 14)


def test_numbers_are_those_of_philox_by_seed_and_epoch_at_view_and_example():
    """Pinned: another stream would change the views of a run that is resumed by a later version."""
    philox = np.random.Philox(key=np.array([5, 3], np.uint64), counter=np.array([0, 1, 77, 1], np.uint64))
    numbers = np.random.Generator(philox).random(60 + 400)
    for i, op in enumerate(OPS.values()):
        assert Draws(5, 3, 77, 1).of(op(1.0)) == numbers[6 * i + 1:6 * i + 6].tolist()
        decision = numbers[6 * i]
        assert Draws(5, 3, 77, 1).of(op(decision)) is None
        assert Draws(5, 3, 77, 1).of(op(decision + 1e-9)) is not None
    # So narrow an aspect that nearly all of the hundred tries are needed.
    crop = Crop(1.0, 'tf', area=(0.9, 1.0), aspect=(0.6, 2.0))
    tries = numbers[60:].reshape(100, 4).tolist()
    for height, width in ((50, 90), (91, 50), (375, 500)):
        expected = draws.crop_box(tries, height, width, crop)
        assert Draws(5, 3, 77, 1).box(height, width, crop) == expected
    noise = Draws(5, 3, 77, 1).normals((2, 3))
    philox = np.random.Philox(key=np.array([5, 3], np.uint64), counter=np.array([0, 1, 77, 2], np.uint64))
    np.testing.assert_array_equal(noise, np.random.Generator(philox).standard_normal((2, 3), np.float32))


def test_every_part_of_the_key_counts():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({tuple(Draws(*key).of(OPS['jitter'](1.0))) for key in keys}) == 5


def test_normals_are_normal():
    assert stats.kstest(Draws(0, 0, 0, 0).normals((64, 64, 3)).ravel(), 'norm').pvalue > 0.01


def test_union_holds_both_boxes_and_no_more():
    assert draws.union([(5, 20, 10, 30), (2, 25, 8, 40)]) == (2, 20, 13, 45)
