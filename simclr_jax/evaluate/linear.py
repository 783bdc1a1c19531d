"""The paper's linear evaluation: a linear classifier, trained with crops, on a frozen encoder."""

import functools
import time
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.config import ConfigDict
from simclr_jax.data import order
from simclr_jax.data.memory import check_batch_size
from simclr_jax.data.source import Source
from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.frozen import Encode, unchanged
from simclr_jax.evaluate.logistic import Logistic, fit_best_classifier, fit_standardised
from simclr_jax.evaluate.results import report_results
from simclr_jax.evaluate.subject import Subject, load_splits, load_subject
from simclr_jax.evaluate.supervised import accuracies, cross_entropy, fit, labelled_crops, log_to
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding
from simclr_jax.training import optimizers as optim
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
    `data.test_split='train[90%:]'`), never on the test split. The same measurement of the randomly
    initialised encoder, and L-BFGS on the raw pixels where they fit in memory, stand beside it as floors.
    `encoder` is the module itself, where the config of its run cannot name it.

    Returns:
      {'raw pixels', 'random', 'pretrained': {'linear_accuracy', 'linear_top5_accuracy'}}, in [0, 1].

    Raises:
      ValueError, FileNotFoundError: no checkpoint, labels or test split; nothing was written.
      RuntimeError: the encoder changed while the classifier was trained.
    """
    settings = config.linear
    l2 = _check_solver(settings)
    subject = load_subject(settings, workdir, 'linear', encoder)
    train_source, test_source = load_splits(config, subject, 'a linear evaluation')
    by_sgd = settings.solver == 'sgd'
    if by_sgd:
        sharding.local_batch_size(settings.batch_size, subject.mesh, field='linear.batch_size')
        check_batch_size(train_source, settings.batch_size, jax.process_count(), field='linear.batch_size')
    num_steps = schedules.num_train_steps(train_source.num_examples, settings.num_epochs,
                                          settings.batch_size)
    started, results, details, offset = time.time(), {}, {}, 0
    with MetricWriter(f'{workdir}/linear', total_steps=2 * num_steps, batch_size=settings.batch_size,
                      is_lead=sharding.is_lead()) as writer:
        writer.note(*train_source.notes, *test_source.notes)
        encoders = subject.encoders(train_source, test_source, pixel_floor=settings.pixel_floor,
                                    note=writer.note)
        for name, encode in encoders.items():
            if by_sgd and name != 'raw pixels':
                log = log_to(writer, every=config.log.every_steps, offset=offset, name=name)
                logits, labels = _fit_by_sgd(config, subject, encode, train_source, test_source, num_steps,
                                             log)
                num_train, offset = train_source.num_examples - len(train_source.skipped), offset + num_steps
            else:
                train, test = subject.features(encode, train_source, test_source)
                classifier = fit_with_l2(train, train_source.num_classes, 1.0 if by_sgd else l2, config.seed)
                logits, labels, num_train = classifier.logits(test.features), test.labels, len(train.labels)
                details[name] = {'solver': 'lbfgs', 'l2': classifier.l2, 'heldout': classifier.heldout}
            results[name] = accuracies(logits, labels)
        report_results(
            writer, workdir, f'Linear evaluation ({settings.solver}'
            f'{"; raw pixels by lbfgs, l2 = 1" if by_sgd and "raw pixels" in results else ""}) of '
            f'{subject.pretrained.source} on {test_source.name}, {test_source.split}: {len(labels):,} images',
            results, is_lead=sharding.is_lead(), evaluation='linear', details=details,
            **subject.provenance(train_source, test_source, num_train, len(labels)),
            seconds=round(time.time() - started, 1),
            protocol=settings.to_dict() | {'encoder': subject.pretrained.encoder})
    return results


def _check_solver(settings: ConfigDict) -> float | None:
    """The l2 that is given, None for the sweep; ValueError where solver or l2 will not do."""
    if settings.solver not in ('sgd', 'lbfgs'):
        raise ValueError(f"linear.solver is {settings.solver!r}: it takes 'sgd' or 'lbfgs'.")
    return check_l2('linear.l2', settings.l2)


def check_l2(field: str, value: str | float) -> float | None:
    """An l2 as a number, None for 'sweep'; ValueError for anything else."""
    if value == 'sweep':
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float('inf'):
        raise ValueError(f"{field} is {value!r}: it takes 'sweep' or a number of 0 or more.")
    return number


def fit_with_l2(train: Features, num_classes: int, l2: float | None, seed: int) -> Logistic:
    """Logistic regression by L-BFGS with this l2; None: the best on a held-out tenth of `train`."""
    if l2 is None:
        return fit_best_classifier(train, num_classes=num_classes, seed=seed)
    return fit_standardised(train, num_classes=num_classes, l2=l2)


def _fit_by_sgd(config: ConfigDict, subject: Subject, encode: Encode, train_source: Source,
                test_source: Source, num_steps: int, log: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the test split."""
    settings = config.linear
    with unchanged(encode):
        if settings.augment:
            batches, crops = labelled_crops(config, subject.config.augment, train_source, settings.batch_size)
            features_of = functools.partial(_encode_crops, encode, crops)
        else:
            train, = subject.features(encode, train_source)
            features_of, batches = lambda batch: batch['image'], _feature_batches(
                train, config.seed, settings.batch_size)
        kernel, bias = fit_classifier(
            batches, features_of, width=subject.width, num_classes=train_source.num_classes,
            num_steps=num_steps, settings=settings, seed=config.seed, mesh=subject.mesh, log=log)
        test, = subject.features(encode, test_source)
    return test.features @ kernel + bias, test.labels


def _encode_crops(encode: Encode, crops: Callable, batch: dict) -> jax.Array:
    return encode(crops(batch))


def fit_classifier(batches: Iterator[dict], features_of: Callable[[dict], jax.Array], *,
                   width: int, num_classes: int, num_steps: int, settings: ConfigDict, seed: int,
                   mesh: jax.sharding.Mesh, log: Callable[[int, dict], None]
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Trains kernel [width, num_classes] and bias [num_classes] on `num_steps` batches.

    batches: {'label': [B], ...} numpy, the rows of this process; `features_of` maps
    a batch, sharded over `mesh`, to features [B, width]. No gradient ever reaches it. Labels of
    -1 do not count. FloatingPointError if the classifier diverges.
    """
    optimizer = optim.make_optimizer('sgd', momentum=settings.momentum, nesterov=settings.nesterov,
                                     weight_decay=settings.weight_decay)
    learning_rate = schedules.make_schedule(
        'warmup_cosine', total_steps=num_steps,
        peak=schedules.scaled_learning_rate(settings.learning_rate, settings.batch_size))

    def loss(params, features, labels):
        logits = jnp.matmul(features, params['kernel'], precision='highest') + params['bias']
        return cross_entropy(logits, labels)[0]

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    def fit_step(state, features, labels, step):
        params, opt_state = state
        rate = learning_rate(step)
        value, gradient = jax.value_and_grad(loss)(params, features, labels)
        updates, opt_state = optimizer(rate).update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {'loss': value, 'learning_rate': rate}

    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, num_classes))    # tf2/model.py
    params = jax.device_put({'kernel': kernel, 'bias': jnp.zeros(num_classes)}, sharding.replicated(mesh))
    params, _ = fit(fit_step, (params, optimizer(0.0).init(params)), batches, features_of,
                    num_steps=num_steps, mesh=mesh, log=log, name='linear')
    return np.asarray(params['kernel']), np.asarray(params['bias'])


def _feature_batches(train: Features, seed: int, batch_size: int) -> Iterator[dict]:
    """Shuffled batches of features, the same on every process; each takes its own rows."""
    local = batch_size // jax.process_count()
    for step in range(1 << 62):
        positions = step * batch_size + jax.process_index() * local + np.arange(local)
        index = order.epoch_and_index(seed, positions, len(train.labels))[1]
        yield {'image': train.features[index], 'label': train.labels[index]}
