"""kNN alone, of a pretrained encoder and its floors: nothing is trained, nothing is tuned."""

import time

import flax.linen as nn

from simclr_jax.config import ConfigDict
from simclr_jax.evaluate.evaluated import load_evaluated, load_splits
from simclr_jax.evaluate.knn import knn_accuracies
from simclr_jax.evaluate.results import report_results
from simclr_jax.runlog.writer import MetricWriter


def knn(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None) -> dict[str, dict[str, float]]:
    """Weighted kNN on the test split for each of `knn.k`, by the features of the training split.

    Encoder and preprocessing are those of `knn.pretrained`, the data those of its run unless `config`
    names others.

    `encoder` is the module itself, where the config of its run cannot name it.

    Returns:
        {'raw pixels', 'random', 'pretrained': {'knn_accuracy_k20', ...}}, in [0, 1]; without the pixels
        where they do not fit in memory.

    Raises:
        ValueError, FileNotFoundError: no encoder, labels or test split; nothing was written.
        RuntimeError: the encoder changed meanwhile.
    """
    settings, started = config.knn, time.time()
    if not settings.k or min(settings.k) < 1:
        raise ValueError(f'knn.k is {settings.k}: give numbers of 1 or more, as '
                         '--config.knn.k="(1, 20, 200)".')
    evaluated = load_evaluated(settings, workdir, 'knn', encoder)
    train_source, test_source = load_splits(config, evaluated, 'kNN')
    results = {}
    with MetricWriter(f'{workdir}/knn', total_steps=1) as writer:
        writer.note(*train_source.notes, *test_source.notes)
        for name, encode in evaluated.encoders(train_source, test_source, pixel_floor=settings.pixel_floor,
                                             note=writer.note).items():
            train, test = evaluated.features(encode, train_source, test_source)
            ks = list(dict.fromkeys(min(k, len(train.labels)) for k in settings.k))
            if not results and max(settings.k) > len(train.labels):
                writer.note(f'knn.k is {settings.k}, but there are {len(train.labels)} training images: k is '
                            f'{", ".join(map(str, ks))}.')
            found = knn_accuracies(train, test, num_classes=train_source.num_classes, ks=ks,
                                   temperature=settings.temperature)
            results[name] = {f'knn_accuracy_k{k}': share for k, share in found.items()}
        report_results(
            writer, workdir, f'kNN of {evaluated.pretrained.source} on {test_source.name}, '
            f'{test_source.split}: {len(test.labels):,} images by {len(train.labels):,}', results,
            evaluation='knn', **evaluated.provenance(train_source, test_source, len(train.labels), len(test.labels)),
            seconds=round(time.time() - started, 1), protocol=settings.to_dict())
    return results
