"""Self-supervised pretraining, top to bottom: data, method, state, loop, measurement.

The step number is the only clock: the batch, its views, the learning rate and every other choice
are functions of (seed, step), so that to resume is to restore the state and start at its step.
"""

import functools
import math
import signal

import jax

from simclr_jax import checkpoint, optim, schedules, sharding, steps
from simclr_jax.config import ConfigDict, view_config
from simclr_jax.data import pipeline, sources
from simclr_jax.evaluate.frozen import measure
from simclr_jax.evaluate.results import report_results
from simclr_jax.methods import make_method
from simclr_jax.metrics import MetricWriter
from simclr_jax.models.network import make_network

# What two runs of one workdir may differ in: nothing that changes a parameter.
_MAY_DIFFER = ('task', 'log', 'linear', 'checkpoint', 'data.dir', 'data.download',
               'eval.knn_every_epochs', 'eval.linear_at_end')


def pretrain(config: ConfigDict, workdir: str) -> dict[str, dict[str, float]]:
    """Pretrains the encoder of `config` in `workdir`, or goes on where an earlier run stopped.

    Returns:
      {'random': {...}, 'pretrained': {...}}: what `measure` says of the encoder at its initialisation
      and at the end; {} where labels or a test split are missing.

    Raises:
      ValueError, FileNotFoundError: the config, the data or the workdir will not do; nothing was written.
      FloatingPointError: the loss is no longer finite; the last good checkpoint stays.
      SystemExit: SIGINT or SIGTERM came; the state was saved first.
    """
    # Data.
    mesh = sharding.make_mesh()
    checkpoint.check_config(workdir, config.to_dict(), ignore=_MAY_DIFFER)
    sharding.local_batch_size(config.batch_size, mesh)
    train_source, test_source = _load_sources(config)
    labelled = train_source.num_classes > 0
    epoch = train_source.num_examples / config.batch_size                        # in steps
    num_steps = config.num_train_steps or schedules.num_train_steps(
        train_source.num_examples, config.num_epochs, config.batch_size)

    # Network, method, optimiser, state.
    network = make_network(
        encoder=config.encoder.to_dict(), head=config.head.to_dict(),
        num_classes=train_source.num_classes if config.eval.online_probe else 0,
        probe_layer=config.eval.layer, mean=config.augment.mean, std=config.augment.std)
    method = make_method(network=network, mesh=mesh, **config.method)
    optimizer = optim.make_optimizer(**_without(config.optimizer, 'learning_rate', 'scaling'))
    learning_rate = _make_schedule(config, train_source.num_examples, num_steps)
    everywhere = sharding.replicated(mesh)
    init_state = jax.jit(steps.make_init_state(method, optimizer, seed=config.seed,
                                               image_size=config.augment.image_size),
                         out_shardings=everywhere)
    train_step = jax.jit(steps.make_train_step(method, optimizer, learning_rate),
                         out_shardings=everywhere, donate_argnums=0)
    encode = jax.jit(steps.make_encode(network, layer=config.eval.layer))
    evaluate = functools.partial(measure, train_source=train_source, test_source=test_source,
                                 config=config, mesh=mesh)

    # Start, or go on.
    batches = pipeline.train_batches(
        train_source, seed=config.seed, batch_size=config.batch_size, image_size=config.augment.image_size,
        view1=view_config(config.augment, 'view1'), view2=view_config(config.augment, 'view2'),
        shard_index=jax.process_index(), shard_count=jax.process_count())
    checkpointer = checkpoint.Checkpointer(
        workdir, keep_last=config.checkpoint.keep_last, keep_best=config.checkpoint.keep_best)
    state = init_state()
    if checkpointer.latest_step() is not None:
        state = checkpointer.restore(state)
    start = int(state.step)
    writer = MetricWriter(workdir, total_steps=num_steps, start_step=start,
                          batch_size=config.batch_size, is_lead=sharding.is_lead())
    checkpoint.save_config(workdir, config.to_dict())
    checkpoint.save_versions(workdir)
    log = _LateMetrics(writer, checkpointer, every_steps=config.log.every_steps, num_steps=num_steps)

    with writer, checkpointer:
        _introduce(writer, config, train_source, test_source, state, num_steps, mesh)

        # Train.
        with _Interruption() as interruption, jax.transfer_guard('disallow'):
            for step, batch in enumerate(batches(start), start + 1) if start < num_steps else ():
                state, metrics = train_step(state, sharding.put_batch(mesh, batch))
                log(step, metrics)

        # Measure.
    return {}
