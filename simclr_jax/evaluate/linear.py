"""The paper's linear evaluation: a linear classifier, trained with crops, on a frozen encoder."""

import functools
import hashlib
import time
from typing import Any, Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax import inputs, optim, schedules, sharding
from simclr_jax.config import ConfigDict
from simclr_jax.data import order, sources
from simclr_jax.data.base import Source
from simclr_jax.data.memory import check_batch_size
from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.frozen import is_labelled, labelled_features
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.evaluate.results import report_results
from simclr_jax.metrics import MetricWriter
from simclr_jax.steps import make_encode


def linear(config: ConfigDict, workdir: str) -> dict[str, dict[str, float]]:
    """Linear evaluation of a pretrained encoder (Chen et al. 2020, sec. 2.2; B.6 for transfer).

    Best-practice protocol: the encoder is frozen, BatchNorm with its running statistics; a linear
    classifier on features of random crops and flips is trained with Nesterov SGD, no other
    augmentation, learning rate x B/256, cosine, no warm-up; it is tested once, when trained, on
    centre crops. Encoder, image size, crops and normalisation come from the checkpoint's own
    config; `config` gives the `linear` block and the data, as far as it names them. Choose
    hyper-parameters on a part of the training split (`data.train_split='train[:90%]'`,
    `data.test_split='train[90%:]'`), never on the test split. The same measurement of the
    randomly initialised encoder stands beside it, as the floor.

    Returns:
      {'random', 'pretrained': {'linear_accuracy', 'linear_top5_accuracy'}}, in [0, 1].

    Raises:
      ValueError, FileNotFoundError: no checkpoint, labels or test split; nothing was written.
      RuntimeError: the encoder changed while the classifier was trained.
    """
    settings = config.linear
    pretrained = load_pretrained(settings.pretrained or workdir, settings.checkpoint, settings.encoder)
    own = pretrained.config
    mesh = sharding.make_mesh()
    train_source, test_source = _load_sources(config, own)
    sharding.local_batch_size(settings.batch_size, mesh)
    check_batch_size(train_source, settings.batch_size, jax.process_count())
    encode = jax.jit(make_encode(pretrained.network, layer=settings.layer))
    size = own.augment.image_size
    width = jax.eval_shape(encode, pretrained.variables,
                           jax.ShapeDtypeStruct((1, size, size, 3), np.float32)).shape[1]
    num_steps = schedules.num_train_steps(train_source.num_examples, settings.num_epochs,
                                          settings.batch_size)
    started, results = time.time(), {}
    with MetricWriter(f'{workdir}/linear', total_steps=2 * num_steps, batch_size=settings.batch_size,
                      is_lead=sharding.is_lead()) as writer:
        encoders = {'random': pretrained.initial, 'pretrained': pretrained.variables}
        for run, (name, variables) in enumerate(encoders.items()):
            variables = jax.device_put(variables, sharding.replicated(mesh))
            frozen = functools.partial(encode, variables)
            fingerprint = _fingerprint(variables)
            if settings.augment:
                view = {'seed': config.seed, 'image_size': size, 'crop': own.augment.crop.to_dict(),
                        'flip': own.augment.flip.to_dict()}
                features_of = functools.partial(_encode_crops, frozen, inputs.make_crops_and_flips(**view))
                batches = inputs.probe_batches(train_source, batch_size=settings.batch_size,
                                               num_threads=config.data.num_threads, **view)
            else:
                features_of, batches = lambda batch: batch['image'], _feature_batches(
                    labelled_features(frozen, train_source, own, mesh), config.seed, settings.batch_size)
            log = functools.partial(_log, writer, every=config.log.every_steps, offset=run * num_steps,
                                    name=name)
            kernel, bias = fit_classifier(
                batches, features_of, width=width, num_classes=train_source.num_classes,
                num_steps=num_steps, settings=settings, seed=config.seed, mesh=mesh, log=log)
            test = labelled_features(frozen, test_source, own, mesh)
            if _fingerprint(variables) != fingerprint:
                raise RuntimeError(f'The {name} encoder changed during its linear evaluation: '
                                   'the result would not be one of a frozen encoder.')
            results[name] = _accuracies(test.features @ kernel + bias, test.labels)
        report_results(
            writer, workdir, f'Linear evaluation of step {pretrained.step:,} on {test_source.name}, '
            f'{test_source.split}: {len(test.labels):,} images', results, is_lead=sharding.is_lead(),
            evaluation='linear', step=pretrained.step, data=test_source.name, split=test_source.split,
            num_test=len(test.labels), seconds=round(time.time() - started, 1),
            protocol=settings.to_dict() | {'encoder': pretrained.encoder})
    return results


def _encode_crops(encode: Callable, crops: Callable, batch: dict) -> jax.Array:
    return encode(crops(batch))


def _load_sources(config: ConfigDict, own: ConfigDict) -> tuple[Source, Source]:
    """The labelled splits to train and to test on: `config`'s, and where it is empty the run's own."""
    data = {name: config.data[name] or own.data[name] for name in ('source', 'train_split', 'test_split')}
    where = sources.options(config.data, image_size=own.augment.image_size, is_lead=sharding.is_lead())
    where['data_dir'] = where['data_dir'] or own.data.dir
    train_source = sources.load_source(data['source'], data['train_split'], **where)
    test_source = sources.load_test_source(data['source'], data['test_split'], **where)
    for source, field in ((train_source, 'train_split'), (test_source, 'test_split')):
        if not is_labelled(source):
            raise ValueError(f'{data["source"]} has no labels in data.{field} {data[field]!r}: '
                             'a linear evaluation needs them to train and to test on.')
    return train_source, test_source


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
        known = labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
        return (losses * known).sum() / jnp.maximum(known.sum(), 1)

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=sharding.replicated(mesh))
    def fit_step(params, opt_state, features, labels, step):
        rate = learning_rate(step)
        value, gradient = jax.value_and_grad(loss)(params, features, labels)
        updates, opt_state = optimizer(rate).update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {'loss': value, 'learning_rate': rate}

    kernel = 0.01 * jax.random.normal(jax.random.key(seed), (width, num_classes))    # tf2/model.py
    params = jax.device_put({'kernel': kernel, 'bias': jnp.zeros(num_classes)}, sharding.replicated(mesh))
    opt_state = optimizer(0.0).init(params)
    metrics = None
    for step in range(num_steps):
        batch = sharding.put_batch(mesh, next(batches))
        features = features_of(batch)
        jax.block_until_ready(metrics)      # one step ahead is enough; more only fills the memory
        params, opt_state, metrics = fit_step(params, opt_state, features, batch['label'], step)
        log(step + 1, metrics)
    kernel, bias = np.asarray(params['kernel']), np.asarray(params['bias'])
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise FloatingPointError('The linear classifier diverged: lower linear.learning_rate.')
    return kernel, bias


def _feature_batches(train: Features, seed: int, batch_size: int) -> Iterator[dict]:
    """Shuffled batches of features, the same on every process; each takes its own rows."""
    local = batch_size // jax.process_count()
    for step in range(1 << 62):
        positions = step * batch_size + jax.process_index() * local + np.arange(local)
        index = order.epoch_and_index(seed, positions, len(train.labels))[1]
        yield {'image': train.features[index], 'label': train.labels[index]}


def _accuracies(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 of logits [N, C]."""
    ranked = np.argsort(-logits, axis=-1, kind='stable')[:, :5]
    hits = ranked == labels[:, None]
    return {'linear_accuracy': float(hits[:, 0].mean()),
            'linear_top5_accuracy': float(hits.any(-1).mean())}


def _fingerprint(variables: Any) -> str:
    """A hash of every bit of a tree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(variables)):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _log(writer: MetricWriter, step: int, metrics: dict, *, every: int, offset: int, name: str) -> None:
    if step % every == 0:
        writer.write(offset + step, {f'{name}_{key}': value for key, value in metrics.items()})
