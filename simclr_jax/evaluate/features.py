"""Features of a whole split, in memory: what every evaluator on frozen features starts from."""

from typing import Callable, Iterable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax.runtime import sharding
from simclr_jax.views.resize import Resize


class Features(NamedTuple):
    """Features of a split, a row for each image."""

    features: np.ndarray        # [N, D] float32
    labels: np.ndarray          # [N] int32
    preprocessing: str = ''     # how the images were made, see `describe_preprocessing`


def describe_preprocessing(image_size: int, crop_proportion: float, resize: Resize, mean: Sequence[float],
                           std: Sequence[float]) -> str:
    """'224 px, crop 0.875, mean (0.485, 0.456, 0.406), std (...)': equal for what was preprocessed alike."""
    means, stds = ('(' + ', '.join(f'{value:.6g}' for value in values) + ')' for values in (mean, std))
    other = f'{resize}, ' if resize != Resize() else ''     # files of before there was another say nothing
    return f'{image_size} px, crop {crop_proportion:.6g}, {other}mean {means}, std {stds}'


def check_same_preprocessing(train: Features, test: Features) -> None:
    """ValueError unless both were made from images of one preprocessing."""
    if train.preprocessing != test.preprocessing:
        made = [features.preprocessing or 'unknown' for features in (train, test)]
        raise ValueError(f'The training features were made from images of {made[0]}, the test features from '
                         f'{made[1]}: make both alike.')


def check_usable(what: str, features: Features, num_classes: int) -> None:
    """ValueError for features that are no finite numbers, or labels that are none of the classes."""
    bad = ~np.isfinite(features.features.sum(axis=1, dtype=np.float64))
    if bad.any():
        raise ValueError(f'{bad.sum()} of the {len(bad)} {what} features are not finite numbers, the first of row '
                         f'{bad.argmax()}: the encoder may have diverged.')
    outside = (features.labels < 0) | (features.labels >= num_classes)
    if outside.any():
        raise ValueError(f'{outside.sum()} of the {len(outside)} {what} labels are not in [0, {num_classes}), the '
                         f'first is {features.labels[outside][0]}: leave examples without a class out.')


def take(features: Features, rows: np.ndarray) -> Features:
    """Some rows, in the order given."""
    return features._replace(features=features.features[rows], labels=features.labels[rows])


def unit_rows(rows: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Rows [N, D] as float32 of length 1, in numpy or in jax as they came; a row of zeros stays."""
    numpy = np if isinstance(rows, np.ndarray) else jnp
    rows = numpy.asarray(rows, np.float32)
    return rows / numpy.maximum(numpy.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def extract_features(encode: Callable[[jax.Array], jax.Array], batches: Iterable[dict],
                     mesh: jax.sharding.Mesh, preprocessing: str = '', *, at_most: int) -> Features:
    """Runs `encode` over `batches` and gathers the valid, labelled rows on every process.

    Args:
        encode: images [B, H, W, 3] sharded over `mesh` -> features [B, D] float32.
        batches: of batches.eval_batches: 'image', 'label', 'valid', the local rows of each process.
        preprocessing: of these images, goes with the features.
        at_most: rows that there may be: room for them is made once, and nothing is copied later.
    """
    features, labels, count = np.empty((0, 0), np.float32), np.zeros(at_most, np.int32), 0
    for batch in batches:
        batch = sharding.put_batch(mesh, batch)
        rows = (encode(batch['image']), batch['label'], batch['valid'])
        encoded, label, valid = multihost_utils.process_allgather(rows, tiled=True)
        known = valid & (label >= 0)
        if not features.size:
            features = np.empty((at_most, encoded.shape[1]), np.float32)
        into = slice(count, count + known.sum())
        features[into], labels[into] = np.asarray(encoded, np.float32)[known], np.asarray(label)[known]
        count = into.stop
    return Features(features[:count], labels[:count], preprocessing)


def raw_pixels(images: jax.Array) -> jax.Array:
    """An `encode` that returns the pixels [B, S*S*3] themselves: the floor that needs no network."""
    return images.reshape(images.shape[0], -1)
