"""What augmentation on the device adds to a training step of ResNet-50 at 224 px, compiled for a TPU slice.

    pip install libtpu
    python benchmarks/augment_share.py [--topology=v5e:2x4] [--batch=512]

Compiles three programs for one slice: the training step with views made on the host, the same with crops
made on the host, and the way from crops to views alone. XLA counts the body of a loop once; the jitter is a
loop of four turns, so its FLOPs and bytes are at most four times what is counted: that is what is taken
here. The share is that of the floor time: the larger of FLOPs over the chip's peak rate and bytes over its
memory's. Prints a table and writes benchmarks/augment_share.json.
"""

import argparse
import json
import pathlib
import platform
import runpy
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
TURNS = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--topology', default='v5e:2x4')
    parser.add_argument('--batch', type=int, default=512)
    arguments = parser.parse_args()
    from simclr_jax.inspect import devices as targets, plan
    from simclr_jax.runtime import sharding
    config = runpy.run_path(str(ROOT / 'configs/imagenet.py'))['get_config'](f'batch={arguments.batch}')
    config.plan.topology = arguments.topology
    targets.prepare(config)
    devices = targets.slice_devices(arguments.topology)
    import jax
    mesh, chip = sharding.make_mesh(devices), targets.chip_of(devices[0])
    rows = {}
    for name, place in (('step, views from the host', 'host'), ('step, crops from the host', 'device')):
        config.data.augment_on = place
        step = plan.inspect_step(config, mesh, chip, quick=True)
        rows[name] = {'flops': step['xla_flops'], 'bytes': step['bytes_accessed'],
                      'temporaries': step['memory']['temporaries']}
    from simclr_jax.train import make_inputs
    inputs = make_inputs(config, form='crops')
    alone = jax.jit(inputs.make_prepare(mesh)).lower(inputs.abstract_batch(mesh), 0).compile()
    cost = alone.cost_analysis()
    rows['crops to views alone, four times'] = {
        'flops': TURNS * cost['flops'], 'bytes': TURNS * cost['bytes accessed'],
        'temporaries': alone.memory_analysis().temp_size_in_bytes}
    for row in rows.values():
        row['floor_ms'] = 1e3 * max(row['flops'] / chip.flops, row['bytes'] / chip.bandwidth)
    whole = rows['step, views from the host']['floor_ms']
    print(f'{mesh.size} x {devices[0].device_kind}, batch {arguments.batch}, per device')
    print(f'{"":<36}{"GFLOP":>10}{"GB":>10}{"floor ms":>10}{"share":>9}')
    for name, row in rows.items():
        row['share'] = row['floor_ms'] / whole
        print(f'{name:<36}{row["flops"] / 1e9:>10.1f}{row["bytes"] / 1e9:>10.2f}{row["floor_ms"]:>10.2f}'
              f'{100 * row["share"]:>8.1f} %')
    report = {'python': platform.python_version(), 'jax': jax.__version__, 'topology': arguments.topology,
              'batch_size': arguments.batch, 'num_devices': mesh.size, 'device': devices[0].device_kind,
              'programs': rows}
    pathlib.Path(__file__).with_suffix('.json').write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()
