"""What a report computes from features: maps, neighbours, votes and similarities; numpy in, numpy out."""

import numpy as np


def pca(features: np.ndarray, num_components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The first principal components of features [N, D]: places [N, k] and the share of the variance [k].

    Signs are such that the largest coefficient of each direction is positive. k is at most min(N, D).
    """
    centred = np.asarray(features, np.float64) - features.mean(0, dtype=np.float64)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:num_components]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], axis=1)
    share = values ** 2 / max((values ** 2).sum(), np.finfo(float).tiny)
    return centred @ (directions * np.where(largest < 0, -1.0, 1.0)).T, share[:num_components]


def tsne(features: np.ndarray, *, seed: int, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) of the directions of features [N, D]: places [N, 2].

    By scikit-learn, from the first 50 principal components, begun at the first two. The perplexity is at
    most (N - 1) / 3.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits     # comes with scikit-learn

    reduced = pca(unit(features), 50)[0].astype(np.float32)
    perplexity = min(perplexity, (len(reduced) - 1) / 3)
    with threadpool_limits(1):      # its steps are so short that threads mostly wait for each other
        return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(reduced)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows [N, D] of length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def neighbours(bank: np.ndarray, queries: np.ndarray, *, k: int, is_same: bool = False
               ) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [Q, k] and rows [Q, k] of the k features of `bank` [N, D] nearest to each of queries [Q, D].

    Nearest first. is_same: the queries are the bank, and no row is its own neighbour.
    """
    cosines = unit(queries) @ unit(bank).T
    if is_same:
        np.fill_diagonal(cosines, -np.inf)
    k = min(k, len(bank) - is_same)
    rows = np.argsort(-cosines, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(cosines, rows, axis=1), rows


def vote(cosines: np.ndarray, labels: np.ndarray, *, num_classes: int, temperature: float) -> np.ndarray:
    """The class [Q] that neighbours with these cosines and labels, [Q, k] each, vote for.

    Each with the weight exp(cosine / temperature) (Wu et al. 2018, sec. 3.4).
    """
    votes = np.zeros((len(labels), num_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), np.exp((cosines - 1) / temperature))
    return votes.argmax(1)


def confusion(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [C, C]: rows are the true classes, columns the predicted ones."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def most_confused(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(true class, predicted class, count) of the largest counts off the diagonal, at most `most`."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind='stable')[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape))
    return [(int(true), int(said), int(wrong[true, said])) for true, said in pairs if wrong[true, said]]


def view_similarities(rows1: np.ndarray, rows2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the two views [N, D] of each image, [N], and of views of different images, [N (N - 1)]."""
    cosines = unit(rows1) @ unit(rows2).T
    return np.diagonal(cosines).copy(), cosines[~np.eye(len(cosines), dtype=bool)]
