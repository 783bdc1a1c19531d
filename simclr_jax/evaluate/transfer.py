"""Transfer: logistic regression on several data sets by the features of one encoder, in one table."""

import time
from typing import Any, NamedTuple

import flax.linen as nn

from simclr_jax.config import ConfigDict
from simclr_jax.data import loading
from simclr_jax.data.source import Source
from simclr_jax.evaluate.accuracies import is_labelled
from simclr_jax.evaluate.evaluated import Evaluated, data_options, load_evaluated
from simclr_jax.evaluate.intervals import mean_per_class, per_class_interval, wilson_interval
from simclr_jax.evaluate.logistic import check_l2, fit_with_l2
from simclr_jax.evaluate.results import append_lines, percent
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding


class DataSet(NamedTuple):
    """How the literature measures on a set: fit and choose on `train`, report on `test`."""

    train: str
    test: str
    per_class: bool = False     # the mean of the classes' accuracies instead of top-1


# Chen et al. 2020, App. B.8 and Table 8, after Kornblith et al. 2019, by their names in TFDS. Caltech-101 and
# SUN397 have TFDS's split, which is one of those in use.
DATA_SETS = {
    'food101': DataSet('train', 'validation'),
    'cifar10': DataSet('train', 'test'),
    'cifar100': DataSet('train', 'test'),
    'sun397': DataSet('train+validation', 'test'),
    'cars196': DataSet('train', 'test'),
    'visual_domain_decathlon/aircraft': DataSet('train', 'validation', per_class=True),
    'dtd': DataSet('train+validation', 'test'),
    'oxford_iiit_pet': DataSet('train', 'test', per_class=True),
    'caltech101': DataSet('train', 'test', per_class=True),
    'oxford_flowers102': DataSet('train+validation', 'test', per_class=True),
}


def transfer(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None
             ) -> dict[str, dict[str, float]]:
    """L2-regularised logistic regression on frozen features of each of `transfer.sources` (App. B.8).

    Features are of centre crops, preprocessed as the checkpoint's own run says. The l2 is chosen among 45
    values on a held-out tenth of the training split (`transfer.l2='sweep'`) or given; the classifier is then
    fitted to all of it and tested once. The metric is top-1, and mean per-class accuracy for Aircraft, Pets,
    Caltech-101 and Flowers. The random encoder, and the raw pixels where they fit in memory, stand beside it.
    `encoder` is the module itself, where the config of its run cannot name it.

    Returns:
        {data set: {'raw pixels', 'random', 'pretrained': the metric in [0, 1]}}.

    Raises:
        ValueError, FileNotFoundError: no encoder, or a set that is not there, has no single label for each
            image, or lacks a split; nothing was written.
        RuntimeError: the encoder changed meanwhile.
    """
    settings = config.transfer
    l2 = check_l2('transfer.l2', settings.l2)
    evaluated = load_evaluated(settings, workdir, 'transfer', encoder)
    splits = {name: load_data_set(name, config, evaluated.config) for name in _names(settings)}
    results, cells = {}, {}
    with MetricWriter(f'{workdir}/transfer', total_steps=len(splits)) as writer:
        for name, (train_source, test_source, per_class) in splits.items():
            metric, lines = 'logistic_per_class' if per_class else 'logistic_accuracy', []
            encoders = evaluated.encoders(train_source, test_source, pixel_floor=settings.pixel_floor,
                                        note=lambda text, name=name: writer.note(f'{name}: {text}'))
            for encoder_name, encode in encoders.items():
                started = time.time()
                train, test = evaluated.features(encode, train_source, test_source)
                classifier = fit_with_l2(train, train_source.num_classes, l2, config.seed)
                hits = classifier.logits(test.features).argmax(-1) == test.labels
                value = mean_per_class(hits, test.labels) if per_class else float(hits.mean())
                interval = (per_class_interval(hits, test.labels, seed=config.seed) if per_class else
                            wilson_interval(value, len(hits)))
                lines.append({
                    'evaluation': 'transfer', 'encoder': encoder_name, metric: value,
                    f'{metric}_interval': list(interval), 'l2': classifier.l2, 'heldout': classifier.heldout,
                    **evaluated.provenance(train_source, test_source, len(train.labels), len(hits)),
                    'seconds': round(time.time() - started, 1), 'protocol': settings.to_dict()})
                cells[name, encoder_name] = percent(value, interval)
            results[name] = {line['encoder']: line[metric] for line in lines}
            writer.note(f'{name}: ' + ', '.join(f'{encoder_name} {100 * value:.1f} %'
                                                for encoder_name, value in results[name].items()))
            if sharding.is_lead():
                append_lines(workdir, lines)
        _tabulate(writer, evaluated, splits, cells)
    return results


def _names(settings: ConfigDict) -> list[str]:
    named = settings.sources
    names = [named] if isinstance(named, str) else list(named)
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f'transfer.sources is {named!r}: name one or more data sets, each once, as '
                         "--config.transfer.sources=\"('cifar10', 'folder:PATH')\".")
    return names


def load_data_set(name: str, config: ConfigDict, trained: ConfigDict) -> tuple[Source, Source, bool]:
    """The splits of a set to fit and to test on, and whether its metric is the mean per class.

    A set that DATA_SETS does not have is fitted on 'train' and tested on the first of test, validation, val.

    Raises:
        FileNotFoundError, ValueError: the set will not do.
    """
    known, where = DATA_SETS.get(name.partition(':')[0], DataSet('train', '')), data_options(config, trained)
    train_source, test_source = loading.load_pair(name, known.train, known.test, **where)
    if test_source is None:
        raise ValueError(f'transfer.sources: {name} has no split to test on beside its training split.')
    for source in (train_source, test_source):
        if not is_labelled(source):
            raise ValueError(
                f'transfer.sources: {name} has no class for each image in {source.split}. Sets with several '
                'labels an image, such as VOC 2007 and its 11-point mAP, are not measured here.')
    return train_source, test_source, known.per_class


def _tabulate(writer: MetricWriter, evaluated: Evaluated, splits: dict[str, Any], cells: dict) -> None:
    encoders = list(dict.fromkeys(encoder for _, encoder in cells))
    rows = [[name, f'{train.split} / {test.split}', 'per class' if per_class else 'top-1',
             *(cells.get((name, encoder), 'left out') for encoder in encoders)]
            for name, (train, test, per_class) in splits.items()]
    writer.table(f'Transfer of {evaluated.pretrained.source}: logistic regression, %; in brackets: 95 % '
                 'interval over the test images',
                 ['data set', 'fitted / tested on', 'metric', *encoders], rows)
