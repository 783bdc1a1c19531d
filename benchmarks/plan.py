"""The training step of ResNet-50 at a global batch of 8192, compiled for TPU slices that nobody here owns.

    pip install libtpu
    python benchmarks/plan.py [--only=v5e] [--full]

For each slice: does it fit, what lies in the memory of a device, collectives, FLOPs, the floor of a step;
and that no device holds an array of its n (or 2n) anchors against all 2N = 16384 projections. Then the
encoder's memory against encoder_chunks, and, with a small encoder and projections of a width that no
other axis has, the same question about the loss alone. Each case is compiled in a process of its own,
which gives its memory back. Writes benchmarks/plan.json after each; a case that is there is replaced.
Without --full the compiler leaves out its last optimisations, which takes a third of the time.
"""

import argparse
import json
import os
import pathlib
import platform
import runpy
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = pathlib.Path(__file__).with_suffix('.json')
SLICES = ('v5e:4x8', 'v4:4x4x2', 'v3:4x8', 'v5p:4x4x2', 'v6e:4x8',           # 32 chips
          'v4:4x4x8', 'v5e:8x16', 'v3:8x16')                                 # 128 chips
CASES = ([{'name': f'loss {topology}', 'topology': topology, 'small': True} for topology in SLICES]
         + [{'name': f'resnet50 {topology}', 'topology': topology} for topology in SLICES]
         + [{'name': f'resnet50 v5e:4x8 chunks {chunks}', 'topology': 'v5e:4x8', 'chunks': chunks}
            for chunks in (2, 4, 8)])


def configure(case):
    """configs/imagenet.py:batch=8192 for a case."""
    config = runpy.run_path(str(ROOT / 'configs/imagenet.py'))['get_config']('batch=8192')
    config.plan.topology = case['topology']
    config.encoder_chunks = case.get('chunks', 1)
    if case.get('small'):
        config.encoder.update({'depth': 10, 'width': 0.125, 'stem': 'cifar'})
        config.head.update({'hidden_width': 40, 'out_dim': 24})
        config.augment.image_size = 8
    return config


def measure(case, full):
    """What `inspect_step` says of a case, with the arrays that should not be there."""
    from simclr_jax.inspect import devices as targets, hlo as compiled, plan
    from simclr_jax.runtime import sharding
    config = configure(case)
    targets.prepare(config)
    devices = targets.slice_devices(config.plan.topology)
    mesh, texts = sharding.make_mesh(devices), []
    chip = targets.chip_of(devices[0])
    step = plan.inspect_step(config, mesh, chip, keep=texts.append, quick=not full)
    result = {**case, 'device': devices[0].device_kind, 'num_devices': mesh.size,
              'batch_size': config.batch_size, 'full': full, 'memory_of_device': chip.memory, **step}
    if texts:
        n = config.batch_size // mesh.size
        rows = {n, 2 * n} - {config.head.out_dim}            # [2N, D] is no similarity matrix
        result |= {'rows': sorted(rows), 'columns': 2 * config.batch_size,
                   'forbidden_arrays': compiled.arrays_between(texts[0], rows, {2 * config.batch_size})}
    return result


def versions():
    import importlib.metadata
    names = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax')
    return {'python': platform.python_version(), 'machine': platform.machine(),
            **{name: importlib.metadata.version(name) for name in names}}


def run(case, full):
    """The case in a process of its own; None if it failed, after saying how."""
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, __file__, f'--case={json.dumps(case)}', *(['--full'] if full else [])],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True, capture_output=True)
    if process.returncode:
        print(f'{case["name"]}: failed\n{process.stderr[-2000:]}', flush=True)
        return None
    result = json.loads(process.stdout.splitlines()[-1])
    print(describe(result), f'({time.monotonic() - started:.0f} s)', flush=True)
    return result


def describe(result):
    """One line: what it needs, the floor, the arrays that should not be there."""
    gib = 1 << 30
    if 'memory' not in result:
        return (f'{result["name"]}: does not fit, needs at least {result["needs"] / gib:.2f} of '
                f'{result["available"] / gib:.2f} GiB')
    slowest = max(result['floor'], key=result['floor'].get)
    sent = ', '.join(f'{value["count"]} {kind} of {value["bytes"] / 1e6:.1f} MB'
                     for kind, value in result['collectives'].items())
    return (f'{result["name"]}: {result["num_devices"]} x {result["device"]}, '
            f'{result["memory"]["total"] / gib:.2f} of {result["memory_of_device"] / gib:.0f} GiB '
            f'({result["memory"]["temporaries"] / gib:.2f} temporaries), {result["flops"] / 1e12:.2f} TFLOP, '
            f'floor {1e3 * result["floor"][slowest]:.1f} ms ({slowest}), {sent}; '
            f'forbidden arrays: {result["forbidden_arrays"] or "none"}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='cases whose name holds this')
    parser.add_argument('--full', action='store_true', help='compile as training does')
    parser.add_argument('--case', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case), arguments.full)))
        return
    results = json.loads(RESULTS.read_text())['cases'] if RESULTS.exists() else {}
    for case in CASES:
        result = run(case, arguments.full) if arguments.only in case['name'] else None
        if result:
            results[case['name']] = result
            RESULTS.write_text(json.dumps({'versions': versions(), 'cases': results}, indent=2) + '\n')
    found = [name for name, result in results.items() if result.get('forbidden_arrays')]
    if found:
        sys.exit(f'Arrays of anchors against all projections in: {", ".join(found)}')


if __name__ == '__main__':
    main()
