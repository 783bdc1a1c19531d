"""kNN and the linear probe on frozen features of centre crops: what a run reports of itself."""

import functools
from typing import Callable

import jax

from simclr_jax import inputs
from simclr_jax.config import ConfigDict
from simclr_jax.data.base import Source
from simclr_jax.evaluate.features import Features, extract_features
from simclr_jax.evaluate.knn import knn_accuracy
from simclr_jax.evaluate.logistic import logistic_accuracy

Encode = Callable[[jax.Array], jax.Array]


def labelled_features(encode: Encode, source: Source, config: ConfigDict,
                      mesh: jax.sharding.Mesh) -> Features:
    """Features [N, D] and labels [N] of the readable, labelled images of `source`.

    `config` is that of the encoder's own run: it says how images are preprocessed.
    """
    # Padding is dropped, so a batch that the devices can share costs nothing but a little memory.
    rounds = -(-config.eval.batch_size // mesh.size)
    size, proportion = config.augment.image_size, config.eval.crop_proportion
    batches = inputs.eval_batches(
        source, batch_size=rounds * mesh.size // jax.process_count(), image_size=size,
        crop_proportion=proportion, num_threads=config.data.num_threads)
    crops = functools.partial(inputs.centre_crops, image_size=size, proportion=proportion)
    return extract_features(lambda images: encode(crops(images)), batches, mesh)


def is_labelled(source: Source | None) -> bool:
    """Whether a source can be measured on: TFDS's own test splits often carry -1 for every label."""
    if source is None or not source.num_classes:
        return False
    if hasattr(source, 'labels'):
        return bool((source.labels >= 0).any())
    first = next(inputs.eval_batches(source, batch_size=8, image_size=8, crop_proportion=1.0))
    return bool((first['label'] >= 0).any())


def measure(encode: Encode, train_source: Source, test_source: Source, config: ConfigDict,
            mesh: jax.sharding.Mesh, *, linear: bool) -> dict[str, float]:
    """`knn_accuracy` and, if `linear`, `linear_accuracy`: top-1 on the test split, in [0, 1].

    The classifiers see the training split's features and labels alone.
    """
    train = labelled_features(encode, train_source, config, mesh)
    test = labelled_features(encode, test_source, config, mesh)
    num_classes = train_source.num_classes
    results = {'knn_accuracy': knn_accuracy(train, test, num_classes=num_classes, k=config.eval.knn_k,
                                            temperature=config.eval.knn_temperature)}
    if linear:
        results['linear_accuracy'] = logistic_accuracy(train, test, num_classes=num_classes)
    return results
