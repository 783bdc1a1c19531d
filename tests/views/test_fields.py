"""A view as one object: what it refuses, its defaults, and its place in jit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from simclr_jax.views.fields import OPS, Blur, Crop, Flip, Jitter, View
from tests.view_fields import ALL_ON, CROP, JITTER, OFF


@pytest.mark.parametrize('change, message', [
    ({'blurr': OFF}, 'Unknown augmentation: blurr; valid names are crop, flip'),
    ({'flip': {'probability': 0.5, 'axis': 1}}, "Unknown field of augmentation 'flip': axis"),
    ({'grey': {}}, "Missing field of augmentation 'grey': probability"),
    ({'flip': {'probability': 1.5}}, r'flip.probability must be a number in \[0, 1\]; got 1.5'),
    ({'crop': CROP | {'law': 'torch'}}, "crop.law must be one of 'tf', 'uniform'; got 'torch'"),
    ({'crop': CROP | {'area': (0.5, 0.1)}}, r'crop.area must be a pair \(low, high\)'),
    ({'crop': CROP | {'area': (0.5, 1.1)}}, r'crop.area must be .*high <= 1; got'),
    ({'crop': CROP | {'aspect': (0.0, 1.3)}}, r'crop.aspect must be a pair .* with 0 < low'),
    ({'crop': CROP | {'aspect': 0.75}}, 'crop.aspect must be a pair'),
    ({'jitter': JITTER | {'contrast': 1.2}}, r'jitter.contrast .*would be negative; got 1.2'),
    ({'crop': CROP | {'aspect': (1.0, float('inf'))}}, 'crop.aspect must be a pair'),
    ({'jitter': JITTER | {'brightness': float('inf')}}, 'jitter.brightness must be a number'),
    ({'jitter': JITTER | {'hue': 0.6}}, r'jitter.hue must be a number in \[0, 0.5\]'),
    ({'jitter': JITTER | {'brightness_mode': 'mul'}}, "jitter.brightness_mode must be one of"),
])
def test_a_wrong_view_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        View().replace(**ALL_ON | change)


def test_a_view_is_checked_however_it_is_made():
    with pytest.raises(ValueError, match='blur.sigma must be a pair'):
        Blur(0.5, sigma=(0.0, 2.0))
    with pytest.raises(ValueError, match='crop.aspect must be a pair'):
        dataclasses.replace(Crop(1.0), aspect=1.0)
    with pytest.raises(ValueError, match="Unknown field of augmentation 'blur': sigmaa; valid names are probability"):
        Blur(0.5, sigmaa=(0.1, 2.0))     # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match='Unknown augmentation: blurr; valid names are crop, flip'):
        View(blurr=Blur(0.5))       # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match=r'flip of a View must be Flip\(...\); got 0.5'):
        View(flip=0.5)
    with pytest.raises(ValueError, match="extra of a View must hold functions of .*got 'a.b:c'"):
        View(extra=('a.b:c',))


def test_what_is_left_out_is_off_and_fields_have_the_official_defaults():
    assert all(operation.probability == 0 for operation in View().operations().values())
    view = View().replace(jitter={'probability': 0.8}, flip=Flip(0.5))
    assert view == View(jitter=Jitter(0.8, 0.8, 0.8, 0.8, 0.2, 'multiply'), flip=Flip(0.5))
    assert view.crop == View().crop and view.replace(flip=OFF).flip == Flip(0.0)
    assert list(view.operations()) == list(OPS)


def test_fields_that_replace_is_not_given_stay_as_they_are():
    view = View.simclr(strength=0.5)
    assert view.replace(jitter={'probability': 0.5}).jitter == dataclasses.replace(view.jitter, probability=0.5)
    assert view.replace(crop={'area': (0.5, 1.0)}).crop == dataclasses.replace(view.crop, area=(0.5, 1.0))
    with pytest.raises(ValueError, match="Missing field of augmentation 'cutout': probability"):
        view.replace(cutout={'size': 0.2})


def test_equal_views_are_one_static_argument_of_jit():
    traced = []

    @functools.partial(jax.jit, static_argnames='view')
    def function(image, view):
        traced.append(view)
        return image * view.blur.probability

    lists = View().replace(blur={'probability': 0.5, 'sigma': [0.1, 2.0]})       # as JSON gives them
    for view in (View(blur=Blur(0.5)), lists, lists.replace(blur=Blur(0.25))):
        assert hash(view) == hash(dataclasses.replace(view))
        np.testing.assert_array_equal(function(np.ones(2), view), view.blur.probability)
    assert len(traced) == 2


def test_ranges_of_the_jitter():
    low, high = Jitter(**JITTER | {'brightness': 1.5}).limits()
    np.testing.assert_allclose([low, high], [[0.0, 0.6, 0.6, -0.1], [2.5, 1.4, 1.4, 0.1]], rtol=1e-6)


def test_blur_kernel_has_the_official_sizes():
    assert [Blur(1.0).kernel_size(size) for size in (19, 20, 32, 96, 224)] == [1, 3, 3, 9, 23]
