import numpy as np
import pytest

from simclr_jax.evaluate.intervals import mean_per_class, per_class_interval, wilson_interval


@pytest.mark.parametrize('hits, count', [(0, 10), (10, 10), (1, 3), (81, 263), (4967, 10_000)])
def test_wilson_holds_the_shares_that_a_score_test_does_not_reject(hits, count):
    """By its definition: at both ends |hits/n - p| is 1.96 standard deviations under p."""
    low, high = wilson_interval(hits / count, count)
    assert 0 <= low <= hits / count <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            deviation = abs(hits / count - end) / np.sqrt(end * (1 - end) / count)
            assert deviation == pytest.approx(1.959963984540054, rel=1e-9)


def test_wilson_agrees_with_a_published_interval():
    """Newcombe 1998 (Statistics in Medicine 17, Table I): 81 of 263, 15 of 148, 0 of 20, score method."""
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson_interval(hits / count, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_needs_trials_and_a_share():
    for share, count in ((0.5, 0), (1.2, 10), (-0.1, 10)):
        with pytest.raises(ValueError, match='no interval'):
            wilson_interval(share, count)


def test_classes_weigh_alike_in_the_mean_per_class():
    labels = np.array([0] * 8 + [3] * 2)                # classes 1 and 2 have no example
    hits = np.array([True] * 8 + [True, False])
    assert mean_per_class(hits, labels) == 0.75         # top-1 is 0.9


def test_the_bootstrap_agrees_with_the_normal_approximation_and_is_repeatable():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 20_000)
    hits = rng.random(20_000) < 0.3 + 0.1 * labels
    value, interval = mean_per_class(hits, labels), per_class_interval(hits, labels)
    shares = np.array([hits[labels == label].mean() for label in range(5)])
    error = np.sqrt((shares * (1 - shares) / np.bincount(labels)).sum()) / 5
    assert interval == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.1 * error)
    assert interval == per_class_interval(hits, labels)
