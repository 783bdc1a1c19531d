"""Maps, neighbours and similarities against numpy's own."""

import numpy as np
from sklearn import neighbors

from simclr_jax.report import analysis

RNG = np.random.default_rng(0)


def test_principal_components_are_the_svd_of_the_centred_features_with_a_sign_that_is_fixed():
    features = RNG.normal(size=(9, 20))
    centred = features - features.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    places, share = analysis.pca(features)
    np.testing.assert_allclose((places ** 2).sum(0), values[:2] ** 2)
    np.testing.assert_allclose(share, (values ** 2 / (values ** 2).sum())[:2])
    turned, _ = analysis.pca(-features)
    for column in range(2):
        direction = directions[column] * np.sign(directions[column][np.abs(directions[column]).argmax()])
        np.testing.assert_allclose(places[:, column], centred @ direction, atol=1e-12)
    np.testing.assert_allclose(turned, -places, atol=1e-12)


def test_equal_features_have_a_map():
    places, share = analysis.pca(np.ones((5, 3), np.float32))
    assert not places.any() and not share.any()


def test_tsne_keeps_far_groups_apart():
    features = np.concatenate([RNG.normal(size=(20, 60)) + 8, RNG.normal(size=(20, 60)) - 8])
    places = analysis.tsne(features, seed=0)
    near = neighbors.NearestNeighbors(n_neighbors=6).fit(places).kneighbors(return_distance=False)
    assert ((near < 20) == (np.arange(40) < 20)[:, None]).all()
    np.testing.assert_array_equal(places, analysis.tsne(features, seed=0))


def test_neighbours_are_the_largest_cosines_and_never_the_image_itself():
    bank, queries = RNG.normal(size=(60, 8)), RNG.normal(size=(11, 8))
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in bank] for a in queries])
    cosines, found = analysis.neighbours(bank, queries, k=7)
    np.testing.assert_array_equal(found, np.argsort(-cosine, axis=1)[:, :7])
    np.testing.assert_allclose(cosines, -np.sort(-cosine, axis=1)[:, :7], atol=1e-12)
    _, found = analysis.neighbours(bank, None, k=100)
    np.testing.assert_array_equal(np.sort(found, axis=1),
                                  [np.delete(np.arange(60), row) for row in range(60)])


def test_the_largest_counts_off_the_diagonal_are_the_most_confused():
    assert analysis.most_confused(np.array([[9, 2, 0], [3, 9, 0], [0, 1, 9]]), 2) == [(1, 0, 3), (0, 1, 2)]
    assert analysis.most_confused(np.diag([3, 2, 0]), 3) == []


def test_positive_pairs_are_the_views_of_one_image():
    rows1, rows2 = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
    positive, negative = analysis.view_similarities(rows1, rows2)
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows2] for a in rows1]
    np.testing.assert_allclose(positive, [cosine[row][row] for row in range(6)])
    np.testing.assert_allclose(np.sort(negative), np.sort(
        [cosine[a][b] for a in range(6) for b in range(6) if a != b]))
