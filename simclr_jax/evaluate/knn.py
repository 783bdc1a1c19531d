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
from simclr_jax.models.cpu import product

_QUERIES = 8192             # at a time, of an accelerator
_BLOCK_BYTES = 32 << 20     # of a block of the bank and its products that are held at a time, at least
_FEW = 64                   # rows that a thread takes at a time


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
    mine = queries[jax.process_index() * each:][:each].astype(np.float32, copy=False)
    similarity, row = np.full((each, k), -np.inf, np.float32), np.zeros((each, k), np.int32)
    on_cpu, threads = jax.default_backend() == 'cpu', os.cpu_count() or 1
    at_once = min(product.ROWS, -(-each // threads)) if on_cpu else _QUERIES
    tiles = [slice(first, first + at_once) for first in range(0, len(mine), at_once)]
    floats = max(_BLOCK_BYTES, bank.nbytes // 8) // 4                   # of a block, and of products with it
    columns = max(k, floats // (bank.shape[1] + at_once * (threads if on_cpu else 1)))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:        # numpy and the loops let go of the lock
        for start in range(0, len(bank), columns):
            block = bank[start:start + columns]
            scale = 1 / np.concatenate(list(pool.map(_lengths, _few(block))))
            scale[~kept[start:start + columns]] = np.nan                # no product with it counts
            keep = functools.partial(_keep_nearest, start)
            if on_cpu:
                rows = product.Rows(block, scale, pool)
                list(pool.map(lambda tile: keep(rows.products(mine[tile]), similarity[tile], row[tile]), tiles))
                del rows        # before the next ones are packed
                continue
            on_device = jnp.asarray(block * scale[:, None])
            for tile in tiles:
                dots = np.asarray(_products(mine[tile], on_device))
                list(pool.map(keep, _few(dots), _few(similarity[tile]), _few(row[tile])))
    order = np.argsort(-similarity, axis=1, kind='stable')
    similarity, row = (np.take_along_axis(array, order, axis=1) for array in (similarity, row))
    similarity[:len(mine)] /= _lengths(mine)[:, None]
    return _gather(similarity)[:len(queries)], _gather(row)[:len(queries)]


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows.astype(np.float32, copy=False), axis=-1), np.float32(1e-12))


@jax.jit
def _products(tile: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.matmul(tile, block.T, precision='highest')


def _few(array: np.ndarray) -> list[np.ndarray]:
    """Views of a few rows each."""
    return [array[first:first + _FEW] for first in range(0, len(array), _FEW)]


def _keep_nearest(start: int, dots: np.ndarray, similarity: np.ndarray, row: np.ndarray) -> None:
    """Takes what is nearer of `dots` [q, n], by rows of the bank from `start` on, into [q, k] of both.

    Only what beats the k-th of those found so far is looked at: few after the first blocks. nan does not count.
    """
    k = similarity.shape[1]
    if not start and dots.shape[1] > k:
        dots = np.fmax(dots, np.float32(-np.inf))
        row[:] = np.argpartition(dots, -k, axis=1)[:, -k:]
        similarity[:] = np.take_along_axis(dots, row, 1)
        return
    bound = similarity.min(1)
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
