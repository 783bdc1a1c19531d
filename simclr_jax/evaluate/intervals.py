"""How sure a number is: 95 % intervals over the test set, which say nothing of other seeds or data."""

import math

import numpy as np

_Z = 1.959963984540054      # the normal distribution's 97.5 % point


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share of `count` independent trials (Wilson 1927).

    share: hits / count, in [0, 1]; count: 1 or more. Both ends lie in [0, 1].
    """
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f'A share of {share} among {count} has no interval: the share must be in [0, 1], the '
                         'count 1 or more.')
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z ** 2 / (4 * count ** 2))
    centre, scale = share + _Z ** 2 / (2 * count), 1 + _Z ** 2 / count
    # Rounding must not leave 0 or 1 out of its own interval.
    return (max(0.0, min(share, (centre - spread) / scale)),
            min(1.0, max(share, (centre + spread) / scale)))


def mean_per_class(hits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes of `labels` [N] int of the share of `hits` [N] bool in each."""
    counts = np.bincount(labels)
    found = np.bincount(labels, weights=hits)
    return float((found[counts > 0] / counts[counts > 0]).mean())


def per_class_interval(hits: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of `mean_per_class` over 2,000 bootstrap samples, each class apart.

    The number of hits in a class of n examples, drawn with replacement, is binomial: nothing is copied.
    A class that is all right or all wrong adds no width, so small classes make it too narrow.
    """
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=hits)[counts > 0] / counts[counts > 0]
    drawn = np.random.default_rng(seed).binomial(counts[counts > 0], shares, size=(2000, len(shares)))
    low, high = np.quantile((drawn / counts[counts > 0]).mean(1), [0.025, 0.975])
    return float(low), float(high)
