"""Self-supervised pretraining, top to bottom: data, method, state, loop, measurement.

The step number is the only clock: the batch, its views, the learning rate and every other choice
are functions of (seed, step), so that to resume is to restore the state and start at its step.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax import storage
from simclr_jax.config import ConfigDict, check_profile_steps, check_values, few_images, flatten, names
from simclr_jax.config.arguments import set_channels
from simclr_jax.config.tasks import task_configs
from simclr_jax.data import loading
from simclr_jax.data.batches import Inputs, choose_form
from simclr_jax.data.bucket_listing import Share
from simclr_jax.data.pipeline import check_batch_size
from simclr_jax.data.source import Source
from simclr_jax.evaluate.accuracies import is_labelled
from simclr_jax.evaluate.evaluators import (
    Health,
    HeldOutKnn,
    Joined,
    Run,
    StepEncoder,
    make_evaluators,
    split_by_schedule,
)
from simclr_jax.evaluate.final import final_accuracies
from simclr_jax.evaluate.floors import Floors
from simclr_jax.evaluate.health import CollapseWatch
from simclr_jax.evaluate.init_from import start_from
from simclr_jax.evaluate.introduction import faster_input, finished, introduction, skipped_files
from simclr_jax.inspect import profile
from simclr_jax.methods import describe_method, make_method
from simclr_jax.models.building import auto_dtype, describe_encoder, make_network
from simclr_jax.models.network import Network
from simclr_jax.runlog.late import LateLog
from simclr_jax.runlog.writer import MetricWriter, check_writers, find_writer
from simclr_jax.runtime import gpus, sharding
from simclr_jax.runtime.exchange import gather
from simclr_jax.runtime.interruption import Interruption
from simclr_jax.runtime.lock import WorkdirLock
from simclr_jax.runtime.memory import naming_needs
from simclr_jax.runtime.watchdog import at
from simclr_jax.training import checkpoint, optimizers as optim, schedules, steps, workdir as workdirs
from simclr_jax.training.leaves import leaves_for
from simclr_jax.training.state import TrainState
from simclr_jax.views.fields import View
from simclr_jax.views.from_config import small_views_of, views_of

# What two runs of one workdir may differ in: nothing that changes a parameter; those of data that would are
# held to what the workdir has by loading.resumed.
MAY_DIFFER = ('task', 'recipe', 'keep_freed_memory', 'log', 'profile_steps', 'compile_cache', 'checkpoint',
              *task_configs(), 'data.dir', 'data.download', 'data.num_threads', 'data.test_split', 'data.range',
              'data.channels', 'data.reading', 'data.cache_dir', 'data.max_bad_share', 'eval.batch_size',
              'eval.crop_proportion', 'eval.resize', 'eval.antialias', 'eval.resize_to', 'eval.knn_every_epochs',
              'eval.knn_k', 'eval.knn_temperature', 'eval.knn_max_images', 'eval.linear_at_end', 'eval.pixel_floor',
              'eval.encoder', 'eval.evaluators', 'eval.evaluators_every_epochs', 'shard_state')

# How many times longer than a step what is not one may take, before the other processes count it as stuck: the
# patience of at(), whose first number is how far this process has come, in steps.
_SLOW = 10


def pretrain(config: ConfigDict, workdir: str, *, encoder: Any = None, source: Any = None,
             test_source: Any = None, method: Callable | None = None, views: Any = None,
             writers: Sequence[Any] = (), evaluators: Sequence[Callable] = ()) -> dict[str, dict[str, float]]:
    """Pretrains the encoder of `config` in `workdir`, or goes on where an earlier run stopped.

    Each part that is given takes the place of the config's; its name is kept in workdir/config.json.

    Args:
        config: of `simclr_jax.config.base_config`, or of a recipe of configs/.
        workdir: directory of the run, local or of a bucket (gs://, s3://).
        encoder: a Flax module, encoder(images [B, H, W, 3], train) -> features [B, D].
        source: training images: anything with a length and items {'image', 'label'} (data/source.py).
        test_source: images to measure on, likewise.
        method: as the functions of methods/: (network, *, num_train_steps, mesh) -> Method. Its own settings
            are bound by functools.partial.
        views: a `views.fields.View` for both views, or a pair of them.
        writers: of metrics, beside those of the config (runlog/writer.py).
        evaluators: functions (encode, step) -> {name: scalar}, beside those of the config.

    Returns:
        {'random': {...}, 'pretrained': {...}}: what `frozen_accuracies` says of the encoder at its
        initialisation and at the end, after 'raw pixels' if asked for; {} where labels or a test
        split are missing.

    Raises:
        ValueError, FileNotFoundError: config, data or workdir will not do; nothing was written.
        storage.StoreError: a bucket is not there, refuses, or does not answer any more.
        FloatingPointError: the loss is no longer finite; the last good checkpoint stays.
        SystemExit: SIGINT or SIGTERM came; the state was saved first.

    >>> import simclr_jax
    >>> config = simclr_jax.config.smoke(simclr_jax.config.base_config())      # SimCLR, a tiny ResNet
    >>> config.batch_size, config.num_train_steps, config.augment.image_size, config.encoder.width = 8, 2, 8, 1 / 32
    >>> config.data.train_split, config.data.test_split = 'train[:16]', 'none'
    >>> simclr_jax.pretrain(config, 'runs/mine')                  # doctest: +ELLIPSIS
    simclr on shapes, train[:16]: 16 images...
    {}
    """
    if not isinstance(config, ConfigDict):
        raise ValueError(f'config is of {type(config).__name__}: it takes what simclr_jax.config.base_config() gives.')
    given = {'encoder': encoder, 'method': method}
    workdir = storage.as_path(workdir)
    storage.check_workdir(workdir)
    checkpoint.quiet_orbax_logs()
    with WorkdirLock(workdir, is_lead=sharding.is_lead()) as lock:
        if storage.is_dir(workdir):
            lock.acquire()
        at(-2, 'loading the data', _SLOW)
        run, inputs, notes = load(config, workdir, source=source, test_source=test_source, views=views, **given)
        return _run(run, inputs, notes, lock, writers=writers, evaluators=evaluators, **given)


def load(config: ConfigDict, workdir: str, *, source: Any, test_source: Any, views: Any, encoder: Any,
         method: Callable | None) -> tuple[Run, Inputs, list[str]]:
    """The run with its data, as the workdir holds it to; how its batches are made; and notes."""
    mesh, notes = sharding.make_mesh(), []
    views = (views, views) if isinstance(views, View) else views
    if views is not None:
        if not (isinstance(views, list | tuple) and len(views) == 2 and all(isinstance(view, View) for view in views)):
            raise ValueError(f'views is {views!r}: it takes a simclr_jax.View for both views, or two.')
        views = views[0], views[1]
    config = _with_names(config, encoder=encoder, source=source, method=method, views=views)
    check_values(config)
    kept = workdirs.load_config(workdir) if workdirs.has(workdir, 'config.json') else {}
    if not kept and workdirs.has_checkpoint(workdir):
        raise ValueError(f'{workdir} has checkpoints but no config.json: restore it, or give another --workdir.')
    if kept:
        if source is None and not config.data.source:
            config.data.source = kept['data']['source']
        config = few_images.as_begun(config, kept)
        if method is not None and list(kept['method']) == ['name']:         # begun before its arguments were kept
            config.method = ConfigDict({'name': config.method.name})
        notes += filter(None, [workdirs.leave_crops_as_begun(config, kept)])
    if config.encoder.dtype == 'auto':
        dtype = kept.get('encoder', {}).get('dtype', 'auto')
        config.encoder.dtype = auto_dtype(mesh.devices.flat[0]) if dtype == 'auto' else dtype
        notes.append(f'encoder.dtype is auto: activations are {config.encoder.dtype} here.')
    set_channels(config, len(kept.get('augment', config.augment)['mean']))      # to be compared; below by the images
    workdirs.check_config(workdir, config.to_dict(), ignore=MAY_DIFFER)
    if workdirs.has_checkpoint(workdir):
        config.data.update(loading.resumed(config.data, kept['data']))
    sharding.check_batch(config.batch_size, mesh)
    train_source, test_source = load_sources(config, source, test_source)
    config.data.update(loading.fields_found(train_source, test_source) | {'source': loading.rooted(config.data.source)})
    set_channels(config, train_source.channels)
    check_batch_size(train_source, config.batch_size, jax.process_count())
    workdirs.check_data(workdir, train_source)
    if not kept:
        config, instead = few_images.fit_to(config, train_source.num_examples)
        notes += instead
    run = Run(config, workdir, mesh, train_source, test_source,
              is_measurable=is_labelled(train_source) and is_labelled(test_source))
    inputs = make_inputs(config, train_source, views=views)
    left_out = {name: None for view in views or views_of(config.augment) for name in view.of_rgb()}
    if inputs.channels != 3 and left_out:
        notes.append(f'Images of {inputs.channels} channels: {", ".join(left_out)} of the views, which are of '
                     'red, green and blue, are left out.')
    return run, inputs, notes


def _run(run: Run, inputs: Inputs, notes: list[str], lock: WorkdirLock, *, encoder: Any, method: Callable | None,
         writers: Sequence[Any], evaluators: Sequence[Callable]) -> dict[str, dict[str, float]]:
    """Builds network, method and state; goes on from the last checkpoint; trains, and measures the encoder."""
    config, workdir, mesh, train_source, _, _ = run
    num_steps = config.num_train_steps or schedules.num_train_steps(
        train_source.num_examples, config.num_epochs, config.batch_size)
    check_profile_steps(config.profile_steps, num_steps)
    check_writers(writers)
    evaluators = make_evaluators(run, evaluators)
    named = [find_writer(name, names.resolve) for name in config.log.writers]
    network, init_state, train_step, shardings = build(
        config, mesh, num_examples=train_source.num_examples, num_classes=train_source.num_classes,
        num_steps=num_steps, inputs=inputs, encoder=encoder, method=method)
    init_state = steps.jit_seldom(init_state, out_shardings=shardings)
    encode = jax.jit(steps.make_encode(network, layer=config.eval.layer))
    encode_state = functools.partial(StepEncoder, encode, network=config.eval.encoder)
    state = init_state()
    if config.init_from and not workdirs.has_checkpoint(workdir):
        state, start_notes = start_from(state, config)
        notes = start_notes + notes
    shape = (1, *[config.augment.image_size] * 2, inputs.channels)
    jax.eval_shape(encode_state(state, {}), jax.ShapeDtypeStruct(shape, np.float32))   # is there such a layer?

    lock.acquire()
    checkpointer = checkpoint.Checkpointer(
        workdir, keep_last=config.checkpoint.keep_last, keep_best=config.checkpoint.keep_best)
    state, damage = checkpointer.restore_last_whole(state)
    batches = inputs.batches(train_source, mesh, start_step=int(state.step))
    workdirs.save_run(workdir, config.to_dict(), train_source)
    writer, log, profiler = records = _make_records(
        run, state, batches, num_steps=num_steps, named=named, writers=writers, advice=checkpointer.last_good)
    with checkpointer, writer, batches, profiler:
        warmup = _warmup_steps(config, run.train_source.num_examples, num_steps)[1]
        writer.note(*filter(None, (*damage, *notes, *introduction(run, network, state.params, num_steps), warmup)))
        floors = Floors(run, encode, init_state, writer.note) if run.is_measurable else None
        if floors:
            evaluators = [HeldOutKnn(run), floors, *evaluators]
            if config.init_from:
                at(-1, 'the evaluation before training', math.inf)
                floors.of_init_from()
        evaluators = [Health(network, inputs.make_prepare(mesh), config.log.every_steps), *evaluators]
        state = _train(run, state, batches, train_step=train_step, encode_state=encode_state, num_steps=num_steps,
                       evaluators=evaluators, records=records, checkpointer=checkpointer, lock=lock)
        writer.note(*skipped_files(run))
        results = final_accuracies(run, functools.partial(encode, state.variables(config.eval.encoder)), floors, writer,
                                   num_steps) if floors else {}
        writer.note(finished(run, num_steps))
        return results


class _Records(NamedTuple):
    """Where the numbers of a run go."""

    writer: MetricWriter
    log: LateLog                        # of every step
    profiler: profile.StepProfiler      # of the steps that are traced


def _make_records(run: Run, state: TrainState, batches: Any, *, num_steps: int, named: Sequence[Callable],
                  writers: Sequence[Any], advice: Callable[[], str]) -> _Records:
    config, start, is_lead = run.config, int(state.step), sharding.is_lead()
    named = [functools.partial(make_writer, run.workdir, start_step=start, config=flatten(config.to_dict()))
             for make_writer in named]
    writer = MetricWriter(run.workdir, total_steps=num_steps, start_step=start, batch_size=config.batch_size,
                          is_lead=is_lead, writers=[*named, *writers])
    profiler = profile.StepProfiler(
        writer, run.workdir, steps=config.profile_steps, breakdown=config.log.step_breakdown, start=start,
        num_steps=num_steps, is_lead=is_lead, waited=lambda: batches.waited)
    log = LateLog(writer, every_steps=config.log.every_steps, num_steps=num_steps, waited=lambda: batches.waited,
                  layers=optim.make_trust_ratios(**_optimizer_settings(config))[1](state.params),
                  judge=CollapseWatch(), advice=advice, faster_input=faster_input(run))
    return _Records(writer, log, profiler)


def _train(run: Run, state: TrainState, batches: Iterator, *, train_step: Callable, encode_state: Callable,
           num_steps: int, evaluators: Sequence[Callable], records: _Records,
           checkpointer: checkpoint.Checkpointer, lock: WorkdirLock) -> TrainState:
    """The state after the last step."""
    config, start, (writer, log, profiler) = run.config, int(state.step), records
    of_rows, of_epochs = split_by_schedule(evaluators, config.eval.evaluators_every_epochs)
    steps_per_epoch = run.train_source.num_examples / config.batch_size

    def due(step: int, every_epochs: float) -> bool:        # 0: only at the end
        return step == num_steps or every_epochs > 0 and step % max(1, round(every_epochs * steps_per_epoch)) == 0

    joined = Joined()
    log.restart(start)
    with (Interruption(run.mesh, every_steps=5) as interruption, jax.transfer_guard('disallow'),
          naming_needs(lambda: train_step.lower(state, batch).compile())):
        for step in range(start + 1, num_steps + 1):
            patience = 1 if step > start + 2 else _SLOW         # it compiles first
            at(step, f'the images of step {step:,}', patience)
            profiler.begin(step, state)
            batch = next(batches)
            at(step + 0.1, f'step {step:,}', patience)
            state, metrics = train_step(state, batch)
            if profiler.end(step, state):
                at(step + 0.1, f'the breakdown of step {step:,}', _SLOW)
                with log.pause():
                    log.add(profiler.report(lambda: train_step.lower(state, batch).compile().as_text()))
            for evaluator in of_rows:
                if log.due(step) and (step % evaluator.every_steps < config.log.every_steps or step == num_steps):
                    metrics = joined(metrics, evaluator, encode_state(state, batch), step)
            log(step, metrics)
            interrupted, found = interruption.arrived(step), {}
            called = [evaluator for evaluator, every_epochs in of_epochs if due(step, every_epochs) and not interrupted]
            if called:
                log.flush()
                with writer.pause(), jax.transfer_guard('allow'):
                    for evaluator in called:
                        at(step + 0.25, f'the evaluation after step {step:,}', _SLOW)
                        found = joined(found, evaluator, encode_state(state, batch), step, beside=metrics)
                writer.write(step, found)
                log.restart(step)
            if 'knn_accuracy' in found or interrupted or due(step, config.checkpoint.every_epochs):
                at(step + 0.5, f'saving step {step:,}', _SLOW)
                log.flush()
                lock.check()
                with checkpointer.naming_last_good():
                    writer.publish()        # first: a checkpoint then has all its rows beside it
                checkpointer.save(state, found)
            if interrupted:
                checkpointer.wait()
                interruption.leave(writer, step)
        checkpointer.wait()
    at(num_steps + 1, 'the final evaluation', math.inf)
    return state


def build(config: ConfigDict, mesh: jax.sharding.Mesh, *, num_examples: int, num_classes: int,
          num_steps: int, inputs: Inputs | None = None, encoder: Any = None, method: Callable | None = None
          ) -> tuple[Network, Callable, Callable, Any]:
    """What a run computes; nothing is allocated or compiled here.

    Args:
        mesh: of the devices that will run it, at hand or not.
        num_examples, num_classes, num_steps: of the training split, and of the run.
        inputs: of the run; None: its batches are views that were made elsewhere.
        encoder, method: in the place of the config's, see `pretrain`.

    Returns:
        The network, `init_state`, `train_step` (see steps.py), which gives its state away and is compiled at
        its first call, and the shardings of the state.
    """
    fields = config.encoder.to_dict()
    if fields['dtype'] == 'auto':
        fields['dtype'] = auto_dtype(mesh.devices.flat[0])
    network = make_network(
        encoder=fields, head=config.head.to_dict(), predictor=config.predictor.to_dict(),
        num_classes=num_classes if config.eval.online_probe else 0, probe_layer=config.eval.layer,
        mean=config.augment.mean, std=config.augment.std, encoder_chunks=config.encoder_chunks, module=encoder)
    made = make_method(network=network, mesh=mesh, num_train_steps=num_steps, num_examples=num_examples,
                       **({'name': method} if method else config.method))
    if config.augment.get('small_views', 0) and not made.takes_small_views:
        raise ValueError(f'augment.small_views is {config.augment.small_views}: method {config.method.name!r} compares '
                         'two views; set it to 0, or take simclr, byol or moco.')
    platform = mesh.devices.flat[0].platform
    leaves = leaves_for(platform, split=config.shard_state)
    optimizer = optim.make_optimizer(**_optimizer_settings(config), leaves=leaves)
    init_state = steps.make_init_state(made, optimizer, seed=config.seed, image_size=config.augment.image_size,
                                       channels=len(config.augment.mean))
    train_step = steps.make_train_step(
        made, optimizer, _make_schedule(config, num_examples, num_steps), seed=config.seed,
        prepare=(inputs or make_inputs(config, form='views')).make_prepare(mesh),
        update_metrics=optim.make_update_metrics(**_optimizer_settings(config), leaves=leaves,
                                                 gradient_norms=config.log.gradient_norms), leaves=leaves)
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init_state), split=config.shard_state)
    train_step = jax.jit(train_step, out_shardings=(shardings, sharding.replicated(mesh)), donate_argnums=0,
                         compiler_options=gpus.compiler_options(platform, deterministic=config.deterministic))
    return network, init_state, train_step, shardings


def load_sources(config: ConfigDict, source: Any = None, test_source: Any = None) -> tuple[Source, Source | None]:
    """The splits to train and to measure on: what is given, or else those that the config names."""
    share = Share(jax.process_index(), jax.process_count(), gather) if jax.process_count() > 1 else None
    return loading.load_pair(
        config.data.source, config.data.train_split, config.data.test_split, source=source, test_source=test_source,
        share=share, **loading.options(config.data, image_size=config.augment.image_size, is_lead=sharding.is_lead()))


def _with_names(config: ConfigDict, *, encoder: Any, source: Any, method: Any, views: Any) -> ConfigDict:
    """The config with the names of the parts that are given: what config.json keeps of them."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if encoder is not None:
            described = describe_encoder(encoder)
            config.encoder.arguments = ConfigDict(described.pop('arguments'))       # in the place of the config's
            config.encoder.update(described)
        if source is not None:
            config.data.source = names.importable_name(source) if loading.makes(source) else ''
        if method is not None:
            config.method = ConfigDict(describe_method(method))
        if views is not None:
            for name, view in zip(('view1', 'view2'), views):
                config.augment[name] = ConfigDict(
                    {op: dataclasses.asdict(fields) for op, fields in view.operations().items()})
            extra, other = (tuple(map(names.importable_name, view.extra)) for view in views)
            # No config has two: '' lies between them, which nothing takes for the functions of both.
            config.augment.extra = extra if views[0].extra == views[1].extra else (*extra, '', *other)
    return config


def _optimizer_settings(config: ConfigDict) -> dict[str, Any]:
    return {name: value for name, value in config.optimizer.items() if name not in ('learning_rate', 'scaling')}


def make_inputs(config: ConfigDict, source: Source | None = None, *, form: str = '',
                views: tuple[View, View] | None = None) -> Inputs:
    """How the batches of a run are made: without a source those of files, with a form those of views made elsewhere."""
    view1, view2 = views or views_of(config.augment)
    small = None if form else small_views_of(config.augment, extra=view1.extra)
    channels = len(config.augment.mean)
    if channels != 3:
        view1, view2 = view1.without_rgb(), view2.without_rgb()
        small = small and dataclasses.replace(small, view=small.view.without_rgb())
    size, reading = config.augment.image_size, {'transfer': config.data.transfer, 'pad_to': config.data.pad_to}
    form = form or choose_form(config.data.augment_on, image_size=size, source=source, **reading)
    return Inputs(form, view1, view2, size, config.seed, config.batch_size, tuple(config.augment.sequence),
                  num_threads=config.data.num_threads, channels=channels, small=small, **reading)


def _make_schedule(config: ConfigDict, num_examples: int, num_steps: int) -> schedules.Schedule:
    peak = schedules.scaled_learning_rate(config.optimizer.learning_rate, config.batch_size, config.optimizer.scaling)
    return schedules.make_schedule(
        config.schedule.name, peak=peak, warmup_steps=_warmup_steps(config, num_examples, num_steps)[0],
        total_steps=num_steps, steps_per_epoch=num_examples / config.batch_size, drops=config.schedule.drops)


def _warmup_steps(config: ConfigDict, num_examples: int, num_steps: int) -> tuple[int, str]:
    """The steps of the warm-up, a tenth of a run that is no longer than it; and the sentence that says so, or ''."""
    warmup = schedules.num_warmup_steps(num_examples, config.schedule.warmup_epochs, config.batch_size)
    if config.schedule.name == 'constant' or warmup < num_steps:
        return warmup, ''
    shorter = num_steps // 10
    return shorter, (f'schedule.warmup_epochs {config.schedule.warmup_epochs:g} are {warmup:,} steps, and the run has '
                     f'{num_steps:,}: the warm-up is shortened to {shorter:,}.')
