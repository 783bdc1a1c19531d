"""Every encoder with every method, and through every task, by the command: what works is a table.

    python benchmarks/combinations.py [--only=vit] [--workdir=DIR]      # needs the extra export

Each cell is a run of four steps on `shapes` with a tiny encoder, on one device and on eight simulated ones; the
latter goes on once more from its checkpoint of step 2. `devices` is the largest difference of the loss between one
device and eight, relative to it, over the four steps; `resume` whether the resumed run ends with the same bits.
Each encoder's SimCLR run is then measured, fine-tuned, exported and planned. Writes benchmarks/combinations.json. A
call with the same --workdir goes on where an earlier one stopped.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
from runs import ROOT, keep

from simclr_jax.config.recipes import METHODS
from simclr_jax.evaluate.pretrained import load_pretrained

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
    config.linear.update({{'batch_size': 64, 'num_epochs': 1.0}})
    return config
'''


def command(workdir, recipe, *options, devices=1):
    """The text of a run of the command that ended well; otherwise its last line."""
    environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
                                             '--xla_backend_optimization_level=0', 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, '-m', 'simclr_jax.main', f'--config={recipe}', f'--workdir={workdir}',
                           *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    return '' if done.returncode == 0 else (done.stderr.strip() or done.stdout).splitlines()[-1]


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return np.array([row['loss'] for row in rows if 'loss' in row])


def cell(directory, encoder, method):
    """{'error'}, or {'devices', 'resume'}, of one encoder with one method."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = directory / 'recipe.py'
    recipe.write_text(RECIPE.format(method=method, encoder=ENCODERS[encoder]))
    one, eight, again = (directory / name for name in ('one', 'eight', 'again'))
    for workdir, devices in ((one, 1), (eight, 8)):
        if error := command(workdir, recipe, devices=devices):
            return {'error': error}
    shutil.copytree(eight, again)
    checkpoints = {path.name: path for path in (again / 'checkpoints').iterdir()}
    shutil.rmtree(checkpoints['4'])
    if error := command(again, recipe, devices=8):
        return {'error': error}
    ends = [load_pretrained(workdir).variables for workdir in (eight, again)]
    same = all(map(np.array_equal, *map(jax.tree.leaves, ends)))
    a, b = losses(one), losses(eight)
    return {'devices': float(np.abs((a - b) / a).max()), 'resume': same, 'steps': len(a)}


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
        trained = root / encoder / 'simclr'
        for task, options in TASKS.items():
            name = f'{encoder} {task}'
            if name not in rows:
                rows[name] = {'error': command(trained / 'one', trained / 'recipe.py', f'--config.task={task}',
                                               *options)}
                if task == 'export' and not rows[name]['error']:
                    card = json.loads((trained / 'one/export/card.json').read_text())
                    rows[name]['formats'] = {file: entry['largest_difference'] for file, entry in card['files'].items()
                                             if entry['largest_difference'] is not None}
                known.write_text(json.dumps(rows))
            print(name, rows[name], flush=True)
    keep('combinations', 'four steps, tiny encoders', rows)


if __name__ == '__main__':
    main()
