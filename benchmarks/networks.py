"""What a step sends within TPU slices or hosts of GPUs, and between them, by the compiled program.

    pip install '.[plan-gpu]' '.[tpu]'
    python benchmarks/networks.py

Runs `task=plan` for each case in a process of its own and keeps its collectives in benchmarks/networks.json.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'         # the plugins compile; no device is looked for

from runs import ROOT, keep

CASES = [('h100:2x8', 'imagenet', 4096), ('2xv5e:4x8', 'imagenet', 8192)]


def measure(topology, recipe, batch):
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run([sys.executable, '-m', 'simclr_jax.main', f'--config=configs/{recipe}.py', '--config.task=plan',
                        f'--config.batch_size={batch}', f'--config.plan.topology={topology}',
                        '--config.plan.search=False', f'--workdir={workdir}'], cwd=ROOT, check=True)
        report = json.loads(pathlib.Path(workdir, 'plan.json').read_text())
    step = report['step']
    return {'topology': topology, 'recipe': recipe, 'batch_size': batch, 'num_devices': report['num_devices'],
            'device': report['device'], 'networks': step['networks'], 'sent': step['sent']}


if __name__ == '__main__':
    keep('networks', 'plans', [measure(*case) for case in CASES])
