import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.knn import knn_accuracy


def clusters(seed, count, *, classes=5, width=12, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.integers(0, classes, count)
    points = centres[labels] + noise * rng.normal(size=(count, width))
    return Features(points.astype(np.float32), labels.astype(np.int32))


@pytest.mark.parametrize('k', [1, 7, 50])
def test_agrees_with_scikit_learn_given_the_same_weights(k):
    train, test = clusters(0, 300), clusters(1, 701)    # 701: more than one tile, and a ragged last one
    oracle = KNeighborsClassifier(k, metric='cosine', weights=lambda distance: np.exp(-distance / 0.07))
    oracle.fit(train.features, train.labels)
    expected = oracle.score(test.features, test.labels)
    assert 0.5 < expected < 0.99
    actual = knn_accuracy(train, test, num_classes=5, k=k, temperature=0.07)
    assert abs(actual - expected) < 1.5 / 701           # within one image: a tie may fall either way


def test_weights_decide_against_the_majority():
    train = Features(np.array([[1, 0], [0.6, 0.8], [0.6, -0.8]], np.float32), np.array([0, 1, 1], np.int32))
    test = Features(np.array([[1, 0]], np.float32), np.array([0], np.int32))
    # One neighbour of cosine 1 against two of cosine 0.6: e^(0.4/T) > 2 as soon as T < 0.577.
    assert knn_accuracy(train, test, num_classes=2, k=3, temperature=0.5) == 1
    assert knn_accuracy(train, test, num_classes=2, k=3, temperature=0.7) == 0


def test_k_beyond_the_training_set_means_all_of_it():
    train, test = clusters(0, 20), clusters(1, 30)
    assert (knn_accuracy(train, test, num_classes=5, k=500, temperature=0.1)
            == knn_accuracy(train, test, num_classes=5, k=20, temperature=0.1))


def test_length_of_the_features_does_not_matter():
    train, test = clusters(0, 60), clusters(1, 60)
    stretched = Features(test.features * np.linspace(0.01, 100, 60, dtype=np.float32)[:, None], test.labels)
    assert (knn_accuracy(train, test, num_classes=5, k=9, temperature=0.1)
            == knn_accuracy(train, stretched, num_classes=5, k=9, temperature=0.1))
