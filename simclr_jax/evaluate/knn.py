"""Weighted k-nearest-neighbour classification (Wu et al. 2018, sec. 3.4), exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.evaluate.features import Features

_TILE = 512     # queries at a time: bounds the [tile, N] matrix of similarities


def knn_accuracy(train: Features, test: Features, *, num_classes: int, k: int, temperature: float) -> float:
    """The share of test examples whose neighbours vote for their class.

    Each test feature finds its k most similar training features by cosine; each votes for its class
    with weight exp(cosine / temperature). k is at most the number of training features.
    """
    bank = jnp.asarray(_normalize(train.features))
    labels = jnp.asarray(train.labels)
    k = min(k, len(train.labels))
    hits = 0
    for start in range(0, len(test.labels), _TILE):
        queries = _normalize(test.features[start:start + _TILE])
        padded = np.pad(queries, ((0, _TILE - len(queries)), (0, 0)))
        predicted = _predict(padded, bank, labels, num_classes, k, temperature)
        hits += int((np.asarray(predicted)[:len(queries)] == test.labels[start:start + _TILE]).sum())
    return hits / len(test.labels)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _predict(queries, bank, labels, num_classes, k, temperature):
    """Classes [Q] of queries [Q, D] by the bank [N, D] with labels [N]."""
    similarity = jnp.matmul(queries, bank.T, precision='highest')               # [Q, N]
    nearest, index = jax.lax.top_k(similarity, k)                               # [Q, k]
    weights = jnp.exp((nearest - 1) / temperature)                              # at most 1; the scale cancels
    votes = jax.vmap(lambda weight, label: jnp.zeros(num_classes).at[label].add(weight))(weights, labels[index])
    return votes.argmax(-1)


def _normalize(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
