"""How fast a user's own data set is read, and how many cores the accelerator would need.

    python -m simclr_jax.main --config=configs/folder.py --config.task=bench_input \\
        --config.data.source=folder:/path/to/images --workdir=DIR

Every row is the real pipeline, taken one part further than the row above, in one thread: the cost of a part
is the difference. Then the whole path as the run would use it, with all its threads.
"""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from simclr_jax import storage
from simclr_jax.config import ConfigDict, set_channels
from simclr_jax.data import loading
from simclr_jax.data.batches import Inputs
from simclr_jax.data.source import Source, Streamed
from simclr_jax.runlog.writer import plain_table
from simclr_jax.runtime import sharding
from simclr_jax.train import build, make_inputs
from simclr_jax.training import schedules, steps

_ROW = 16           # images of a batch while parts are measured
_COLOUR = ('rotate', 'jitter', 'grey', 'sobel', 'noise', 'solarize', 'cutout')
_ALONE = ('decode', "decode, pad ('padded')")       # the part after them does not contain them
_STEPS = 5          # timed steps of the training step


def bench_input(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints images per second of each part of the input path, and writes workdir/bench_input.json.

    An image is a source image: two views. A core's rate is images per second of processor time.

    Returns:
        What bench_input.json holds: 'parts' {name: images per second and core}, 'whole' {'form', 'per_core',
        'per_second'} of the path that the config takes, 'accelerator' images per second or None, and
        'cores' that would feed it, or None.

    Raises:
        ValueError, FileNotFoundError: the data are not there, or will not do.
    """
    mesh, settings = sharding.make_mesh(), config.bench_input
    source = loading.load_source(
        config.data.source, config.data.train_split,
        **loading.options(config.data, image_size=config.augment.image_size, is_lead=sharding.is_lead()))
    set_channels(config, source.channels)
    inputs = make_inputs(config, source)
    print(f'{source.name}, {source.split}: {source.num_examples:,} images; {settings.num_images} of them for '
          'each part, two views each', flush=True)
    parts = {} if inputs.form == 'memory' else measure_parts(source, config, inputs)
    whole = _measure_whole(source, inputs, config, mesh)
    rate = settings.images_per_second or _accelerator_rate(source, inputs, config, mesh)
    cores = rate / whole['per_core'] if rate and inputs.form != 'memory' else None
    report = {'data': source.name, 'split': source.split, 'image_size': config.augment.image_size,
              'parts': parts, 'whole': {'form': inputs.form, **whole}, 'accelerator': rate, 'cores': cores,
              'num_cores': os.cpu_count(), 'skipped': source.skipped}
    for line in describe(report):
        print(line, flush=True)
    storage.write_atomically(os.path.join(workdir, 'bench_input.json'), json.dumps(report, indent=2).encode())
    return report


def describe(report: dict[str, Any]) -> list[str]:
    """What a report says, as text."""
    lines, before = [], 0.0
    if report['parts']:
        rows = []
        for name, rate in report['parts'].items():
            milliseconds = 1000 / rate
            rows.append([name, f'{rate:,.0f}', f'{milliseconds:.2f}', f'{milliseconds - before:+.2f}'])
            before = 0.0 if name in _ALONE else milliseconds
        lines.append(plain_table('In one thread', ['part', 'images/s/core', 'ms/image', 'difference'], rows))
    whole = report['whole']
    where = f"form '{whole['form']}'"
    if whole['form'] == 'memory':
        where = 'on the devices, which hold the data set'
    lines.append(f'\nThe whole path ({where}): {whole["per_second"]:,.0f} images/s here, '
                 f'{whole["per_core"]:,.0f} a second and core.')
    if report['accelerator'] is None:
        lines.append('No accelerator here: give its speed with --config.bench_input.images_per_second.')
    elif report['cores'] is not None:
        lines.append(f'{report["accelerator"]:,.0f} images/s of the training step need {report["cores"]:.1f} '
                     f'cores; this machine has {report["num_cores"]}.')
    else:
        lines.append(f'The training step, its input included, makes {report["accelerator"]:,.0f} images/s.')
    return lines


def measure_parts(source: Source, config: ConfigDict, inputs: Inputs) -> dict[str, float]:
    """{part: images per second and core}, of a source whose images are read one by one."""
    from simclr_jax.data import pipeline
    size = config.augment.image_size
    views = {'view1': inputs.view1, 'view2': inputs.view2}

    def batches(form, **changes):
        return functools.partial(
            pipeline.train_batches, source, seed=config.seed, batch_size=min(_ROW, source.num_examples),
            form=form, image_size=size, num_threads=1, pad_to=config.data.pad_to or 2 * size,
            **{name: view.replace(**{op: dataclasses.replace(getattr(view, op), probability=probability)
                                     for op, probability in changes.items()})
               for name, view in views.items()})

    plain = dict.fromkeys(_COLOUR, 0.0)
    # Where the recipe has no blur, the row shows what it would cost.
    blur = max(0.5, *(view.blur.probability for view in views.values()))
    parts = {'decode': _decoding(source)} if not (source.uniform or isinstance(source, Streamed)) else {}
    parts |= {"decode, pad ('padded')": batches('padded'),
              "decode, crop ('crops')": batches('crops'),
              'on the host: decode, crop, flip': batches('views', blur=0.0, **plain),
              '... and colour': batches('views', blur=0.0),
              "... and blur ('views')": batches('views', blur=blur)}
    return {name: _rate_per_core(make, config.bench_input.num_images) for name, make in parts.items()}


def _decoding(source: Source) -> Callable[[], Iterator]:
    """Whole images, decoded and no more."""
    indices = np.random.default_rng(0).integers(0, source.num_examples, 1 << 20).tolist()
    return lambda: ([None] for index in indices if source.pixels(index) is not None)


def _rate_per_core(make: Callable[[], Iterator], num_images: int) -> float:
    iterator, count = make(), 0
    try:
        for _ in range(3):          # libraries load, threads start, batches are begun ahead
            next(iterator)
        started = time.process_time()
        while count < num_images:
            batch = next(iterator)
            count += len(batch['label']) if isinstance(batch, dict) else len(batch)
        return count / (time.process_time() - started)
    finally:
        if isinstance(iterator, Generator):     # its threads end
            iterator.close()


def _measure_whole(source: Source, inputs: Inputs, config: ConfigDict, mesh) -> dict[str, float]:
    """The path as the run takes it, until its batches lie on the devices; in memory, until the views do."""
    prepare = jax.jit(inputs.make_prepare(mesh))
    with inputs.batches(source, mesh) as batches:
        def draw(step):
            batch = next(batches)
            return prepare(batch, step) if inputs.form == 'memory' else batch

        for step in range(3):
            jax.block_until_ready(draw(step))
        num_steps = max(2, math.ceil(config.bench_input.num_images / config.batch_size))
        started, processed = time.perf_counter(), time.process_time()
        for step in range(num_steps):
            jax.block_until_ready(draw(3 + step))
        count = num_steps * config.batch_size
        return {'per_second': count / (time.perf_counter() - started),
                'per_core': count / (time.process_time() - processed)}


def _accelerator_rate(source: Source, inputs: Inputs, config: ConfigDict, mesh) -> float | None:
    """Images per second of the training step on one batch over and over; None on a CPU."""
    if mesh.devices.flat[0].platform == 'cpu':
        return None
    num_steps = schedules.num_train_steps(source.num_examples, config.num_epochs, config.batch_size)
    _, init_state, train_step, shardings = build(
        config, mesh, num_examples=source.num_examples, num_classes=source.num_classes, num_steps=num_steps,
        inputs=inputs)
    state = steps.jit_seldom(init_state, out_shardings=shardings)()
    with inputs.batches(source, mesh) as batches:
        batch = next(batches)
    for _ in range(3):
        state, metrics = train_step(state, batch)
    jax.block_until_ready(metrics)
    started = time.perf_counter()
    for _ in range(_STEPS):
        state, metrics = train_step(state, batch)
    jax.block_until_ready(metrics)
    return _STEPS * config.batch_size / (time.perf_counter() - started)
