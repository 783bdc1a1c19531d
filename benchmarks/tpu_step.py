"""What a compiled training step of ResNet-50 sends, computes and reads on TPU slices that nobody here owns.

    pip install libtpu
    python benchmarks/tpu_step.py [--only='v5e:4x8'] [--full] [--label=NAME] [--source=DIR]

configs/imagenet.py at a global batch of 4096 and 8192 on 32 and 128 chips. For each: collectives and their
bytes by what they carry, against the floor (each gradient once in the type of its layer's arithmetic, the
projections with their log-sum-exps, two sums for each channel of a batch norm, forward and backward); FLOPs,
bytes and temporaries by XLA's count; with --full, which takes four to nine times as long, the cycles that the
compiler estimates too. --source measures another checkout; its cells carry --label, as 'before' does. Each
cell is compiled in a process of its own and kept in benchmarks/tpu_step.json at once; one that is there is
not compiled again (delete it for that). It ends with the table of all cells that there are.
"""

import argparse
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = pathlib.Path(__file__).with_suffix('.json')
SLICES = ('v5e:4x8', 'v4:4x4x2', 'v3:4x8', 'v5p:4x4x2',                    # 32 chips
          'v5e:8x16', 'v4:4x4x8', 'v3:8x16', 'v5p:4x4x8')                  # 128 chips
CELLS = [(topology, batch) for batch in (8192, 4096) for topology in SLICES]
CARRIED = ('batch norm forward', 'batch norm backward', 'gradients', 'loss', 'metrics')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')       # bodies of loops count once


def measure(topology, batch, full):
    """What the compiled step of one cell says of itself, per device."""
    from simclr_jax.inspect import devices as targets, plan
    from simclr_jax.runtime import sharding
    config = runpy.run_path('configs/imagenet.py')['get_config'](f'batch={batch}')
    config.plan.topology = topology
    targets.prepare(config)
    devices = targets.slice_devices(topology)
    mesh, texts = sharding.make_mesh(devices), []
    step = plan.inspect_step(config, mesh, targets.chip_of(devices[0]), keep=texts.append, quick=not full)
    result = {'topology': topology, 'batch_size': batch, 'full': full, 'device': devices[0].device_kind,
              'num_devices': mesh.size, 'floor_bytes': floor_bytes(config, mesh), **step}
    if texts:
        # This checkout's reader, whatever checkout is measured.
        carried = runpy.run_path(str(ROOT / 'simclr_jax/inspect/hlo.py'))['carried'](texts[0])
        result['carried'] = {what: value._asdict() for what, value in carried.items()}
        result['estimated_cycles'] = sum(map(int, _CYCLES.findall(texts[0]))) if full else None
    return result


def floor_bytes(config, mesh):
    """{what: bytes} that no step can do without, as `CARRIED` names it."""
    import jax

    from simclr_jax.train import build
    _, init_state, _, _ = build(config, mesh, num_examples=1_000_000, num_classes=config.plan.num_classes,
                                num_steps=1_000_000)
    state = jax.eval_shape(init_state)
    half = config.encoder.dtype == 'bfloat16'

    def named(tree):
        return ((jax.tree_util.keystr(path, simple=True, separator='/'), leaf.size)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree))

    # Kernels of encoder and heads have gradients in the type of the activations, the rest in float32. Those
    # of scales and offsets are the sums that the backward pass of their batch norm needs anyway.
    gradients = sum(size * (2 if half and name.endswith('kernel') and 'probe' not in name else 4)
                    for name, size in named(state.params) if 'norm' not in name)
    sums = 8 * sum(size for name, size in named(state.batch_stats) if name.endswith('mean'))
    projections = 2 * config.batch_size * (config.head.out_dim + 2) * 4
    return {'batch norm forward': sums, 'batch norm backward': sums, 'gradients': gradients,
            'loss': projections, 'metrics': 0}


def run(arguments, topology, batch):
    """The cell in a process of its own; None if it failed, after saying how."""
    source = pathlib.Path(arguments.source).resolve()
    cell = json.dumps({'topology': topology, 'batch': batch, 'full': arguments.full})
    process = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).resolve()), f'--cell={cell}'], cwd=source, text=True,
        capture_output=True, env={**os.environ, 'PYTHONPATH': str(source)})
    if process.returncode:
        print(f'{topology}, {batch}: failed\n{process.stderr[-2000:]}', flush=True)
        return None
    return json.loads(process.stdout.splitlines()[-1])


def known():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table(cells):
    """Rows of Markdown, before beside after."""
    columns = ('slice', 'global batch', 'form',
               'collectives: BN forward, backward, gradients, loss and metrics', 'MB of each', 'floor, MB',
               'TFLOP', 'GB accessed', 'temporaries, GiB', 'estimated Mcycles')
    rows = [f'| {" | ".join(columns)} |', '|' + '---|' * len(columns)]

    def place(cell):
        return SLICES.index(cell['topology']), cell['batch_size'], cell['full'], cell['label'] != 'before'

    for cell in sorted(cells.values(), key=place):
        where = [f'{cell["topology"]} ({cell["num_devices"]} x {cell["device"]})', f'{cell["batch_size"]:,}',
                 cell['label'] + ('' if cell['full'] else ', quick')]
        rows.append(f'| {" | ".join(where + figures(cell))} |')
    return '\n'.join(rows)


def figures(cell):
    """The other columns of a cell."""
    if 'carried' not in cell:
        return [f'does not fit: needs {cell["needs"] / 2 ** 30:.1f} GiB', *[''] * 6]

    def grouped(amount):
        first, second, third, *rest = (cell['carried'].get(what, {}).get(amount, 0) for what in CARRIED)
        return first, second, third, sum(rest)

    cycles = cell['estimated_cycles']
    return [', '.join(map(str, grouped('count'))),
            ', '.join(f'{size / 1e6:.2f}' for size in grouped('bytes')),
            f'{sum(cell["floor_bytes"].values()) / 1e6:.1f}', f'{cell["xla_flops"] / 1e12:.2f}',
            f'{cell["bytes_accessed"] / 1e9:.1f}', f'{cell["memory"]["temporaries"] / 2 ** 30:.2f}',
            f'{cycles / 1e6:.1f}' if cycles else '']


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='slices whose name holds this')
    parser.add_argument('--batch', type=int, default=0, help='this global batch alone')
    parser.add_argument('--full', action='store_true', help='compile as training does')
    parser.add_argument('--label', default='after')
    parser.add_argument('--source', default=str(ROOT), help='the checkout to measure')
    parser.add_argument('--cell', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        cell = json.loads(arguments.cell)
        print(json.dumps(measure(cell['topology'], cell['batch'], cell['full'])))
        return
    cells = known()
    for topology, batch in CELLS:
        key = f'{arguments.label} {topology} {batch}{" full" if arguments.full else ""}'
        if arguments.only not in topology or arguments.batch not in (0, batch) or key in cells:
            continue
        started = time.monotonic()
        if result := run(arguments, topology, batch):
            cells = known()                 # another process may have added some
            cells[key] = {'label': arguments.label, **result}
            partial = RESULTS.with_suffix('.part')
            partial.write_text(json.dumps(cells, indent=2) + '\n')
            os.replace(partial, RESULTS)
            print(f'{key}: {time.monotonic() - started:.0f} s', flush=True)
    print(table(cells))


if __name__ == '__main__':
    main()
