"""The boxes of random crops, drawn on the device and on the host, have the laws of TensorFlow and torchvision."""

import collections
import functools

import jax
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax.views import ops
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import Crop
from tests import augment_oracles as oracles

COUNT = 4000
LIMITS = {'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)}


@functools.partial(jax.jit, static_argnames=('law', 'area', 'aspect'))
def boxes(keys, height, width, **law):
    return jax.vmap(lambda key: ops.crop_box(key, height, width, **law))(keys)


def on_device(law, height, width, **limits):
    """int [COUNT, 4]: (top, left, height, width)"""
    keys = jax.random.split(jax.random.key(0), COUNT)
    return np.asarray(boxes(keys, height, width, law=law, **LIMITS | limits))


def on_host(law, height, width, **limits):
    crop = Crop(1.0, law, **LIMITS | limits)
    return np.array([Draws(0, 0, i, 0).box(height, width, crop) for i in range(COUNT)])


FORMS = pytest.mark.parametrize('draw', [on_device, on_host])


@functools.cache
def tensorflows(height, width, area=LIMITS['area'], aspect=LIMITS['aspect']):
    def one(index):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], [[[0.0, 0.0, 1.0, 1.0]]], [index, 7], min_object_covered=0.1,
            aspect_ratio_range=aspect, area_range=area, max_attempts=100)
        size = tf.where(size < 0, [height, width, 3], size)
        return tf.concat([begin[:2], size[:2]], 0)

    return next(tf.data.Dataset.range(COUNT).map(one).batch(COUNT).as_numpy_iterator())


@pytest.mark.parametrize('draw, height, width, limits', [
    *((draw, *case) for draw in (on_device, on_host) for case in (
        (375, 500, {}), (500, 333, {}), (32, 32, {}), (40, 110, {}), (500, 40, {}),
        (60, 80, {'area': (0.2, 0.6), 'aspect': (0.5, 1.9)})))])
def test_the_tf_law_is_that_of_tensorflows_op(draw, height, width, limits):
    ours, theirs = draw('tf', height, width, **limits), tensorflows(height, width, **limits)
    assert ours.min() >= 0 and (ours[:, :2] + ours[:, 2:] <= (height, width)).all()

    def statistics(found):
        top, left, box_height, box_width = found.T
        return [top, left, box_height, box_width, box_height * box_width, box_width / box_height]

    for our_statistic, their_statistic in zip(statistics(ours), statistics(theirs)):
        assert stats.ks_2samp(our_statistic, their_statistic).pvalue > 1e-3


@FORMS
@pytest.mark.parametrize('height, width', [(5, 4), (4, 7), (3, 3), (2, 3)])
def test_on_small_images_every_box_is_as_likely_as_in_tensorflows_op(draw, height, width):
    ours, theirs = (collections.Counter(map(tuple, found.tolist())) for found in (
        draw('tf', height, width), tensorflows(height, width)))
    frequent = [box for box in ours | theirs if ours[box] + theirs[box] >= 20]
    table = np.array([[counts[box] for box in frequent] for counts in (ours, theirs)])
    assert len(frequent) >= 3 and table.sum(1).min() > 0.9 * COUNT
    assert stats.chi2_contingency(table).pvalue > 1e-3


@FORMS
@pytest.mark.parametrize('height, width', [(1, 1), (1, 50), (60, 1), (2, 200)])
def test_where_no_tf_crop_fits_it_is_the_whole_image(draw, height, width):
    assert (tensorflows(height, width) == (0, 0, height, width)).all()
    assert (draw('tf', height, width) == (0, 0, height, width)).all()


@FORMS
@pytest.mark.parametrize('height, width', [(40, 110), (64, 64), (90, 31)])
def test_the_uniform_law_is_torchvisions(draw, height, width):
    ours, theirs = draw('uniform', height, width), oracles.torchvision_boxes(height, width, COUNT)
    for our_column, their_column in zip(ours.T, theirs.T):
        assert stats.ks_2samp(our_column, their_column).pvalue > 1e-3
    if (height, width) == (40, 110):    # of so wide an image some crops fail ten times: both take the same central one
        share, expected = ((found == (0, 28, 40, 53)).all(1).mean() for found in (ours, theirs))
        assert expected > 0.01 and share == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize('law, mean, median', [('tf', 0.39, 0.36), ('uniform', 0.43, 0.42)])
def test_mean_areas_are_those_of_the_two_codes(law, mean, median):
    area = on_host(law, 375, 500)[:, 2:].prod(1) / (375 * 500)
    assert area.mean() == pytest.approx(mean, abs=0.015)
    assert np.median(area) == pytest.approx(median, abs=0.02)
    assert area.min() > (0.099 if law == 'tf' else 0.079)
