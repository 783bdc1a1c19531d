"""The training step of the recipes, a frozen encoder, and NT-Xent, compiled for GPUs (and TPUs) that nobody here owns.

    pip install '.[plan-gpu,tpu]'
    python benchmarks/gpu_plan.py [--only=imagenet]

For each: kernels, temporaries, bytes moved, collectives, the floor of a step and the time to compile; for TPUs without
the compiler's last optimisations, and without kernels. Each case is compiled in a process of its own. Writes
benchmarks/gpu_plan.json after each; a case that is there is replaced.
"""

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'         # the plugin compiles; no GPU is looked for

from runs import ROOT, keep

# name -> (topology, recipe, its argument, global batch)
STEPS = {
    'imagenet.py, 256': ('h100:1', 'imagenet', '', 256),
    'imagenet.py, 256 a GPU': ('h100:8', 'imagenet', '', 2048),
    'cifar10.py, 512': ('h100:1', 'cifar10', '', 512),
    'moco_v2.py, 256': ('h100:8', 'moco_v2', '', 256),
    'byol.py, 256 a GPU': ('h100:8', 'byol', '', 2048),
    'folder.py, 256': ('rtx3090:1', 'folder', '', 256),
    'folder.py:batch=128': ('rtx3090:1', 'folder', 'batch=128', 128),
    'imagenet.py, 256 a GPU, A100': ('a100:8', 'imagenet', '', 2048),
    **{f'cifar10.py, 512, {name.upper()}': (f'{name}:1', 'cifar10', '', 512)
       for name in ('h200', 'a100', 'l4', 'rtx4090', 'rtx3090', 't4')},
    'moco_v3_vit.py, 256 a GPU': ('h100:8', 'moco_v3_vit', '', 2048),
    'moco_v3_vit.py, 256 a chip': ('v5e:2x4', 'moco_v3_vit', '', 2048),
    'moco_v2.py:v3, 256 a GPU': ('h100:8', 'moco_v2', 'v3', 2048),
    'moco_v3_vit.py, 128 a chip': ('v5e:2x4', 'moco_v3_vit', '', 1024),
    'moco_v2.py:v3, 128 a chip': ('v5e:2x4', 'moco_v2', 'v3', 1024),
    **{f'{recipe}.py, 256, one GPU': ('h100:1', recipe, '', 256) for recipe in ('moco_v2', 'byol')},
}
LOSSES = {f'NT-Xent of {count:,} images': count for count in (1024, 2048, 8192, 65536)}
ENCODERS = {'frozen ResNet-50, 256 images': True, 'frozen ResNet-50, 256 images, its BatchNorms not folded': False}
GIB, MIB = 1 << 30, 1 << 20


def measure_step(name):
    from simclr_jax.inspect import devices as targets, plan
    from simclr_jax.runtime import sharding
    topology, recipe, argument, batch = STEPS[name]
    config = runpy.run_path(str(ROOT / f'configs/{recipe}.py'))['get_config'](argument)
    config.plan.topology, config.batch_size = topology, batch
    targets.prepare(config)
    mesh = sharding.make_mesh(targets.slice_devices(topology))
    step = plan.inspect_step(config, mesh, targets.chip_of(mesh.devices.flat[0]), quick=topology.startswith('v'))
    if 'memory' not in step:
        return {'topology': topology, 'needs GiB': round(step['needs'] / GIB, 2)}
    floor = max(step['floor'].values())
    return {'topology': topology, 'kernels': step['kernels'],
            'temporaries GiB': round(step['memory']['temporaries'] / GIB, 2),
            'total GiB': round(step['memory']['total'] / GIB, 2), 'GB moved': round(step['bytes_accessed'] / 1e9, 1),
            'TFLOP': round(step['flops'] / 1e12, 2), 'floor ms': round(1e3 * floor, 1),
            'collectives': {kind: [value['count'], round(value['bytes'] / 1e6, 1)]
                            for kind, value in step['collectives'].items()},
            'fits': step['fits'], 'products': step['products'], 'compile s': round(step['seconds_to_compile'])}


def measure_encoder(name):
    import jax
    import jax.numpy as jnp

    from simclr_jax.inspect import devices as targets, hlo
    from simclr_jax.models.building import make_network
    from simclr_jax.models.folding import folded
    from simclr_jax.models.network import init_variables
    from simclr_jax.runtime import sharding
    from simclr_jax.training.steps import make_encode
    network = make_network(encoder={'depth': 50, 'dtype': 'bfloat16'}, head={})
    encode = make_encode(network)
    arguments = (jax.eval_shape(lambda: init_variables(network, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))),
                 jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.float32))
    where = sharding.replicated(sharding.make_mesh(targets.slice_devices('h100:1')))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments)
    started = time.monotonic()
    compiled = jax.jit(folded(network, encode) if ENCODERS[name] else encode).lower(*placed).compile()
    kernels = hlo.kernels(compiled.as_text())
    return {'topology': 'h100:1', 'kernels': kernels.count, 'GB moved': round(kernels.bytes / 1e9, 1),
            'temporaries MiB': round(hlo.memory(compiled)['temporaries'] / MIB),
            'compile s': round(time.monotonic() - started)}


def measure_loss(name):
    import jax
    import jax.numpy as jnp

    from simclr_jax import nt_xent
    from simclr_jax.inspect import devices as targets, hlo
    from simclr_jax.runtime import sharding
    mesh = sharding.make_mesh(targets.slice_devices('h100:1'))
    views = [jax.ShapeDtypeStruct((LOSSES[name], 128), jnp.float32, sharding=sharding.replicated(mesh))] * 2
    gradient = jax.value_and_grad(lambda *views: nt_xent(*views, temperature=0.1, mesh=mesh)[0], argnums=(0, 1))
    compiled = jax.jit(gradient).lower(*views).compile()
    kernels = hlo.kernels(compiled.as_text())
    return {'topology': 'h100:1', 'kernels': kernels.count, 'GB moved': round(kernels.bytes / 1e9, 1),
            'temporaries MiB': round(hlo.memory(compiled)['temporaries'] / MIB)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='cases whose name this regular expression finds')
    parser.add_argument('--case', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure = (measure_step if arguments.case in STEPS else
                   measure_encoder if arguments.case in ENCODERS else measure_loss)
        print(json.dumps(measure(arguments.case)))
        return
    path = ROOT / 'benchmarks' / 'gpu_plan.json'
    rows = json.loads(path.read_text())['compiled']['rows'] if path.exists() else {}
    for name in (*STEPS, *ENCODERS, *LOSSES):
        if not re.search(arguments.only, name):
            continue
        done = subprocess.run([sys.executable, __file__, f'--case={name}'], cwd=ROOT, text=True, check=True,
                              stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                                  filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))})
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
        keep('gpu_plan', 'compiled', rows)


if __name__ == '__main__':
    main()
