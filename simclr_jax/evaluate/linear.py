"""The paper's linear evaluation: a linear classifier, trained with crops, on a frozen encoder."""

import time
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.config import ConfigDict
from simclr_jax.data.pipeline import check_batch_size, order
from simclr_jax.data.source import Source
from simclr_jax.evaluate import classifier_training as tuning
from simclr_jax.evaluate.accuracies import unchanged
from simclr_jax.evaluate.evaluated import Evaluated, load_evaluated, load_splits
from simclr_jax.evaluate.features import Encode, Features
from simclr_jax.evaluate.logistic import check_l2, fit_with_l2
from simclr_jax.evaluate.results import report_results
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.training import schedules


def linear(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None
           ) -> dict[str, dict[str, float]]:
    """Linear evaluation of a pretrained encoder (Chen et al. 2020, sec. 2.2; B.8 for transfer).

    The encoder is frozen, BatchNorm with its running statistics. `linear.solver` says how the classifier
    is fitted:

    'sgd'    the paper's: on features of random crops and flips with Nesterov SGD, no other augmentation,
             learning rate x B/256, cosine, no warm-up.
    'lbfgs'  to convergence on features of centre crops, with an l2 of 45 values that is chosen on a
             held-out tenth of the training split (`linear.l2='sweep'`), or with a given one.

    It is tested once, when fitted, on centre crops. Encoder, image size, crops and normalisation come from
    the checkpoint's own config; `config` gives the `linear` block and the data, as far as it names them.
    Choose hyper-parameters on a part of the training split (`data.train_split='train[:90%]'`,
    `data.test_split='train[90%:]'`), never on the test split. The same evaluation of the randomly
    initialised encoder, and L-BFGS on the raw pixels where they fit in memory, stand beside it as floors.
    `encoder` is the module itself, where the config of its run cannot name it.

    Returns:
      {'raw pixels', 'random', 'pretrained': {'linear_accuracy', 'linear_top5_accuracy'}}, in [0, 1].

    Raises:
      ValueError, FileNotFoundError: no checkpoint, labels or test split; nothing was written.
      RuntimeError: the encoder changed while the classifier was trained.
    """
    settings, started = config.linear, time.time()
    if settings.solver not in ('sgd', 'lbfgs'):
        raise ValueError(f"linear.solver is {settings.solver!r}: it takes 'sgd' or 'lbfgs'.")
    l2, by_sgd = check_l2('linear.l2', settings.l2), settings.solver == 'sgd'
    evaluated = load_evaluated(settings, workdir, 'linear', encoder)
    train_source, test_source = load_splits(config, evaluated, 'a linear evaluation')
    if by_sgd:
        sharding.check_batch(settings.batch_size, evaluated.mesh, field='linear.batch_size')
        check_batch_size(train_source, settings.batch_size, jax.process_count(), field='linear.batch_size')
    num_steps = schedules.num_train_steps(train_source.num_examples, settings.num_epochs, settings.batch_size)
    results, details, offset = {}, {}, 0
    with MetricWriter(f'{workdir}/linear', total_steps=2 * num_steps, batch_size=settings.batch_size) as writer:
        writer.note(*train_source.notes, *test_source.notes)
        for name, encode in evaluated.encoders(train_source, test_source, pixel_floor=settings.pixel_floor,
                                             note=writer.note).items():
            if by_sgd and name != 'raw pixels':
                log = tuning.log_to(writer, every=config.log.every_steps, offset=offset, name=name)
                logits, labels = _fit_by_sgd(config, evaluated, encode, train_source, test_source, num_steps,
                                             log)
                num_train, offset = train_source.num_examples - len(train_source.skipped), offset + num_steps
            else:
                train, test = evaluated.features(encode, train_source, test_source)
                classifier = fit_with_l2(train, train_source.num_classes, 1.0 if by_sgd else l2, config.seed)
                logits, labels, num_train = classifier.logits(test.features), test.labels, len(train.labels)
                details[name] = {'solver': 'lbfgs', 'l2': classifier.l2, 'heldout': classifier.heldout}
            results[name] = tuning.accuracies(logits, labels)
        pixels = '; raw pixels by lbfgs, l2 = 1' if by_sgd and 'raw pixels' in results else ''
        report_results(
            writer, workdir, f'Linear evaluation ({settings.solver}{pixels}) of {evaluated.pretrained.source} '
            f'on {test_source.name}, {test_source.split}: {len(labels):,} images',
            results, evaluation='linear', details=details,
            **evaluated.provenance(train_source, test_source, num_train, len(labels)),
            seconds=round(time.time() - started, 1),
            protocol=settings.to_dict() | {'encoder': evaluated.pretrained.whose})
    return results


def _fit_by_sgd(config: ConfigDict, evaluated: Evaluated, encode: Encode, train_source: Source,
                test_source: Source, num_steps: int, log: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the test split."""
    settings = config.linear
    with unchanged(encode):
        if settings.augment:
            batches, crops = tuning.labelled_crops(config, evaluated.config.augment, train_source, settings.batch_size)
            features_of = lambda batch: encode(crops(batch))
        else:
            train, = evaluated.features(encode, train_source)
            features_of, batches = lambda batch: batch['image'], _feature_batches(
                train, config.seed, settings.batch_size)
        kernel, bias = fit_classifier(
            batches, features_of, width=evaluated.width, num_classes=train_source.num_classes,
            num_steps=num_steps, settings=settings, seed=config.seed, mesh=evaluated.mesh, log=log)
        test, = evaluated.features(encode, test_source)
    return test.features @ kernel + bias, test.labels


def fit_classifier(batches: Iterator[dict], features_of: Callable[[dict], jax.Array], *,
                   width: int, num_classes: int, num_steps: int, settings: ConfigDict, seed: int,
                   mesh: jax.sharding.Mesh, log: Callable[[int, dict], None]
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [width, num_classes] and bias [num_classes], trained on `num_steps` batches.

    `features_of` maps a batch to features [B, width]; the other arguments are those of `classifier_training.fit`.
    """
    def loss(params, others, features, labels, key):
        del key
        logits = jnp.matmul(features, params['kernel'], precision='highest') + params['bias']
        return tuning.cross_entropy(logits, labels)[0], (others, {})

    params, _ = tuning.fit(loss, (tuning.new_classifier(seed, width, num_classes), ()), batches, features_of,
                           settings=settings, num_steps=num_steps, seed=seed, mesh=mesh, log=log, name='linear')
    return np.asarray(params['kernel']), np.asarray(params['bias'])


def _feature_batches(train: Features, seed: int, batch_size: int) -> Iterator[dict]:
    """Shuffled batches of features, the same on every process; each takes its own rows."""
    for _, index in order(seed, batch_size, len(train.labels), **sharding.shard()):
        yield {'image': train.features[index], 'label': train.labels[index]}
