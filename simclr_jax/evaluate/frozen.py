"""kNN and the linear probe on frozen features of centre crops: what a run reports of itself."""

from typing import Callable

import jax

from simclr_jax import sharding
from simclr_jax.config import ConfigDict
from simclr_jax.data import pipeline
from simclr_jax.evaluate.features import Features, extract_features
from simclr_jax.evaluate.knn import knn_accuracy
from simclr_jax.evaluate.logistic import logistic_accuracy

Encode = Callable[[jax.Array], jax.Array]


def split_features(encode: Encode, source, config: ConfigDict, mesh: jax.sharding.Mesh) -> Features:
    """Features [N, D] and labels [N] of every readable image of `source`, preprocessed as `config` says."""
    batches = pipeline.eval_batches(
        source, batch_size=sharding.local_batch_size(config.eval.batch_size, mesh),
        image_size=config.augment.image_size, crop_proportion=config.eval.crop_proportion,
        shard_index=jax.process_index(), shard_count=jax.process_count())
    return extract_features(encode, batches, mesh)


def measure(encode: Encode, train_source, test_source, config: ConfigDict, mesh: jax.sharding.Mesh, *,
            linear: bool) -> dict[str, float]:
    """`knn_accuracy` and, if `linear`, `linear_accuracy`: top-1 on the test split, in [0, 1].

    The classifiers see the training split's features and labels alone. `config` supplies
    the preprocessing, which must be that of the encoder's own run.
    """
    train = split_features(encode, train_source, config, mesh)
    test = split_features(encode, test_source, config, mesh)
    num_classes = train_source.num_classes
    results = {'knn_accuracy': knn_accuracy(train, test, num_classes=num_classes, k=config.eval.knn_k,
                                            temperature=config.eval.knn_temperature)}
    if linear:
        results['linear_accuracy'] = logistic_accuracy(train, test, num_classes=num_classes)
    return results
