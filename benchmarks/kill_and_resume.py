"""Kills a run with SIGKILL at random moments, restarts it, and compares with one that was never killed.

    python benchmarks/kill_and_resume.py [--trials=10] [--steps=60]

Each trial trains configs/smoke.py in a process of its own, kills it at a random moment (between two
steps, in a step, in a save, in a kNN evaluation: whatever runs then), starts the same command again,
and compares every bit of the last checkpoint: parameters, BatchNorm statistics, optimiser state,
step. A run that ended before the kill does not count and is drawn again. Prints a table, writes
benchmarks/kill_and_resume.json, and exits with 1 unless all trials are identical.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from runs import ROOT, final_state


def command(workdir, steps):
    return [sys.executable, '-m', 'simclr_jax.main', '--config=configs/smoke.py', f'--workdir={workdir}',
            f'--config.num_train_steps={steps}', '--config.batch_size=64', '--config.log.every_steps=1',
            '--config.data.train_split=train[:1000]', '--config.data.test_split=test[:200]',
            '--config.checkpoint.every_epochs=0.2',          # every 3 steps
            '--config.eval.knn_every_epochs=1.0',            # every 16
            '--config.eval.linear_at_end=false', '--config.eval.pixel_floor=false']


def start(workdir, steps):
    return subprocess.Popen(command(workdir, steps), cwd=ROOT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def last_step(workdir):
    """The last step in metrics.jsonl; 0 before there is one, or in the middle of a write."""
    try:
        return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])['step']
    except (OSError, IndexError, ValueError):
        return 0


def kill(workdir, steps, after_step, delay):
    """Starts a run and kills it `delay` seconds after it logged `after_step`; False if it had ended."""
    process = start(workdir, steps)
    while last_step(workdir) < after_step and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def restart(workdir, steps):
    """Runs the same command to its end; the step that it went on from."""
    done = subprocess.run(command(workdir, steps), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    words = [line.split() for line in done.stdout.splitlines() if line.startswith('resumed at step')]
    return int(words[0][3].split('/')[0].replace(',', '')) if words else 0


def trials(folder, options, straight):
    draw, number = random.Random(options.seed), 0
    while number < options.trials:
        workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
        if not kill(workdir, options.steps, draw.randint(1, options.steps - 2), draw.random() / 5):
            continue
        reached, resumed = last_step(workdir), restart(workdir, options.steps)
        state = final_state(workdir, options.steps)
        identical = len(state) == len(straight) and all(map(np.array_equal, state, straight))
        print(f'{number:>5}  {reached:>12}  {resumed:>12}  {identical}', flush=True)
        yield {'killed_after': reached, 'resumed_from': resumed, 'identical': identical}
        number += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--trials', type=int, default=10)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unbroken = pathlib.Path(folder) / 'unbroken'
        start(unbroken, options.steps).wait()
        straight = final_state(unbroken, options.steps)
        print(f'{"trial":>5}  {"killed after":>12}  {"resumed from":>12}  identical')
        rows = list(trials(folder, options, straight))
    same = sum(row['identical'] for row in rows)
    print(f'{same} of {len(rows)} runs are bit-identical to the unbroken one, '
          f'{len(straight)} arrays each')
    result = {'seed': options.seed, 'steps': options.steps, 'arrays': len(straight), 'trials': rows,
              'python': platform.python_version(), 'jax': jax.__version__, 'cores': os.cpu_count()}
    (ROOT / 'benchmarks' / 'kill_and_resume.json').write_text(json.dumps(result, indent=1) + '\n')
    sys.exit(same != len(rows))


if __name__ == '__main__':
    main()
