"""What a training step of SimCLR, MoCo v2 and BYOL costs: memory, FLOPs, collectives, time.

    python benchmarks/method_costs.py --compile      # needs libtpu, not a TPU: pip install 'simclr_jax[tpu]'
    python benchmarks/method_costs.py --time         # on the devices at hand

--compile: the ImageNet recipes (ResNet-50, 224 px, bfloat16) at one global batch of 256 on a TPU v5e slice
of 8 chips, compiled ahead of time. --time: the steps of configs/smoke.py:method=..., in turns, medians.
Prints a table and writes benchmarks/method_costs.json.
"""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
from runs import ROOT, keep

from simclr_jax.inspect import devices as targets, plan
from simclr_jax.runtime import sharding
from simclr_jax.train import build

RECIPES = {'simclr': 'imagenet.py:batch=256', 'moco_v2': 'moco_v2.py:batch=256', 'byol': 'byol.py:batch=256'}


def load(recipe):
    path, _, argument = recipe.partition(':')
    return runpy.run_path(str(ROOT / 'configs' / path))['get_config'](argument)


def compile_step(method, topology):
    config = load(RECIPES[method])
    config.plan.topology = topology
    targets.prepare(config)
    devices = targets.slice_devices(topology)
    step = plan.inspect_step(config, sharding.make_mesh(devices), targets.chip_of(devices[0]), quick=True)
    return {'method': method, 'topology': topology, 'batch_size': config.batch_size, **step}


def make_steps():
    """{method: a function that makes one training step and waits for it}."""
    mesh, steps = sharding.make_mesh(), {}
    for method in RECIPES:
        config = load(f'smoke.py:method={method}')
        config.batch_size = 256                 # the same for all
        if 'queue_size' in config.method:
            config.method.queue_size = 1024
        _, init_state, train_step, shardings = build(config, mesh, num_examples=10_000, num_classes=10,
                                                     num_steps=500)
        size = config.augment.image_size
        view1, view2 = np.random.default_rng(0).random((2, config.batch_size, size, size, 3), np.float32)
        batch = sharding.put_batch(mesh, {'view1': view1, 'view2': view2,
                                          'label': np.zeros(config.batch_size, np.int32)})
        state = [jax.jit(init_state, out_shardings=shardings)()]

        def step(state=state, train_step=train_step, batch=batch):
            state[0], metrics = train_step(state[0], batch)
            jax.block_until_ready(metrics)

        steps[method] = step
    return steps


def time_steps(rounds=9):
    steps = make_steps()
    seconds = {method: [] for method in steps}
    for number in range(rounds + 2):
        for method, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= 2:                 # the first compiles
                seconds[method].append(time.perf_counter() - started)
    return [{'method': method, 'seconds': statistics.median(values)} for method, values in seconds.items()]


def print_compiled(rows):
    parts = ('parameters', 'optimizer state', 'method state', 'temporaries', 'total')
    print(f'| method | TFLOP | {" | ".join(f"{part}, MB" for part in parts)} | collectives |')
    print('|---' * (len(parts) + 3) + '|')
    for row in rows:
        sent = ', '.join(f'{value["count"]} {kind} ({value["bytes"] / 1e6:.1f} MB)'
                         for kind, value in row['collectives'].items())
        print(f'| {row["method"]} | {row["flops"] / 1e12:.2f} | '
              + ' | '.join(f'{row["memory"][part] / 1e6:.0f}' for part in parts) + f' | {sent} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--time', action='store_true')
    parser.add_argument('--topology', default='v5e:2x4')
    parser.add_argument('--only', help='one method, in this process')
    arguments = parser.parse_args()
    if arguments.only:
        print('RESULT ' + json.dumps(compile_step(arguments.only, arguments.topology)))
    elif arguments.compile:
        rows = []
        for method in RECIPES:              # a process each gives its memory back
            done = subprocess.run([sys.executable, __file__, f'--only={method}',
                                   f'--topology={arguments.topology}'], check=True, text=True,
                                  stdout=subprocess.PIPE)
            rows.append(json.loads(done.stdout.rpartition('RESULT ')[2]))
        print_compiled(rows)
        keep('method_costs', f'per device, ResNet-50, {arguments.topology}', rows)
    elif arguments.time:
        rows = time_steps()
        for row in rows:
            share = row['seconds'] / rows[0]['seconds']
            print(f'{row["method"]:8} {1e3 * row["seconds"]:.0f} ms, {share:.2f}')
        keep('method_costs', 'configs/smoke.py, one step', rows)
    else:
        parser.error('give --compile or --time')


if __name__ == '__main__':
    main()
