"""Kills one of two processes at random moments; the launcher starts both again; is the end the same?

    python benchmarks/pod_in_a_box.py [--trials=3] [--steps=60]

Each trial trains configs/smoke.py with launch/gpu.sh in 2 processes of 4 simulated CPU devices each,
kills one of them with SIGKILL at a random moment (in a step, in a save, in a kNN evaluation: whatever
runs then), leaves the rest to the launcher, and compares every bit of the last checkpoint with that of
a run that was never killed: parameters, BatchNorm statistics, optimiser state, step. A run that ended
before the kill does not count and is drawn again. Prints a table, writes benchmarks/pod_in_a_box.json,
and exits with 1 unless all trials are identical.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from runs import ROOT, final_state

_RESTARTED = 'status 137; all start again'       # what gpu.sh says after a SIGKILL


def start(workdir, steps):
    """The launcher, running; it and its processes write to workdir/../<name>.log."""
    # More restarts than kills: on a busy machine two processes may miss each other at the start.
    command = ['bash', 'launch/gpu.sh', '--no-install', '--processes=2', '--cpu-devices=4',
               '--restarts=5', '--config=configs/smoke.py', f'--workdir={workdir}',
               f'--config.num_train_steps={steps}', '--config.batch_size=64', '--config.log.every_steps=1',
               '--config.data.train_split=train[:1000]', '--config.data.test_split=test[:200]',
               '--config.checkpoint.every_epochs=0.2',          # every 3 steps
               '--config.eval.knn_every_epochs=1.0',            # every 16
               '--config.eval.linear_at_end=false', '--config.eval.pixel_floor=false']
    with open(workdir.with_suffix('.log'), 'w') as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log,
                                env=os.environ | {'PYTHON': sys.executable})


def process_of(launcher, number):
    """The process id of one of the launcher's two."""
    listing = subprocess.run(['ps', '-Aww', '-o', 'pid=', '-o', 'ppid=', '-o', 'args='], text=True,
                             stdout=subprocess.PIPE).stdout
    found = [int(line.split()[0]) for line in listing.splitlines()
             if line.split()[1] == str(launcher.pid) and f'--process_id={number}' in line]
    return found[0] if found else None


def last_step(workdir):
    """The last step in metrics.jsonl; 0 before there is one, or in the middle of a write."""
    try:
        return json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])['step']
    except (OSError, IndexError, ValueError):
        return 0


def wait_for(condition, launcher):
    while not condition() and launcher.poll() is None:
        time.sleep(0.01)


def trial(workdir, steps, draw):
    """One killed run to its end; None if it ended before the kill."""
    victim, after = draw.randint(0, 1), draw.randint(1, steps - 2)
    launcher = start(workdir, steps)
    wait_for(lambda: last_step(workdir) >= after, launcher)
    time.sleep(draw.random() / 5)
    pid = process_of(launcher, victim)
    if pid is None:
        launcher.wait()
        return None
    os.kill(pid, signal.SIGKILL)
    killed, reached = time.time(), last_step(workdir)
    log = workdir.with_suffix('.log')
    wait_for(lambda: _RESTARTED in log.read_text(), launcher)
    noticed = time.time() - killed
    if launcher.wait():
        raise RuntimeError(log.read_text())
    if _RESTARTED not in log.read_text():
        return None
    resumed = re.search(r'resumed at step ([\d,]+)/', log.read_text().split(_RESTARTED)[1])
    return {'process': victim, 'killed_after': reached, 'seconds_to_restart': round(noticed, 1),
            'resumed_from': int(resumed[1].replace(',', '')) if resumed else 0}


def trials(folder, options, straight):
    draw, number = random.Random(options.seed), 0
    while number < options.trials:
        workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
        row = trial(workdir, options.steps, draw)
        if row is None:
            continue
        state = final_state(workdir, options.steps)
        row['identical'] = len(state) == len(straight) and all(map(np.array_equal, state, straight))
        print(f'{number:>5}  {row["process"]:>7}  {row["killed_after"]:>12}  {row["seconds_to_restart"]:>13}'
              f'  {row["resumed_from"]:>12}  {row["identical"]}', flush=True)
        yield row
        number += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--trials', type=int, default=3)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unbroken = pathlib.Path(folder) / 'unbroken'
        if start(unbroken, options.steps).wait():
            sys.exit(unbroken.with_suffix('.log').read_text())
        straight = final_state(unbroken, options.steps)
        print(f'{"trial":>5}  {"process":>7}  {"killed after":>12}  {"restarted (s)":>13}'
              f'  {"resumed from":>12}  identical', flush=True)
        rows = list(trials(folder, options, straight))
    same = sum(row['identical'] for row in rows)
    print(f'{same} of {len(rows)} runs are bit-identical to the unbroken one, '
          f'{len(straight)} arrays each')
    result = {'seed': options.seed, 'steps': options.steps, 'arrays': len(straight), 'trials': rows,
              'processes': 2, 'devices_per_process': 4, 'python': platform.python_version(),
              'jax': jax.__version__, 'cores': os.cpu_count()}
    (ROOT / 'benchmarks' / 'pod_in_a_box.json').write_text(json.dumps(result, indent=1) + '\n')
    sys.exit(same != len(rows))


if __name__ == '__main__':
    main()
