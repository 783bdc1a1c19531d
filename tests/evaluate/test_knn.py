import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from simclr_jax.evaluate import knn
from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.knn import knn_accuracy, largest, nearest_neighbours


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


def test_several_k_are_what_each_gives_alone():
    train, test = clusters(0, 300), clusters(1, 200)
    settings = {'num_classes': 5, 'temperature': 0.07}
    assert knn_accuracy(train, test, k=(50, 1, 7), **settings) == {
        k: knn_accuracy(train, test, k=k, **settings) for k in (50, 1, 7)}
    with pytest.raises(ValueError, match='k of kNN'):
        knn_accuracy(train, test, k=(5, 0), **settings)


@pytest.mark.parametrize('backend', ['cpu', 'an accelerator'])
def test_neighbours_are_those_of_scikit_learn_over_blocks_tiles_and_devices(monkeypatch, backend):
    """Several blocks of the bank, the last one ragged, and tiles with rows to spare on eight devices."""
    monkeypatch.setattr(knn, '_BANK', 1024)
    monkeypatch.setattr(knn, '_QUERIES', 8)
    monkeypatch.setattr(knn, '_FEW', 3)
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    bank, queries = clusters(0, 2500), clusters(1, 150)
    cosine, row = nearest_neighbours(bank, queries.features, k=20)
    oracle = NearestNeighbors(n_neighbors=20, metric='cosine', algorithm='brute')
    distance, expected = oracle.fit(bank.features.astype(np.float64)).kneighbors(queries.features)
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-6)
    np.testing.assert_array_equal(np.sort(row), np.sort(expected))
    with pytest.raises(ValueError, match='2501 neighbours'):
        nearest_neighbours(bank, queries.features, k=2501)


def hard_rows(width, k):
    """Rows [7, width] whose k largest are easily missed; the last 9 columns are larger than they look."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, width)).astype(np.float32)
    values[1, :k] = 5 + rng.random(k)                       # neighbouring columns
    values[2, ::width // 16] = 9                            # all in one group, and equal
    values[3] = rng.integers(0, 4, width)                   # many ties
    values[4, 300:] = -np.inf
    values[5, -9:] = 99                                     # beyond the columns that count
    values[6, :-9], values[6, -9:] = -1 - rng.random(width - 9), 0
    return values


def assert_largest(values, k, found, index):
    np.testing.assert_array_equal(found, -np.sort(-values, axis=1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(index), 1), found)
    assert all(len(set(row)) == k for row in np.asarray(index).tolist())


@pytest.mark.parametrize('width, k', [(4096, 5), (4096, 128), (4096, 129), (512, 40), (100, 3)])
def test_the_largest_are_exact_also_where_they_lie_side_by_side(width, k):
    values = hard_rows(width, k)
    assert_largest(values[:, :-9], k, *jax.jit(largest, static_argnums=1)(values, k, width - 9))
    assert_largest(values, k, *jax.jit(largest, static_argnums=(1, 2))(values, k, width))     # all count


@pytest.mark.parametrize('width, k', [(4096, 5), (4096, 127), (4096, 129), (512, 40), (100, 3), (109, 100)])
def test_numpy_finds_the_largest_too(width, k):
    values = hard_rows(width, k)
    none_yet = np.zeros((7, 0), np.float32), np.zeros((7, 0), np.int32)
    for rows in (slice(None), slice(3, 4), [0, 1, 2, 4, 5, 6]):         # ties spoil the shortcut of all rows
        for columns in (slice(None), slice(0, -9)):
            part = values[rows][:, columns]
            found, index = knn._merge(part, none_yet[0][rows], none_yet[1][rows], k=k, start=0)
            assert_largest(part, k, found, index)


@pytest.mark.parametrize('backend', ['cpu', 'an accelerator'])
def test_neighbours_of_a_collapsed_encoder_are_still_k_different_rows(monkeypatch, backend):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    bank = Features(np.full((2000, 12), 0.1, np.float32), np.zeros(2000, np.int32))
    cosine, row = nearest_neighbours(bank, bank.features[:5], k=20)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    assert all(len(set(one)) == 20 for one in row.tolist())


def test_features_of_another_preprocessing_are_refused():
    train, test = clusters(0, 20), clusters(1, 30)
    with pytest.raises(ValueError, match='made from images of 224 px, the test features from 32 px'):
        knn_accuracy(train._replace(preprocessing='224 px'), test._replace(preprocessing='32 px'),
                     num_classes=5, k=3, temperature=0.1)
