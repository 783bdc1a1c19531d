"""Distillation of a fine-tuned teacher on unlabelled images, SimCLRv2's third step (Chen et al. 2020b, sec. 2)."""

import os
import time
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from simclr_jax import storage
from simclr_jax.config import ConfigDict, check_values
from simclr_jax.data.pipeline import check_batch_size
from simclr_jax.data.source import Source
from simclr_jax.evaluate import classifier_training as tuning
from simclr_jax.evaluate.evaluated import Evaluated, load_splits, make_evaluated
from simclr_jax.evaluate.pretrained import Pretrained, fresh, load_pretrained
from simclr_jax.evaluate.results import report_results
from simclr_jax.models.folding import fold
from simclr_jax.models.network import forward_train
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.storage import as_path
from simclr_jax.training import schedules


def distil(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None) -> dict[str, dict[str, float]]:
    """Trains a student on a teacher's class probabilities, and tests both once, on centre crops.

    The teacher is frozen and sees the student's own crops and flips. The student's loss is the cross-entropy
    with the teacher's probabilities, both at `distil.temperature` (eq. 2), and with `distil.label_share` more
    than 0 that of a class-balanced share of the true labels beside it, alpha and 1 - alpha (eq. 3).
    `distil.student` is the teacher's architecture (self-distillation), `config.encoder`, or an encoder to start
    from; `encoder` is the module itself, where no config can name it.

    Writes workdir/distilled.safetensors, encoder and classifier, which every other task reads as `pretrained`,
    and lines in results.jsonl. A run that is killed leaves neither.

    Returns:
        {'teacher', 'student on the labels alone' (where there are any), 'student'}, each with
        {'distil_accuracy', 'distil_top5_accuracy'} in [0, 1].

    Raises:
        ValueError, FileNotFoundError: no teacher with a classifier, no test labels, or settings that will not do.
        FloatingPointError: the training diverged.
    """
    settings = config.distil
    check_values(config)
    teacher = _load_teacher(settings, workdir)
    of_teacher = make_evaluated(teacher, layer=0, path=as_path(settings.teacher or workdir))
    evaluated = make_evaluated(_make_student(config, teacher, encoder), layer=0, mesh=of_teacher.mesh)
    train_source, test_source = load_splits(config, of_teacher, 'distillation', unlabelled=not settings.label_share)
    labelled = (tuning.share_of_labels(train_source, settings.label_share, config.seed)
                if settings.label_share else None)
    check_batch_size(train_source, settings.batch_size, jax.process_count(), field='distil.batch_size')
    sharding.check_batch(settings.batch_size, evaluated.mesh, field='distil.batch_size')
    num_labelled = _num_labelled(labelled, settings, evaluated.mesh)
    num_steps = schedules.num_train_steps(train_source.num_examples, settings.num_epochs, settings.batch_size)
    alpha = settings.alpha if labelled else 1.0
    runs = {'student': (alpha, 1 - alpha)}        # weights of the two terms of eq. 3, teacher's and labels'
    if labelled and settings.without:
        runs = {'student on the labels alone': (0.0, 1.0)} | runs
    classifier = teacher.classifier
    assert classifier is not None
    started, results = time.time(), {}
    with MetricWriter(f'{workdir}/distil', total_steps=len(runs) * num_steps,
                      batch_size=settings.batch_size) as writer:
        writer.note(f'Distillation of {teacher.source} into {evaluated.pretrained.source} on '
                    f'{train_source.num_examples:,} images, {labelled.num_examples if labelled else 0:,} of them with '
                    f'labels, {num_steps:,} steps of {settings.batch_size:,} images'
                    + f' and {num_labelled:,} with labels' * bool(labelled), *train_source.notes, *test_source.notes)
        trained = tuning.Tuned(teacher.variables, **classifier)
        results['teacher'], num_test = trained.test(of_teacher, test_source, 'distil')
        for run, (name, weights) in enumerate(runs.items()):
            trained = _fit(config, evaluated, of_teacher, weights, [train_source, labelled],
                           [settings.batch_size, num_labelled], num_steps,
                           tuning.log_to(writer, every=config.log.every_steps, offset=run * num_steps,
                                         name='distil'))
            results[name], _ = trained.test(evaluated, test_source, 'distil')
        if sharding.is_lead():
            trained.write(os.path.join(workdir, 'distilled.safetensors'), evaluated, step=num_steps,
                          source=f'{evaluated.pretrained.source}, distilled', distil=settings.to_dict())
        report_results(
            writer, workdir, f'Distillation on {train_source.name}, {train_source.split}, tested on '
            f'{test_source.split}: {num_test:,} images', results, evaluation='distil',
            **of_teacher.provenance(
                train_source, test_source, train_source.num_examples - len(train_source.skipped), num_test),
            num_labels=labelled.num_examples if labelled else 0, num_steps=num_steps,
            seconds=round(time.time() - started, 1), protocol=settings.to_dict())
    return results


def distillation_loss(logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """-sum_y P_teacher(y; tau) log P_student(y; tau), the mean over rows of logits [B, C] (eq. 2)."""
    goal = jax.nn.softmax(teacher_logits / temperature)
    return optax.softmax_cross_entropy(logits / temperature, goal).mean()


def _fit(config: ConfigDict, evaluated: Evaluated, of_teacher: Evaluated, weights: tuple[float, float],
         sources: Sequence[Source | None], batch_sizes: Sequence[int], num_steps: int,
         log: Callable[[int, dict], None]) -> tuning.Tuned:
    """The student after its training."""
    settings, student, teacher = config.distil, evaluated.pretrained, of_teacher.pretrained
    assert teacher.classifier is not None
    of_goal, of_labels = weights
    batches, rows_of = _batches(config, evaluated, sources, batch_sizes, weights)
    trained = {'network': student.variables['params'],
               'classifier': tuning.new_classifier(config.seed, evaluated.width, len(teacher.classifier['bias']))}
    others = {'batch_stats': student.variables['batch_stats'], 'teacher': fold(teacher.network, teacher.variables),
              'head': teacher.classifier}

    def loss(trained, others, images, labels, key):
        total, metrics = jnp.zeros(()), {}
        output, batch_stats = forward_train(student.network, trained['network'], others['batch_stats'],
                                            jnp.concatenate(images), key=key)
        logits = output.features @ trained['classifier']['kernel'] + trained['classifier']['bias']
        if of_goal:
            goal = of_teacher.encode(others['teacher'], images[0]) @ others['head']['kernel'] + others['head']['bias']
            metrics['teacher_loss'] = distillation_loss(logits[:len(goal)], jax.lax.stop_gradient(goal),
                                                        settings.temperature)
            metrics['agreement'] = (logits[:len(goal)].argmax(-1) == goal.argmax(-1)).mean(dtype=jnp.float32)
            total += of_goal * metrics['teacher_loss']
        if of_labels:
            metrics['label_loss'], metrics['accuracy'] = tuning.cross_entropy(logits[-len(labels):], labels)
            total += of_labels * metrics['label_loss']
        return total, (others | {'batch_stats': batch_stats}, metrics)

    trained, others = tuning.fit(loss, (trained, others), batches, rows_of, settings=settings, num_steps=num_steps,
                                 seed=config.seed, mesh=evaluated.mesh, log=log, name='distil')
    return tuning.Tuned({'params': trained['network'], 'batch_stats': others['batch_stats']},
                        **trained['classifier'])


def _batches(config: ConfigDict, evaluated: Evaluated, sources: Sequence[Source | None], batch_sizes: Sequence[int],
             weights: tuple[float, float]) -> tuple[Iterator[dict], Callable[[dict], tuple[jax.Array, ...]]]:
    """Batches, and their crops: of all images for the teacher's term, of the labelled ones for the other."""
    drawn, crops = zip(*(tuning.labelled_crops(config, evaluated.config.augment, source, batch_size)
                         for source, batch_size, weight in zip(sources, batch_sizes, weights) if source and weight))

    def joined():
        for parts in zip(*drawn):
            yield {'label': parts[-1]['label'], 'parts': parts}

    return joined(), lambda batch: tuple(cut(part) for cut, part in zip(crops, batch['parts']))


def _load_teacher(settings: ConfigDict, workdir: str) -> Pretrained:
    path = as_path(settings.teacher or os.path.join(workdir, 'finetuned.safetensors'))
    if not settings.teacher and not storage.exists(path):
        raise FileNotFoundError(f'{workdir} has no finetuned.safetensors, the teacher: run --config.task=finetune in '
                                'it first, or name a teacher with --config.distil.teacher.')
    teacher = load_pretrained(path)
    if teacher.classifier is None:
        raise ValueError(f'{path} has no classifier, which a teacher needs: name a file that --config.task=finetune '
                         'with finetune.layer=0 wrote, or fine-tuned weights, with --config.distil.teacher.')
    return teacher


def _make_student(config: ConfigDict, teacher: Pretrained, encoder: nn.Module | None) -> Pretrained:
    """The student before its training, with the teacher's preprocessing."""
    student = config.distil.student
    if student not in ('self', 'config'):
        return load_pretrained(as_path(student), encoder=encoder)
    own = ConfigDict(teacher.config.to_dict())
    own.seed = config.seed
    own.head = ConfigDict({'mode': 'none'})
    if student == 'config':
        own.encoder = ConfigDict(config.encoder.to_dict())
    return fresh(own, encoder)


def _num_labelled(labelled: Source | None, settings: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """How many images of a batch have labels: as many as the others, or as there are."""
    if labelled is None:
        return 0
    count = min(settings.batch_size, labelled.num_examples) // mesh.size * mesh.size
    if not count:
        raise ValueError(f'distil.label_share is {settings.label_share}: {labelled.num_examples} labels are too few '
                         f'for {mesh.size} devices, choose more.')
    return count
