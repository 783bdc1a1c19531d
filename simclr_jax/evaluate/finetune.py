"""Fine-tuning of a pretrained network, whole or from a block on, at a share of the labels."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax import storage
from simclr_jax.config import ConfigDict, check_values
from simclr_jax.data.pipeline import check_batch_size
from simclr_jax.data.source import Source, Streamed, take_rows
from simclr_jax.evaluate import classifier_training as tuning
from simclr_jax.evaluate.evaluated import Evaluated, load_evaluated, load_splits
from simclr_jax.evaluate.results import report_results
from simclr_jax.evaluate.subsets import rows_of_files
from simclr_jax.models import abilities
from simclr_jax.models.partly_frozen import apply_partly_frozen
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.training import schedules

_INITS = {'pretrained': ('pretrained',), 'scratch': ('scratch',), 'both': ('scratch', 'pretrained')}


def finetune(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None
             ) -> dict[str, dict[str, float]]:
    """Fine-tunes the encoder of `finetune.pretrained` with labels, and tests it once, on centre crops.

    As google-research/simclr run.py --train_mode=finetune: crops and flips, BatchNorm over the global batch
    with running statistics that follow, a cosine without warm-up. `finetune.from_block` freezes what lies
    before: -1 nothing, 0 the stem, k all up to stage k, 4 all but the classifier; a frozen part keeps its
    parameters and BatchNorm statistics bit for bit; 0 to 3 are for an encoder with stages. `finetune.layer`
    is where the classifier sits: 0 on h, k on head layer k, which is then trained too (ft_proj_selector).
    Labels: a class-balanced share, seeded (`finetune.label_share`), or a list of file names
    (`finetune.subset_file`). `finetune.init='scratch'` trains the same network from random weights instead,
    the supervised row; 'both' does one after the other.
    `encoder` is the module itself, where the config of its run cannot name it.

    Writes workdir/finetuned.safetensors (and scratch.safetensors), from which every other task reads the
    network as `pretrained`, and a line for each in results.jsonl. A run that is killed leaves neither.

    Returns:
        {'scratch', 'pretrained': {'finetune_accuracy', 'finetune_top5_accuracy'}}, in [0, 1].

    Raises:
        ValueError, FileNotFoundError: no encoder or labels, or settings that will not do; nothing written.
        FloatingPointError: the training diverged.
    """
    settings = config.finetune
    check_values(config)
    _check(settings)
    evaluated = load_evaluated(settings, workdir, 'finetune', encoder)
    module = evaluated.pretrained.network.encoder
    if settings.from_block in range(4) and not abilities.has_stages(module):
        raise ValueError(f'finetune.from_block is {settings.from_block}: the encoder {abilities.class_name(module)} '
                         'has no stages (a method stage_of); it takes -1 (all is trained) or 4 (the classifier '
                         'alone).')
    whole_source, test_source = load_splits(config, evaluated, 'fine-tuning',
                                            by_name=bool(settings.subset_file))
    train_source = _chosen(whole_source, settings, config.seed)
    sharding.check_batch(settings.batch_size, evaluated.mesh, field='finetune.batch_size')
    check_batch_size(train_source, settings.batch_size, jax.process_count(), field='finetune.batch_size')
    num_steps = schedules.num_train_steps(train_source.num_examples, settings.num_epochs, settings.batch_size)
    inits, results, networks, num_test = _INITS[settings.init], {}, {}, 0
    started = time.time()
    with MetricWriter(f'{workdir}/finetune', total_steps=len(inits) * num_steps,
                      batch_size=settings.batch_size) as writer:
        writer.note(f'Fine-tuning of {evaluated.pretrained.source} on {train_source.num_examples:,} of '
                    f'{whole_source.num_examples:,} labelled images, {num_steps:,} steps',
                    *whole_source.notes, *test_source.notes)
        for run, init in enumerate(inits):
            log = tuning.log_to(writer, every=config.log.every_steps, offset=run * num_steps, name=init)
            variables = evaluated.pretrained.initial if init == 'scratch' else evaluated.pretrained.variables
            tuned = fit_network(config, evaluated, variables, train_source, num_steps, log,
                                from_block=-1 if init == 'scratch' else settings.from_block)
            results[init], num_test = tuned.test(evaluated, test_source, 'finetune')
            networks[init] = tuned
        if sharding.is_lead():
            for init, tuned in networks.items():
                file, source = (('scratch', 'trained from scratch') if init == 'scratch' else
                                ('finetuned', f'{evaluated.pretrained.source}, fine-tuned'))
                tuned.write(os.path.join(workdir, f'{file}.safetensors'), evaluated, source, step=num_steps,
                            has_classifier=settings.layer == 0, finetune=settings.to_dict() | {'init': init})
        report_results(
            writer, workdir, f'Fine-tuning on {train_source.num_examples:,} labels of {train_source.name}, '
            f'{train_source.split}, tested on {test_source.split}: {num_test:,} images', results,
            evaluation='finetune', **evaluated.provenance(
                train_source, test_source, train_source.num_examples - len(train_source.skipped), num_test),
            num_steps=num_steps, seconds=round(time.time() - started, 1), protocol=settings.to_dict())
    return results


def fit_network(config: ConfigDict, evaluated: Evaluated, variables: Any, train_source: Source, num_steps: int,
                log: Callable[[int, dict], None], *, from_block: int) -> tuning.Tuned:
    """Trains network and classifier on `num_steps` batches of crops and flips, from `variables`.

    FloatingPointError if the training diverges.
    """
    settings, network = config.finetune, evaluated.pretrained.network
    num_dense = sum(name.startswith('dense') for name in variables['params'].get('head', {}))
    layer = settings.layer if settings.layer >= 0 else settings.layer + 1 + num_dense       # -1: the last of the head
    is_frozen = functools.partial(frozen_module, from_block=from_block, layer=layer, encoder=network.encoder)
    batches, crops = tuning.labelled_crops(config, evaluated.config.augment, train_source, settings.batch_size)
    classifier = tuning.new_classifier(config.seed, evaluated.width, train_source.num_classes)
    if settings.zero_init:
        classifier = jax.tree.map(jnp.zeros_like, classifier)
    trained = _parts(variables['params'], lambda *name: not is_frozen(*name)) | {'classifier': classifier}
    others = {'fixed': _parts(variables['params'], is_frozen), 'batch_stats': variables['batch_stats']}

    def params_of(trained, others):
        return {part: others['fixed'].get(part, {}) | trained.get(part, {}) for part in variables['params']}

    def loss(trained, others, images, labels, key):
        layers, batch_stats = apply_partly_frozen(
            network, {'params': params_of(trained, others), 'batch_stats': others['batch_stats']}, images,
            is_frozen=is_frozen, key=key)
        logits = layers[layer] @ trained['classifier']['kernel'] + trained['classifier']['bias']
        value, accuracy = tuning.cross_entropy(logits, labels)
        return value, (others | {'batch_stats': batch_stats}, {'accuracy': accuracy})

    trained, others = tuning.fit(loss, (trained, others), batches, crops, settings=settings, num_steps=num_steps,
                                 seed=config.seed, mesh=evaluated.mesh, log=log, name='finetune')
    return tuning.Tuned({'params': params_of(trained, others), 'batch_stats': others['batch_stats']},
                        **trained['classifier'])


def frozen_module(part: str, module: str, *, from_block: int, layer: int, encoder: Any) -> bool:
    """Whether a module stays as it is: ('encoder', 'stage2_block1'), ('head', 'dense1').

    Of the head that is all that lies beyond `layer`, where the classifier sits; of the encoder all up to
    stage `from_block`.
    """
    if part == 'head':
        return from_block == 4 or int(module.removeprefix(module.rstrip('0123456789'))) > layer
    return from_block == 4 or from_block >= 0 and encoder.stage_of(module) <= from_block


def _parts(params: dict, chosen: Callable[[str, str], bool]) -> dict:
    """The chosen modules of {'encoder': {module: ...}, 'head': {module: ...}}."""
    parts = {part: {name: module for name, module in modules.items() if chosen(part, name)}
             for part, modules in params.items()}
    return {part: modules for part, modules in parts.items() if modules}


def _check(settings: ConfigDict) -> None:
    if settings.init not in _INITS:
        raise ValueError(f'finetune.init is {settings.init!r}: it takes {", ".join(map(repr, _INITS))}.')
    if settings.from_block not in range(-1, 5):
        raise ValueError(f'finetune.from_block is {settings.from_block}: it must be from -1 (all is trained) to 4 '
                         '(the classifier alone).')
    if settings.subset_file and settings.label_share != 1:
        raise ValueError('finetune.subset_file and finetune.label_share both choose the labels: give one.')
    tuning.optimizer_of(settings)


def _chosen(source: Source, settings: ConfigDict, seed: int) -> Source:
    """The part of the training split whose labels are used."""
    if settings.subset_file:
        names = [source.name_of(index) for index in range(source.num_examples)]
        return take_rows(source, rows_of_files(names, storage.as_path(settings.subset_file)))
    if settings.label_share == 1 and isinstance(source, Streamed):
        return source
    return tuning.share_of_labels(source, settings.label_share, seed)
