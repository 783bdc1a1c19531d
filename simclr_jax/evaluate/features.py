"""Features of a whole split, in memory: what every evaluator on frozen features starts from."""

from typing import Callable, Iterable, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import sharding


class Features(NamedTuple):
    features: np.ndarray    # [N, D] float32
    labels: np.ndarray      # [N] int32


def extract_features(encode: Callable[[jax.Array], jax.Array], batches: Iterable[dict],
                     mesh: jax.sharding.Mesh) -> Features:
    """Runs `encode` over `batches` and gathers the valid, labelled rows on every process.

    Args:
        encode: images [B, H, W, 3] sharded over `mesh` -> features [B, D] float32.
        batches: of inputs.eval_batches: 'image', 'label', 'valid', the local rows of each process.
    """
    features, labels = [], []
    for batch in batches:
        batch = sharding.put_batch(mesh, batch)
        rows = (encode(batch['image']), batch['label'], batch['valid'])
        encoded, label, valid = multihost_utils.process_allgather(rows, tiled=True)
        known = valid & (label >= 0)
        features.append(np.asarray(encoded, np.float32)[known])
        labels.append(np.asarray(label)[known])
    return Features(np.concatenate(features), np.concatenate(labels))


def raw_pixels(images: jax.Array) -> jax.Array:
    """An `encode` that returns the pixels [B, S*S*3] themselves: the floor that needs no network."""
    return images.reshape(images.shape[0], -1)
