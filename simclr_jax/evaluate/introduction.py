"""What a run says before its first step and at its end: one sentence for each thing."""

from typing import Any

import jax

from simclr_jax.evaluate.accuracies import of_large_set
from simclr_jax.evaluate.evaluators import Run
from simclr_jax.models.building import auto_dtype, encoder_notes
from simclr_jax.models.network import Network
from simclr_jax.runtime import gpus
from simclr_jax.runtime.compile_cache import keeps_programs
from simclr_jax.training import optimizers as optim


def introduction(run: Run, network: Network, params: Any, num_steps: int) -> list[str]:
    """What is about to happen, what a reader might not expect of the config, and what cannot be measured."""
    config, mesh, train_source, test_source = run.config, run.mesh, run.train_source, run.test_source
    device, dtype = mesh.devices.flat[0], config.encoder.dtype
    classes = f'{train_source.num_classes} classes' if train_source.num_classes else 'no labels'
    parameters, num_examples = sum(leaf.size for leaf in jax.tree.leaves(params)), train_source.num_examples
    notes = [f'{config.method.name} on {train_source.name}, {train_source.split}: '
             f'{num_examples:,} images, {classes}; {parameters:,} parameters; '
             f'{num_steps:,} steps of {config.batch_size:,} on {mesh.size} '
             f'{device.platform} device{"s" if mesh.size > 1 else ""}']
    notes += train_source.notes + (test_source.notes if test_source else [])
    notes += gpus.notes(device, deterministic=config.deterministic, keeps_programs=keeps_programs(), dtype=dtype,
                        best_dtype=auto_dtype(device))
    notes += [*encoder_notes(network, config.encoder),
              *optim.notes_on_probe(config.optimizer.weight_decay_groups, config.optimizer.exclude, params)]
    if config.method.get('queue_size', 0) > num_examples:
        notes.append(f'method.queue_size is {config.method.queue_size:,}, more than the {num_examples:,} images: the '
                     "queue then includes other views of a query's own image; make it smaller.")
    if config.method.get('negatives', 0) > num_examples:
        notes.append(f'method.negatives is {config.method.negatives:,}, more than the {num_examples:,} images: so many '
                     'are drawn as there are images.')
    if run.is_measurable and config.eval.knn_k > num_examples:
        notes.append(f'eval.knn_k is {config.eval.knn_k}, more than the {num_examples} images: all are used.')
    if not train_source.num_classes:
        notes.append('No labels: the online probe, kNN and the linear probe are off'
                     + ', and sup_con is nt_xent' * (config.method.get('loss') == 'sup_con') + '.')
    elif test_source is None:
        notes.append('No split to measure on: kNN and the linear probe are off.')
    elif not run.is_measurable:
        notes.append(f'No labels in {test_source.split}: kNN and the linear probe are off.')
    elif of_large_set(train_source, config) is not train_source:
        notes.append(f'kNN during training uses {config.eval.knn_max_images:,} images drawn from the training split '
                     '(eval.knn_max_images); the evaluation at the end uses all.')
    return notes


def faster_input(run: Run) -> str:
    """What to do where the devices wait for images: the end of a sentence, '' where it is done or of no use."""
    if run.train_source.uniform or run.config.data.cache:
        return ''
    return ('a run with --config.data.cache=decoded (or resized:N) and --config.data.cache_dir=DIR decodes them once; '
            'begin it in another --workdir (docs/performance.md).')


def skipped_files(run: Run) -> list[str]:
    """A sentence that names the files that could not be read; [] where all could."""
    skipped = [name for source in (run.train_source, run.test_source) if source for name in source.skipped]
    if not skipped:
        return []
    some = ', '.join(skipped[:10] + ['...'] * (len(skipped) > 10))
    return [f'{len(skipped)} files could not be read and were skipped: {some}']


def finished(run: Run, num_steps: int) -> str:
    """The last sentence of a run: where its encoder is, and how to look at one that nothing was measured of."""
    look = '' if run.is_measurable else ' Nothing was measured: --config.task=report shows nearest neighbours.'
    return f'Finished: step {num_steps:,} of {num_steps:,}; the encoder is in {run.workdir}.{look}'
