"""Processor seconds from the start of a process until it has something to show: this tree, earlier ones, PyTorch.

    git worktree add /tmp/before d4a3294        # and `python setup.py build_ext --inplace` there
    python benchmarks/start.py --rounds=5 --tree=before=/tmp/before

Every measurement is a process of its own, the trees in turns; user and system time of the whole process, as the system
counts it when it has ended. `cold`: nothing is compiled yet, in an empty directory of compiled programs; `warm`: the
same command again. The first step is that of configs/smoke.py, when its loss is known. Rounds are added to those in
benchmarks/start.json; `--new` begins it again. The encoder is a ResNet-18, its images 64 of 32 px.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

from smoke import ROOT, processor, versions

# `python -m simclr_jax.main`, ended by the first call of the log: of a step whose metrics are known.
FIRST_STEP = """
import importlib.machinery, os, runpy, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == 'simclr_jax.train':
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module
            def exec_module(module):
                def first(log, step, metrics):
                    import jax
                    jax.block_until_ready(metrics)
                    os._exit(0)
                execute(module)
                (getattr(module, 'LateLog', None) or module._LateLog).__call__ = first
            spec.loader.exec_module = exec_module
            return spec
sys.meta_path.insert(0, Finder)
runpy.run_module('simclr_jax.main', run_name='__main__', alter_sys=True)
"""
FEATURES = """
import numpy as np, simclr_jax
simclr_jax.load_encoder({path!r})(np.zeros((64, 32, 32, 3), np.uint8))
"""
TORCH = """
import timm, torch
model = timm.create_model('resnet18', num_classes=0).eval()
model.load_state_dict(torch.load({path!r}, weights_only=True))
with torch.inference_mode():
    model(torch.zeros(64, 3, 32, 32))
"""


def seconds(tree: str, *command: str, **environment: str) -> float:
    """Processor seconds of a Python process in a tree; CalledProcessError where it fails."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *command], cwd=tree, stdout=output, stderr=output,
                                   env=os.environ | {'PYTHONPATH': tree} | environment)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and command[-1] != '--help':        # after which absl's own ends with 1
            output.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, output.read()[-2000:])
    return round(used.ru_utime + used.ru_stime, 2)


def measure(name: str, tree: str, encoder: str, directory: pathlib.Path) -> dict[str, float]:
    """Of one tree, once."""
    programs = str(directory / 'programs')
    found = {'`import simclr_jax`': seconds(tree, '-c', 'import simclr_jax'),
             '`simclr_jax --help`': seconds(tree, '-m', 'simclr_jax.main', '--help')}
    for state in ('cold', 'warm'):
        workdir = directory / 'run'
        found[f'first step, {state}'] = seconds(
            tree, '-c', FIRST_STEP, '--config=configs/smoke.py', f'--workdir={workdir}',
            JAX_COMPILATION_CACHE_DIR=programs)
        shutil.rmtree(workdir)
        found[f'`load_encoder` and first features, {state}'] = seconds(
            tree, '-c', FEATURES.format(path=encoder), JAX_COMPILATION_CACHE_DIR=programs,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1')
    shutil.rmtree(programs)
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--tree', action='append', default=[], help='NAME=PATH of another one')
    parser.add_argument('--new', action='store_true')
    arguments = parser.parse_args()
    path = ROOT / 'benchmarks/start.json'
    trees = dict(item.split('=', 1) for item in arguments.tree) | {'now': str(ROOT)}
    kept = {} if arguments.new or not path.exists() else json.loads(path.read_text())
    kept |= {'date': datetime.date.today().isoformat(), 'machine': f'{os.cpu_count()} cores, {processor()}',
             'system': platform.machine(), 'versions': versions()}
    seen = kept.setdefault('seconds', {})
    with tempfile.TemporaryDirectory() as made:
        directory, oldest = pathlib.Path(made), next(iter(trees.values()))
        encoder, weights = str(directory / 'encoder'), str(directory / 'resnet18.pt')
        seconds(oldest, '-m', 'simclr_jax.main', '--config=configs/smoke.py:smoke', f'--workdir={encoder}',
                '--config.encoder.depth=18', '--config.encoder.width=1.0', '--config.encoder.stem=imagenet',
                '--config.num_train_steps=4', '--config.data.test_split=none')
        has_torch = not subprocess.run([sys.executable, '-c', 'import timm, torch; torch.save('
                                        f'timm.create_model("resnet18", num_classes=0).state_dict(), {weights!r})'],
                                       capture_output=True).returncode
        for _ in range(arguments.rounds):
            for name, tree in trees.items():
                for what, value in measure(name, tree, encoder, directory).items():
                    seen.setdefault(what, {}).setdefault(name, []).append(value)
            for state in ('cold', 'warm') if has_torch else ():
                seen[f'`load_encoder` and first features, {state}'].setdefault('PyTorch and timm', []).append(
                    seconds(str(ROOT), '-c', TORCH.format(path=weights)))
            path.write_text(json.dumps(kept, indent=1) + '\n')


if __name__ == '__main__':
    main()
