"""Kills a run with SIGKILL at random moments, restarts it, and compares with the run that was never killed.

    python benchmarks/kill_and_resume.py [--trials=10] [--steps=40]

Each trial trains configs/smoke.py in a process of its own, kills it at a random step (between two
steps, in a step, in the middle of a save: whatever runs then), starts the same command again, and
compares every bit of the last checkpoint: parameters, BatchNorm statistics, optimiser state, step.
Prints a table, writes benchmarks/kill_and_resume.json, exits with 1 unless all trials are identical.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parent.parent


def command(workdir, steps):
    return [sys.executable, '-m', 'simclr_jax.main', '--config=configs/smoke.py', f'--workdir={workdir}',
            f'--config.num_train_steps={steps}', '--config.batch_size=64', '--config.log.every_steps=1',
            '--config.data.train_split=train[:1000]', '--config.data.test_split=',
            '--config.checkpoint.every_epochs=0.2']          # every 3 steps


def start(workdir, steps):
    return subprocess.Popen(command(workdir, steps), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def last_step(workdir):
    try:
        return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])['step']
    except (OSError, IndexError, ValueError):
        return 0


def final_state(workdir, steps):
    path = workdir / 'checkpoints' / str(steps) / 'state'
    return jax.tree.leaves(ocp.PyTreeCheckpointer().restore(path))


def trial(workdir, steps, kill_at, delay):
    """Kills after step `kill_at` and `delay` seconds more, restarts; (step reached, step resumed from)."""
    process = start(workdir, steps)
    while last_step(workdir) < kill_at and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = last_step(workdir)
    done = subprocess.run(command(workdir, steps), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resumed = [line for line in done.stdout.splitlines() if line.startswith('resumed at step')]
    return reached, int(resumed[0].split()[-1].split('/')[0].replace(',', '')) if resumed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--trials', type=int, default=10)
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        start(folder / 'straight', options.steps).wait()
        straight = final_state(folder / 'straight', options.steps)
        print(f'{"trial":>5}  {"killed after":>12}  {"resumed from":>12}  identical')
        for number in range(options.trials):
            workdir = folder / f'trial{number}'
            reached, resumed = trial(workdir, options.steps, draw.randint(1, options.steps - 2), draw.random() / 5)
            state = final_state(workdir, options.steps)
            identical = len(state) == len(straight) and all(map(np.array_equal, state, straight))
            rows.append({'killed_after': reached, 'resumed_from': resumed, 'identical': identical})
            print(f'{number:>5}  {reached:>12}  {resumed:>12}  {identical}', flush=True)
    same = sum(row['identical'] for row in rows)
    print(f'{same} of {len(rows)} runs are bit-identical to the unbroken one')
    result = {'seed': options.seed, 'steps': options.steps, 'trials': rows, 'arrays': len(straight),
              'jax': jax.__version__, 'cores': os.cpu_count()}
    (ROOT / 'benchmarks' / 'kill_and_resume.json').write_text(json.dumps(result, indent=1) + '\n')
    sys.exit(same != len(rows))


if __name__ == '__main__':
    main()
