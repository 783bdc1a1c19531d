"""Every method at equal compute on two small sets, and the search behind the small recipes of three of them.

    python benchmarks/equal_compute.py shapes
    python benchmarks/equal_compute.py fashion --fashion=fashion_mnist.npz
    python benchmarks/equal_compute.py search

`shapes` trains configs/smoke.py:method=NAME, `fashion` configs/fashion_mnist.py:method=NAME on the first
5,000 training images of Fashion-MNIST (an .npz of train_images, train_labels, test_images and test_labels),
measured on the first 2,000 test images, with the seeds 0, 1, ... SimCLR takes `--steps` steps, the others as
many as cost the same number of FLOPs, counted in the traced training step (matrix products and convolutions,
forward and backward, target network included). `search` trains shapes with seed 0 and with each entry of
SEARCH, as many for SimCLR, MoCo v2 and BYOL, and compares them by kNN on held-out training images. All runs
are made in this process, one after the other. Adds a table to benchmarks/equal_compute.json; a call with the
same --workdir goes on where an earlier one stopped.
"""

import argparse
import itertools
import json
import pathlib
import runpy
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
from runs import ROOT, keep

import simclr_jax
from simclr_jax.inspect.hlo import count_flops
from simclr_jax.runtime import sharding
from simclr_jax.train import build

METHODS = ('simclr', 'moco_v2', 'moco_v3', 'byol', 'simsiam', 'barlow_twins', 'vicreg', 'nnclr', 'sup_con',
           'instance_discrimination')
CONFIGS = {'shapes': 'configs/smoke.py', 'fashion': 'configs/fashion_mnist.py'}
STEPS = {'shapes': 120, 'fashion': 60, 'search': 150}
FASHION = {'data.train_split': 'train[:5000]', 'data.test_split': 'test[:2000]', 'encoder.stem': 'imagenet',
           'schedule.warmup_epochs': 1.0, 'eval.knn_k': 20, 'log.every_steps': 20}
# The three recipes as they were before the search, and what each run of it had instead.
BEFORE = {
    'simclr': {'batch_size': 256, 'optimizer.learning_rate': 4.0, 'method.temperature': 0.2},
    'moco_v2': {'batch_size': 256, 'optimizer.learning_rate': 4.0, 'method.temperature': 0.2,
                'method.momentum': 0.95, 'method.queue_size': 1024},
    'byol': {'batch_size': 256, 'optimizer.learning_rate': 4.0, 'method.momentum': 0.9}}
HALF = {'batch_size': 128, 'optimizer.learning_rate': 2.8}
QUARTER = {'batch_size': 64, 'optimizer.learning_rate': 2.0}
COLD = {'method.temperature': 0.1}
FAST = {'method.momentum': 0.5}
NORM = {'head.final_norm': True}
SGD = {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.3, 'optimizer.weight_decay': 5e-4}
ADAMW = {'optimizer.name': 'adamw', 'optimizer.learning_rate': 0.003, 'optimizer.weight_decay': 1e-4}
SEARCH = {
    'simclr': {
        'as before': {}, 'temperature 0.1': COLD, 'batch 128, rate 2.8': HALF,
        'batch 64, rate 2': QUARTER, 'rate 1.5': {'optimizer.learning_rate': 1.5},
        'rate 8': {'optimizer.learning_rate': 8.0},
        'head 512 to 256': {'head.hidden_width': 512, 'head.out_dim': 256},
        'temperature 0.1, batch 128, rate 2.8': COLD | HALF, 'temperature 0.1, batch 64, rate 2': COLD | QUARTER,
        'SGD, rate 0.3, decay 5e-4': SGD, 'AdamW, rate 0.003, decay 1e-4': ADAMW},
    'moco_v2': {
        'as before': {}, 'momentum 0.5': FAST, 'symmetric': {'method.symmetric': True},
        'queue 256': {'method.queue_size': 256}, 'queue 256, temperature 0.1': {'method.queue_size': 256} | COLD,
        'queue 256, momentum 0.5': {'method.queue_size': 256} | FAST,
        'queue 256, momentum 0.5, batch 128, rate 2.8': {'method.queue_size': 256} | FAST | HALF,
        'queue 128, momentum 0.5, batch 64, rate 2': {'method.queue_size': 128} | FAST | QUARTER,
        'the same, temperature 0.1': {'method.queue_size': 128} | FAST | QUARTER | COLD,
        'the same, momentum 0.9': {'method.queue_size': 128, 'method.momentum': 0.9} | QUARTER,
        'the same, rate 4': {'method.queue_size': 128} | FAST | QUARTER | {'optimizer.learning_rate': 4.0}},
    'byol': {
        'as before': {}, 'momentum 0.5': FAST, 'rate 1.5': {'optimizer.learning_rate': 1.5},
        'batch 64, rate 2': QUARTER,
        'heads 512 to 256': {f'{head}.{name}': value for head in ('head', 'predictor')
                             for name, value in (('hidden_width', 512), ('out_dim', 256))},
        'momentum 0.5, rate 10': FAST | {'optimizer.learning_rate': 10.0},
        "momentum 0.5, BatchNorm at the projector's end": FAST | NORM,
        'the same, SGD, rate 0.3, decay 5e-4': FAST | NORM | SGD,
        'the same, AdamW, rate 0.003, decay 1e-4': FAST | NORM | ADAMW,
        'the same, a linear predictor': FAST | NORM | {'predictor.mode': 'linear'},
        'the same, momentum 0.97': NORM | {'method.momentum': 0.97}}}
# Neither measured nor saved before the end, which would be billed to the training.
QUIET = {'eval.knn_every_epochs': 0.0, 'checkpoint.every_epochs': 0.0, 'log.step_breakdown': False}


def recipe(config, method, fields):
    """The recipe CONFIG:method=METHOD with some fields of other values."""
    made = runpy.run_path(str(ROOT / config))['get_config'](f'method={method}')
    made.update_from_flattened_dict(QUIET | fields)
    return made


def step_flops(config):
    """FLOPs of one training step."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    # Ten classes, as both data sets; the other two numbers are the schedule's and change no FLOPs.
    _, init_state, train_step, _ = build(config, mesh, num_classes=10, num_examples=10_000, num_steps=1000)
    size = config.augment.image_size
    view = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.float32)
    number = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    batch = {'view1': view, 'view2': view, 'label': number, 'index': number}
    return count_flops(jax.make_jaxpr(train_step)(jax.eval_shape(init_state), batch).jaxpr)


def run(workdir, config, floors=None):
    """What a run of `config` found, also if an earlier call made it: accuracies in [0, 1], and processor seconds.

    floors: the workdir of a run that starts with the same encoder, and has measured it.
    """
    kept = workdir / 'benchmark.json'
    if not kept.exists():
        used = time.process_time()
        if floors:
            workdir.mkdir(parents=True, exist_ok=True)
            shutil.copy(floors / 'floors.json', workdir)
        results = simclr_jax.pretrain(config, workdir)
        rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        health = [row for row in rows if 'feature_rank' in row][-1]
        heldout = [row['knn_accuracy'] for row in rows if 'knn_accuracy' in row][-1]
        kept.write_text(json.dumps({
            'steps': config.num_train_steps, 'heldout knn': heldout,
            **{f'{encoder} {kind}': row.get(f'{kind}_accuracy') for encoder, row in results.items()
               for kind in ('knn', 'linear')},
            'feature_rank': health['feature_rank'], 'projection_rank': health['projection_rank'],
            'cpu_seconds': round(time.process_time() - used)}))
        jax.clear_caches()
    return json.loads(kept.read_text())


def equal_steps(steps, methods, make):
    """{method: steps that cost what `steps` of SimCLR do}; make: method -> its config."""
    flops = {method: step_flops(make(method)) for method in {'simclr', *methods}}
    return {method: round(steps * flops['simclr'] / flops[method]) for method in methods}


def compare(directory, config, fields, arguments):
    """Rows of a method each, with a list of the seeds' values."""

    def make(method, **more):
        return recipe(config, method, fields | more)

    kept, runs = directory / 'steps.json', {}
    steps = json.loads(kept.read_text()) if kept.exists() else equal_steps(arguments.steps, arguments.methods, make)
    directory.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(steps))
    for seed, method in itertools.product(range(arguments.seeds), arguments.methods):
        first = method == arguments.methods[0]              # the seed alone says what encoder a run starts with
        runs[method, seed] = run(
            directory / f'{method}_{seed}',
            make(method, **{'num_train_steps': steps[method], 'seed': seed, 'eval.pixel_floor': first and not seed}),
            None if first else directory / f'{arguments.methods[0]}_{seed}')
    return [{'method': method, **{name: [runs[method, seed].get(name) for seed in range(arguments.seeds)]
                                  for name in runs[method, 0]}} for method in arguments.methods]


def search(directory, arguments):
    """Rows of a run each: method, what differs from its recipe before the search, and what that gave."""
    rows, make = [], lambda fields: lambda method: recipe(CONFIGS['shapes'], method, BEFORE[method] | fields)
    goal = arguments.steps * step_flops(make({})('simclr'))
    for method, variants in SEARCH.items():
        for name, fields in variants.items():
            steps = round(goal / step_flops(make(fields)(method)))
            rows.append({'method': method, 'variant': name, **run(
                directory / f'{method}_{name}', make(fields | {'num_train_steps': steps})(method))})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('what', choices=STEPS)
    parser.add_argument('--steps', type=int, help=f'of SimCLR; default: {STEPS}')
    parser.add_argument('--methods', nargs='+', default=METHODS)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--fashion', type=pathlib.Path, help='.npz of Fashion-MNIST')
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    what, arguments.steps = arguments.what, arguments.steps or STEPS[arguments.what]
    directory = (arguments.workdir or pathlib.Path(tempfile.mkdtemp())) / what
    if what == 'search':
        rows = search(directory, arguments)
    else:
        data = {} if what == 'shapes' else FASHION | {'data.source': f'arrays:{arguments.fashion.absolute()}'}
        rows = compare(directory, CONFIGS[what], data, arguments)
    for row in rows:
        print(row)
    keep('equal_compute', f'{what}, {arguments.steps} steps of SimCLR', rows)


if __name__ == '__main__':
    main()
