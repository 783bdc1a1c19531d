"""kNN and linear accuracy on frozen features, as a run logs them; that the encoder stays frozen."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from simclr_jax.config import ConfigDict
from simclr_jax.data import batches
from simclr_jax.data.source import Source, Streamed, take_rows
from simclr_jax.evaluate.features import Encode, encode_source, take
from simclr_jax.evaluate.knn import knn_accuracies, knn_accuracy
from simclr_jax.evaluate.logistic import logistic_accuracy
from simclr_jax.evaluate.subsets import heldout_rows

_LARGE_SET = 0x1A26E    # tells this draw from others of the same seed
_MOST_HELD_OUT = 2000   # training images at most that checkpoints are chosen on


@contextlib.contextmanager
def unchanged(encode: Encode) -> Iterator[None]:
    """Around every evaluation of a frozen encoder: RuntimeError if the encoder is another one after it.

    Arrays of jax cannot change: those that `encode`, a functools.partial, holds must be the same ones.
    """
    def identities():
        return [id(leaf) for leaf in jax.tree.leaves(getattr(encode, 'args', ()))]

    before = identities()
    yield
    if identities() != before:
        raise RuntimeError('The encoder changed during its evaluation: the result would not be one of a '
                           'frozen encoder.')


def is_labelled(source: Source | None) -> bool:
    """Whether a source can be measured on: TFDS's own test splits often carry -1 for every label."""
    if source is None or not source.num_classes:
        return False
    if not isinstance(source, Streamed):
        return bool((source.labels >= 0).any())
    first = next(batches.eval_batches(source, batch_size=8, image_size=8, crop_proportion=1.0))
    return bool((first['label'] >= 0).any())


def num_labelled(source: Source) -> int:
    """Images that an evaluation counts: labelled, and not found unreadable so far."""
    if not isinstance(source, Streamed):
        return sum(int(index) not in source.unreadable for index in np.flatnonzero(source.labels >= 0))
    return source.num_examples - len(source.skipped)


def frozen_accuracies(encode: Encode, train_source: Source, test_source: Source, config: ConfigDict,
                      mesh: jax.sharding.Mesh, *, linear: bool, advance: Callable[[], None] = lambda: None
                      ) -> dict[str, float]:
    """`knn_accuracy` and, if `linear`, `linear_accuracy`: top-1 on the test split, in [0, 1].

    The classifiers see the training split's features and labels alone. `advance` is called once for each image.
    """
    train, test = (encode_source(encode, source, config, mesh, advance=advance)[0]
                   for source in (train_source, test_source))
    num_classes = train_source.num_classes
    results = {'knn_accuracy': knn_accuracy(train, test, num_classes=num_classes, k=config.eval.knn_k,
                                            temperature=config.eval.knn_temperature)}
    if linear:
        results['linear_accuracy'] = logistic_accuracy(train, test, num_classes=num_classes)
    return results


def heldout_accuracy(encode: Encode, train_source: Source, config: ConfigDict, mesh: jax.sharding.Mesh
                     ) -> float:
    """kNN accuracy on a tenth of the training split, at most 2,000 images, by the rest of it, in [0, 1].

    What checkpoints are compared and chosen by: no test image is looked at. The held-out images
    follow from config.seed; the encoder has seen them in training, without their labels. Of more than
    `eval.knn_max_images` a random part stands for all (see `of_large_set`).
    """
    train, _ = encode_source(encode, of_large_set(train_source, config), config, mesh)
    held_out = heldout_rows(len(train.labels), config.seed, at_most=_MOST_HELD_OUT)[1]
    k = config.eval.knn_k
    return knn_accuracies(train, take(train, held_out), num_classes=train_source.num_classes, ks=[k],
                          temperature=config.eval.knn_temperature, without=held_out)[k]


def of_large_set(source: Source, config: ConfigDict) -> Source:
    """`source`, or `eval.knn_max_images` of its labelled images, drawn by config.seed, where it has more.

    0 stands for all. A source that is streamed is taken whole: single images cannot be chosen of it.
    """
    limit = config.eval.get('knn_max_images', 0)
    if not limit or isinstance(source, Streamed):
        return source
    labelled = np.flatnonzero(source.labels >= 0)
    if len(labelled) <= limit:
        return source
    chosen = np.random.default_rng([config.seed, _LARGE_SET]).choice(labelled, limit, replace=False)
    return take_rows(source, np.sort(chosen))
