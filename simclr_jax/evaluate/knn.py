"""Weighted k-nearest-neighbour classification (Wu et al. 2018, sec. 3.4), exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.evaluate.features import Features

# Rows at a time: a device holds a block of the bank, and one [queries, bank] block of similarities.
_QUERIES, _BANK = 512, 65_536


def knn_accuracy(train: Features, test: Features, *, num_classes: int, k: int,
                 temperature: float) -> float:
    """The share of test examples whose neighbours vote for their class.

    Each test feature finds its k most similar training features by cosine; each votes for its class
    with weight exp(cosine / temperature). k is at most the number of training features.
    """
    similarity, label = nearest_neighbours(train, test.features, k=min(k, len(train.labels)))
    weights = np.exp((similarity - 1) / temperature)            # at most 1; the scale cancels
    votes = np.zeros((len(test.labels), num_classes))
    np.add.at(votes, (np.arange(len(votes))[:, None], label), weights)
    return float((votes.argmax(-1) == test.labels).mean())


def nearest_neighbours(train: Features, queries: np.ndarray, *, k: int
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and labels, [Q, k] each, of the k rows of `train` most similar to each of queries [Q, D]."""
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    label = np.zeros((len(queries), k), np.int32)
    for start in range(0, len(train.labels), _BANK):
        bank = jnp.asarray(_normalize(train.features[start:start + _BANK]))
        bank_labels = jnp.asarray(train.labels[start:start + _BANK])
        for first in range(0, len(queries), _QUERIES):
            rows = slice(first, first + _QUERIES)
            similarity[rows], label[rows] = _merge(
                _normalize(queries[rows]), bank, bank_labels, similarity[rows], label[rows], k)
    return similarity, label


@functools.partial(jax.jit, static_argnums=5)
def _merge(queries, bank, bank_labels, similarity, label, k):
    """The k nearest of those found so far, [Q, k], and of a block of the bank."""
    found = jnp.matmul(queries, bank.T, precision='highest')                    # [Q, N]
    nearest, index = jax.lax.top_k(found, min(k, len(bank)))
    similarity = jnp.concatenate([similarity, nearest], axis=1)
    label = jnp.concatenate([label, bank_labels[index]], axis=1)
    similarity, index = jax.lax.top_k(similarity, k)
    return similarity, jnp.take_along_axis(label, index, axis=1)


def _normalize(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
