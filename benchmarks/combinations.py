"""Every encoder with every method, and through every task, by the command: what works is a table.

    python benchmarks/combinations.py [--only=vit] [--workdir=DIR]      # needs the extra export

Each cell is a run of four steps on `shapes` with a tiny encoder, on one device and on eight simulated ones; the
latter goes on once more from its checkpoint of step 2. `devices` are differences between one device and eight,
relative: of loss and gradient norm of the first step, and the largest of the loss in four; `resume` is how many of the
arrays of the last checkpoint (parameters, optimiser, method, statistics) the resumed run has with the same bits, and
how many there are. Each encoder's SimCLR run is then measured, fine-tuned, exported, planned, and loaded by
`load_encoder`. Writes benchmarks/combinations.json. A call with the same --workdir goes on where one stopped.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from runs import ROOT, final_state, keep

import simclr_jax
from simclr_jax.config.recipes import METHODS

ENCODERS = {
    'resnet': "{'depth': 10, 'width': 0.125, 'stem': 'cifar'}",
    'vit': "{'name': 'vit', 'arguments': {'width': 32, 'depth': 2, 'heads': 2, 'patch': 8}}",
    'convnext': "{'name': 'convnext', 'arguments': {'depths': [1, 1, 1, 1], 'widths': [8, 16, 32, 32], 'patch': 2}}",
}
TASKS = {'knn': (), 'linear': (), 'finetune': ('--config.finetune.num_epochs=1',
                                               '--config.finetune.batch_size=64'),
         'embed': (), 'report': (), 'export': (), 'plan': ('--config.plan.search=False',)}
RECIPE = '''from simclr_jax import config as recipes


def get_config(argument=''):
    config = recipes.base_config()
    recipes.use_method(config, {method!r})
    config = recipes.smoke(config)
    recipes.for_short_runs(config)
    if 'queue_size' in config.method and config.method.queue_size:
        config.method.queue_size = 256
    config.data.update({{'train_split': 'train[:256]', 'test_split': 'test[:64]'}})
    config.num_train_steps = 4
    config.schedule.warmup_epochs = 0.0
    config.optimizer.update({{'learning_rate': 0.2, 'scaling': 'none'}})
    config.encoder.update({encoder})
    config.checkpoint.every_epochs = 0.5
    config.log.every_steps = 1
    config.eval.update({{'linear_at_end': False, 'pixel_floor': False}})
    config.linear.update({{'batch_size': 64, 'num_epochs': 1.0}})
    return config
'''


def command(workdir, recipe, *options, devices=1):
    """(what a run of the command printed, '') where it ended well; otherwise ('', its last line)."""
    environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
                                             '--xla_backend_optimization_level=0', 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-m', 'simclr_jax.main', f'--config={recipe}', f'--workdir={workdir}',
                           *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    return (done.stdout, '') if done.returncode == 0 else ('', (done.stderr.strip() or done.stdout).splitlines()[-1])


def cell(directory, encoder, method):
    """{'error'}, or {'devices', 'resume', 'steps'}, of one encoder with one method."""
    shutil.rmtree(directory, ignore_errors=True)            # a call that was stopped in the middle
    directory.mkdir(parents=True)
    recipe = directory / 'recipe.py'
    recipe.write_text(RECIPE.format(method=method, encoder=ENCODERS[encoder]))
    one, eight, again = (directory / name for name in ('one', 'eight', 'again'))
    for workdir, devices in ((one, 1), (eight, 8)):
        if error := command(workdir, recipe, devices=devices)[1]:
            return {'error': error}
    shutil.copytree(eight, again)
    shutil.rmtree(again / 'checkpoints' / '4')
    text, error = command(again, recipe, devices=8)
    if error or 'resumed at step 2/4' not in text:
        return {'error': error or 'it did not go on from step 2'}
    return compare(one, eight, again)


def compare(one, eight, again):
    """What the three finished runs of a cell have in common."""
    whole, resumed = final_state(eight, 4), final_state(again, 4)
    same = [a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(whole, resumed, strict=True)]
    logs = [[row for row in map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines()) if 'loss' in row]
            for workdir in (one, eight)]
    apart = [{name: abs(b[name] / a[name] - 1) for name in ('loss', 'gradient_norm')}
             for a, b in zip(*logs, strict=True)]
    return {'devices': [apart[0]['loss'], apart[0]['gradient_norm'], max(step['loss'] for step in apart)],
            'resume': [sum(same), len(same)], 'steps': len(apart)}


def task(name, trained):
    """{'error'}, '' where it ended well, of a task on the workdir and recipe in `trained`; of an export its files."""
    workdir = trained / 'one'
    if name == 'load_encoder':
        features = simclr_jax.load_encoder(workdir)(np.zeros((2, 40, 50, 3), np.uint8))
        return {'error': '' if np.isfinite(features).all() else 'its features are not finite'}
    row = {'error': command(workdir, trained / 'recipe.py', f'--config.task={name}', *TASKS[name])[1]}
    if name == 'export' and not row['error']:
        card = json.loads((workdir / 'export/card.json').read_text())
        row['formats'] = {file: entry['largest_difference'] for file, entry in card['files'].items()
                          if entry['largest_difference'] is not None}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--only', default='', help='encoders, with commas between')
    parser.add_argument('--workdir', default='')
    arguments = parser.parse_args()
    root = pathlib.Path(arguments.workdir or tempfile.mkdtemp(prefix='combinations_'))
    root.mkdir(parents=True, exist_ok=True)
    known = root / 'cells.json'
    rows = json.loads(known.read_text()) if known.exists() else {}
    for encoder in arguments.only.split(',') if arguments.only else ENCODERS:
        for method in METHODS:
            name = f'{encoder} {method}'
            if name not in rows:
                rows[name] = cell(root / encoder / method, encoder, method)
                known.write_text(json.dumps(rows))
            print(name, rows[name], flush=True)
        for name in (*TASKS, 'load_encoder'):
            row = f'{encoder} {name}'
            if row not in rows:
                rows[row] = task(name, root / encoder / 'simclr')
                known.write_text(json.dumps(rows))
            print(row, rows[row], flush=True)
    keep('combinations', 'four steps, tiny encoders', rows)


if __name__ == '__main__':
    main()
