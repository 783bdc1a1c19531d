import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.knn import knn_accuracies, knn_accuracy, nearest_neighbours


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


def test_several_k_are_what_each_gives_alone():
    train, test = clusters(0, 300), clusters(1, 200)
    settings = {'num_classes': 5, 'temperature': 0.07}
    assert knn_accuracies(train, test, ks=(50, 1, 7), **settings) == {
        k: knn_accuracy(train, test, k=k, **settings) for k in (50, 1, 7)}
    with pytest.raises(ValueError, match='k of kNN'):
        knn_accuracies(train, test, ks=(5, 0), **settings)


@pytest.fixture(params=['cpu', 'an accelerator'])
def backend(request, monkeypatch):
    """The product of the processor, and that of an accelerator, for which a processor stands in."""
    monkeypatch.setattr(jax, 'default_backend', lambda: request.param)


@pytest.mark.parametrize('bank_size, count, k', [(2500, 150, 20), (40_000, 1100, 7), (300, 5, 300)])
def test_neighbours_are_those_of_scikit_learn(backend, bank_size, count, k):
    """Several tiles of queries and blocks of the bank, ragged ones, and a k that takes all."""
    bank, queries = clusters(0, bank_size), clusters(1, count)
    cosine, row = nearest_neighbours(bank, queries.features, k=k)
    oracle = NearestNeighbors(n_neighbors=k, metric='cosine', algorithm='brute')
    distance, expected = oracle.fit(bank.features.astype(np.float64)).kneighbors(queries.features)
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-6)
    assert (np.sort(row) != np.sort(expected)).mean() < 1e-3        # two cosines may be one in float32
    with pytest.raises(ValueError, match=f'{bank_size + 1} neighbours'):
        nearest_neighbours(bank, queries.features, k=bank_size + 1)


def test_rows_that_are_left_out_are_no_neighbours(backend):
    bank = clusters(0, 3000)
    left_out = np.arange(0, 3000, 3)
    kept = np.setdiff1d(np.arange(3000), left_out)
    queries = bank.features[left_out[:50]]
    cosine, row = nearest_neighbours(bank, queries, k=9, without=left_out)
    expected = nearest_neighbours(Features(bank.features[kept], bank.labels[kept]), queries, k=9)
    np.testing.assert_allclose(cosine, expected[0], atol=1e-6)
    np.testing.assert_array_equal(np.sort(row), np.sort(kept[expected[1]]))
    with pytest.raises(ValueError, match='2001 neighbours were asked for, but there are 2000'):
        nearest_neighbours(bank, queries, k=2001, without=left_out)


@pytest.mark.parametrize('order', ['nearest first', 'nearest last', 'side by side', 'many ties'])
@pytest.mark.parametrize('k', [5, 128, 1000])
def test_the_nearest_are_exact_wherever_they_lie(order, k):
    """The bank is in an order that is hard for a search that keeps the best so far."""
    rng = np.random.default_rng(0)
    cosines = np.sort(rng.uniform(-1, 1, 20_000))[::-1]
    if order == 'nearest last':
        cosines = cosines[::-1]
    elif order == 'side by side':
        cosines = np.concatenate([cosines[1000:], cosines[:1000]])
    elif order == 'many ties':
        cosines = rng.integers(0, 4, 20_000) / 4
    bank = np.stack([cosines, np.sqrt(1 - cosines ** 2)], axis=1).astype(np.float32)
    found, row = nearest_neighbours(Features(bank, np.zeros(20_000, np.int32)),
                                    np.array([[2, 0]] * 70, np.float32), k=k)
    np.testing.assert_allclose(found, np.tile(-np.sort(-cosines)[:k], (70, 1)), atol=1e-6)
    assert all(len(set(one)) == k for one in row.tolist())
    np.testing.assert_allclose(cosines[row], found, atol=1e-6)


def test_neighbours_of_a_collapsed_encoder_are_still_k_different_rows(backend):
    bank = Features(np.full((2000, 12), 0.1, np.float32), np.zeros(2000, np.int32))
    cosine, row = nearest_neighbours(bank, bank.features[:5], k=20)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    assert all(len(set(one)) == 20 for one in row.tolist())


def test_little_is_held_beside_the_features():
    """At most a fifth of their size, measured in a process of its own."""
    script = textwrap.dedent("""
        import resource, numpy as np
        from simclr_jax.evaluate.features import Features
        from simclr_jax.evaluate.knn import nearest_neighbours
        bank = Features(np.random.default_rng(0).random((150_000, 512), np.float32), None)
        queries = bank.features[:300].copy()
        nearest_neighbours(Features(bank.features[:2000], None), queries, k=20)     # imports, threads
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        nearest_neighbours(bank, queries, k=20, without=np.arange(300))
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(more / bank.features.nbytes)
        """)
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120,
                          check=True)
    assert float(done.stdout) < 0.2


def test_features_of_another_preprocessing_are_refused():
    train, test = clusters(0, 20), clusters(1, 30)
    with pytest.raises(ValueError, match='made from images of 224 px, the test features from 32 px'):
        knn_accuracy(train._replace(preprocessing='224 px'), test._replace(preprocessing='32 px'),
                     num_classes=5, k=3, temperature=0.1)
