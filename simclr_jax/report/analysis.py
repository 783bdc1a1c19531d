"""What a report computes from features, by scikit-learn: maps, neighbours and similarities."""

import numpy as np
from sklearn import neighbors
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits  # comes with scikit-learn


def pca(features: np.ndarray, num_components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of features [N, D]: places [N, k] and the share of the variance [k].

    k is at most min(N, D). Equal features are all at 0, with shares of 0.
    """
    fit = PCA(min(num_components, *features.shape), svd_solver='full')
    with np.errstate(invalid='ignore'):         # 0 / 0, of equal features
        places = fit.fit_transform(np.asarray(features, np.float64))
    return places, np.nan_to_num(fit.explained_variance_ratio_)


def tsne(features: np.ndarray, *, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) of the directions of features [N, D]: places [N, 2].

    From the first 50 principal components, begun at the first two. The perplexity is 30, at most (N - 1) / 3.
    """
    reduced = pca(normalize(features), 50)[0].astype(np.float32)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    with threadpool_limits(1):      # its steps are so short that threads mostly wait for each other
        return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(reduced)


def neighbours(bank: np.ndarray, queries: np.ndarray | None, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [Q, k] and rows [Q, k] of the k features of `bank` [N, D] nearest to each of queries [Q, D].

    Nearest first. queries: None = the bank itself, and no row is its own neighbour. k is at most N.
    """
    k = min(k, len(bank) - (queries is None))
    distances, rows = neighbors.NearestNeighbors(metric='cosine').fit(bank).kneighbors(queries, k)
    return 1 - distances, rows


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(true class, predicted class, count) of the largest counts off the diagonal, at most `most`."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind='stable')[:most]
    pairs = np.transpose(np.unravel_index(order, wrong.shape)).tolist()
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs
            if wrong[true, predicted]]


def view_similarities(features1: np.ndarray, features2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the two views [N, D] of each image, [N], and of views of different images, [N (N - 1)]."""
    cosines = normalize(features1) @ normalize(features2).T
    return np.diagonal(cosines), cosines[~np.eye(len(cosines), dtype=bool)]
