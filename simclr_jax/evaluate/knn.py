"""Weighted k-nearest-neighbour classification (Wu et al. 2018, sec. 3.4), exact."""

import concurrent.futures
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax.evaluate.features import Features, check_features

_QUERIES = 1024             # at a time
_BLOCK_BYTES = 32 << 20     # of the similarities to them that are held at a time, at least
_GROUP = 16                 # columns of the first block that are represented by their largest
_FEW = 64                   # rows that a thread takes at a time: they stay in a processor's cache


def knn_accuracy(train: Features, test: Features, *, num_classes: int, k: int, temperature: float) -> float:
    """The share of test examples whose neighbours vote for their class; see `knn_accuracies`."""
    return knn_accuracies(train, test, num_classes=num_classes, ks=[k], temperature=temperature)[k]


def knn_accuracies(train: Features, test: Features, *, num_classes: int, ks: Sequence[int],
                   temperature: float, without: np.ndarray | None = None) -> dict[int, float]:
    """{k: the share of test examples whose k neighbours vote for their class}.

    Each test feature finds its k most similar training features by cosine; each votes for its class
    with weight exp(cosine / temperature). k is at most the number of training features.

    Args:
        without: rows of `train` that are not looked at, int [m].

    Raises:
        ValueError: train and test were preprocessed differently, a k is below 1, the temperature is not
            positive, a feature is not finite or a label none of the classes.
    """
    check_features(num_classes, training=train, test=test)
    if not temperature > 0:
        raise ValueError(f'kNN needs a positive temperature, got {temperature}.')
    if not len(ks) or min(ks) < 1:
        raise ValueError(f'k of kNN is {tuple(ks)}: it must be 1 or more.')
    count = len(train.labels) - (0 if without is None else len(without))
    similarity, row = nearest_neighbours(train, test.features, k=min(max(ks), count), without=without)
    labels = train.labels[row]
    return {k: float((vote(similarity[:, :k], labels[:, :k], num_classes=num_classes,
                           temperature=temperature) == test.labels).mean()) for k in ks}


def vote(similarity: np.ndarray, labels: np.ndarray, *, num_classes: int, temperature: float) -> np.ndarray:
    """The class int [Q] that neighbours vote for, of their cosines and classes [Q, k]."""
    votes = np.zeros((len(labels), num_classes))
    weights = np.exp((similarity - 1) / temperature)            # at most 1; the scale cancels
    np.add.at(votes, (np.arange(len(votes))[:, None], labels), weights)
    return votes.argmax(-1)


def nearest_neighbours(train: Features, queries: np.ndarray, *, k: int, without: np.ndarray | None = None
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 and rows of `train` int32, [Q, k] each, largest first: the k most similar of them.

    The queries [Q, D] are shared out over all processes, which must all call this with the same arguments.
    The bank is read where it lies, and similarities are held a tile at a time. Of rows that are equally
    similar any may be taken, the same ones every time.

    Args:
        without: rows of `train` that are not looked at, int [m].

    Raises:
        ValueError: k is more than the number of training features.
    """
    bank = train.features
    kept = np.ones(len(bank), bool)
    kept[[] if without is None else without] = False
    if k > kept.sum():
        raise ValueError(f'{k} neighbours were asked for, but there are {kept.sum()} features.')
    each = -(-len(queries) // jax.process_count())                      # queries of a process
    mine = queries[jax.process_index() * each:][:each]
    on_cpu = jax.default_backend() == 'cpu'                             # there numpy's BLAS is the fastest
    tile_size = _QUERIES if on_cpu else 8 * _QUERIES                    # each tile reads the whole bank
    columns = max(k, max(_BLOCK_BYTES, bank.nbytes // 16) // (4 * min(tile_size, max(1, each))))
    similarity, row = np.full((each, k), -np.inf, np.float32), np.zeros((each, k), np.int32)
    space = np.empty((min(tile_size, each), min(columns, len(bank))) if on_cpu else (0, 0), np.float32)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:     # numpy lets go of the lock
        scale = 1 / np.concatenate(list(pool.map(_lengths, _few(bank))))
        scale[~kept] = np.nan                   # no product with it counts
        for first in range(0, len(mine), tile_size):
            tile = np.asarray(mine[first:first + tile_size], np.float32)
            tile = tile / _lengths(tile)[:, None]
            part = slice(first, first + len(tile))
            for start in range(0, len(bank), columns):
                block = bank[start:start + columns]
                dots = (np.matmul(tile, block.T, out=space[:len(tile), :len(block)]) if on_cpu else
                        np.array(_products(tile, block)))
                keep = functools.partial(_keep_nearest, start, scale[start:start + columns])
                list(pool.map(keep, _few(dots), _few(similarity[part]), _few(row[part])))
    order = np.argsort(-similarity, axis=1, kind='stable')
    similarity, row = (_gather(np.take_along_axis(array, order, axis=1))[:len(queries)]
                       for array in (similarity, row))
    return similarity, row


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows.astype(np.float32, copy=False), axis=-1), np.float32(1e-12))


@jax.jit
def _products(tile: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.matmul(tile, block.T, precision='highest')


def _few(array: np.ndarray) -> list[np.ndarray]:
    """Views of a few rows each."""
    return [array[first:first + _FEW] for first in range(0, len(array), _FEW)]


def _keep_nearest(start: int, scale: np.ndarray, dots: np.ndarray, similarity: np.ndarray, row: np.ndarray
                  ) -> None:
    """Takes what is nearer of `dots` [q, n], by rows of the bank from `start` on, into [q, k] of both.

    Only what beats the k-th of those found so far is looked at: few after the first blocks. `scale` [n]
    makes cosines of the products; where it is nan, a column does not count.
    """
    dots *= scale
    k, bound = similarity.shape[1], similarity.min(1)
    groups = dots.shape[1] // _GROUP
    if groups >= 2 * k and np.isneginf(bound[0]):           # nothing yet: k columns or more reach the k-th
        maxima = np.fmax.reduce(dots[:, :groups * _GROUP].reshape(-1, _GROUP, groups), axis=1)
        maxima[np.isnan(maxima)] = -np.inf
        bound = np.nextafter(np.partition(maxima, groups - k, axis=1)[:, groups - k], np.float32(-np.inf))
    query, column = np.divmod(np.flatnonzero(dots > bound[:, None]), dots.shape[1])     # nan is not
    counts = np.bincount(query, minlength=len(dots))
    width = counts.max(initial=0)
    if not width:
        return
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.full((len(dots), k + width), -np.inf, np.float32)
    found = np.zeros(values.shape, np.int32)
    values[:, :k], found[:, :k] = similarity, row
    values[query, k + place], found[query, k + place] = dots[query, column], start + column
    best = np.argpartition(values, width, axis=1)[:, width:]
    similarity[:], row[:] = np.take_along_axis(values, best, 1), np.take_along_axis(found, best, 1)


def _gather(array: np.ndarray) -> np.ndarray:
    """The rows of all processes, one after the other."""
    if jax.process_count() == 1:
        return array
    return multihost_utils.process_allgather(array).reshape(-1, array.shape[-1])
