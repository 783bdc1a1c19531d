"""Features of a whole split by a frozen encoder, in memory: what every evaluation starts from."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax.config import ConfigDict
from simclr_jax.data import batches
from simclr_jax.data.source import Source
from simclr_jax.runtime import sharding
from simclr_jax.views.resize import Resize

Encode = Callable[[jax.Array], jax.Array]       # images [B, S, S, 3] in [0, 1] -> features [B, D]


class Features(NamedTuple):
    """Features of a split, a row for each image."""

    features: np.ndarray        # [N, D] float32
    labels: np.ndarray          # [N] int32; -1 for none
    preprocessing: str = ''     # how the images were made, see `preprocessing_of`


def resize_of(config: ConfigDict) -> Resize:
    """How the images of an encoder are resized; runs of before it could be chosen do not say."""
    return Resize(config.eval.get('resize', 'bicubic'), config.eval.get('antialias', False),
                  config.eval.get('resize_to', 0))


def preprocessing_of(config: ConfigDict) -> str:
    """'224 px, crop 0.875, mean (0.485, ...), std (...)': how an encoder's own config wants its images."""
    means, stds = ('(' + ', '.join(f'{value:.6g}' for value in values) + ')'
                   for values in (config.augment.mean, config.augment.std))
    resize = resize_of(config)
    other = f'{resize}, ' if resize != Resize() else ''     # files of before there was another say nothing
    return (f'{config.augment.image_size} px, crop {config.eval.crop_proportion:.6g}, {other}mean {means}, '
            f'std {stds}')


def check_features(num_classes: int, **splits: Features) -> None:
    """ValueError for features that are not finite, labels that are no class, or two preprocessings.

    splits: training and, where there are any, test.
    """
    for what, split in splits.items():
        bad = ~np.isfinite(split.features.sum(axis=1, dtype=np.float64))
        if bad.any():
            raise ValueError(f'{bad.sum()} of the {len(bad)} {what} features are not finite numbers, the '
                             f'first of row {bad.argmax()}: the encoder may have diverged.')
        outside = (split.labels < 0) | (split.labels >= num_classes)
        if outside.any():
            raise ValueError(f'{outside.sum()} of the {len(outside)} {what} labels are not in '
                             f'[0, {num_classes}), the first is {split.labels[outside][0]}: leave examples '
                             'without a class out.')
    if len({split.preprocessing for split in splits.values()}) > 1:
        train, test = (split.preprocessing or 'unknown' for split in splits.values())
        raise ValueError(f'The training features were made from images of {train}, the test features from '
                         f'{test}: use the same preprocessing for both.')


def take(features: Features, rows: np.ndarray) -> Features:
    """Some rows, in the order given."""
    return features._replace(features=features.features[rows], labels=features.labels[rows])


def encode_source(encode: Encode, source: Source, config: ConfigDict, mesh: jax.sharding.Mesh, *,
                  labelled: bool = True, batch_size: int = 0, num_threads: int | None = None,
                  advance: Callable[[], None] = lambda: None) -> tuple[Features, np.ndarray]:
    """Features of the readable images of `source`, in its order, and their rows in it, int64 [N].

    Every process has all of them.

    Args:
        encode: takes images that are sharded over `mesh`.
        config: of the encoder's own run: it says how images are preprocessed.
        labelled: leave out images without a label.
        batch_size: images at a time, over all devices; 0 = eval.batch_size of `config`.
        num_threads: that read images; None = data.num_threads of `config`.
        advance: called once for each image of `source`.
    """
    size, proportion, resize = config.augment.image_size, config.eval.crop_proportion, resize_of(config)
    each = -(-(batch_size or config.eval.batch_size) // mesh.size) * mesh.size // jax.process_count()
    features, count, first = np.empty((0, 0), np.float32), 0, 0
    labels, rows = np.empty(source.num_examples, np.int32), np.empty(source.num_examples, np.int64)
    for batch in batches.eval_batches(
            source, batch_size=each, image_size=size, crop_proportion=proportion, resize=resize,
            num_threads=config.data.num_threads if num_threads is None else num_threads):
        batch = sharding.put_batch(mesh, batch)
        images = batches.centre_crops(batch['image'], image_size=size, proportion=proportion, resize=resize)
        encoded, label, valid = multihost_utils.process_allgather(
            (encode(images), batch['label'], batch['valid']), tiled=True)
        if not features.size:       # room for all of them is made once, and nothing is copied later
            features = np.empty((source.num_examples, encoded.shape[1]), np.float32)
        kept = np.flatnonzero(valid & (label >= 0) if labelled else valid)
        into = slice(count, count := count + len(kept))
        features[into], labels[into], rows[into] = encoded[kept], label[kept], first + kept
        for _ in range(min(len(valid), source.num_examples - first)):
            advance()
        first += len(valid)
    return Features(features[:count], labels[:count], preprocessing_of(config)), rows[:count]


def raw_pixels(images: jax.Array) -> jax.Array:
    """An `encode` that returns the pixels [B, S*S*3] themselves: the floor that needs no network."""
    return images.reshape(images.shape[0], -1)
