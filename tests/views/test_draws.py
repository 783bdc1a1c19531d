"""The numbers behind a view as a function of its key."""

import numpy as np
from scipy import stats

from simclr_jax.views import draws
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import OPS, Crop


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
