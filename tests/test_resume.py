"""Nothing is lost: a run that was killed or interrupted goes on from its last checkpoint, bit for bit."""

import concurrent.futures
import json
import signal
import subprocess
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from tests.stores import last_state

STEPS = 12
METHODS = {'simclr': set(), 'moco_v2': {'target', 'queue', 'pointer'}, 'byol': {'target'}}
ONE_BLOCK = '--config.encoder.name=tests.encoders:OneBlock'
# One with the ResNet of the recipe and the data set on the device, one with crops made on the host, one with views
# made there.
DATA = {'simclr': (), 'moco_v2': ('--config.data.source=folder:{folder}', '--config.method.queue_size=80', ONE_BLOCK),
        'byol': ('--config.data.source=folder:{folder}', '--config.data.augment_on=host', ONE_BLOCK)}
SETTINGS = (f'--config.num_train_steps={STEPS}', '--config.batch_size=16', '--config.augment.image_size=16',
            '--config.encoder.width=0.0625', '--config.data.train_split=train[:128]',
            '--config.checkpoint.every_epochs=0.25',                                    # every 2 steps
            '--config.log.every_steps=1', '--config.data.test_split=none',
            '--config.optimizer.learning_rate=0.5')


def arguments(workdir, method='simclr'):
    data = [option.format(folder=workdir.parent / 'images') for option in DATA[method]]
    return f'--config=configs/smoke.py:smoke,method={method}', *SETTINGS, *data, f'--workdir={workdir}'


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


# SIGKILL, or SIGTERM, which saves the step it finds; each once the run has logged a step.
SIGNALS = {'simclr': '9 5', 'moco_v2': '9 5', 'byol': '15 3'}


class Broken(NamedTuple):
    stopped: subprocess.CompletedProcess
    step: int | None            # of the last checkpoint that it left
    resumed: subprocess.CompletedProcess


@pytest.fixture(scope='module')
def runs(run_main, tmp_path_factory):
    """{method: (future of the straight run, workdir, of the broken run, workdir)}; two at a time."""
    folder = tmp_path_factory.getbasetemp() / 'images'
    folder.mkdir()
    for number, image in enumerate(make_shapes('train', 24, 128)[0]):
        Image.fromarray(image[number % 2:]).save(folder / f'{number:03}.png')   # two sizes: not in memory

    def straight(method, workdir):
        return run_main(*arguments(workdir, method))

    def broken(method, workdir):
        stopped = run_main(*arguments(workdir, method), signalled=SIGNALS[method])
        step = last_state(workdir)[0]
        return Broken(stopped, step, run_main(*arguments(workdir, method)))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        # All straight runs first: the others then find every program compiled.
        jobs = {(job, method): (pool.submit(job, method, workdir), workdir)
                for job in (straight, broken) for method in METHODS
                for workdir in [tmp_path_factory.mktemp(job.__name__)]}
    return {method: (*jobs[straight, method], *jobs[broken, method]) for method in METHODS}


def assert_same_run(workdir, straight):
    assert last_state(workdir)[0] == last_state(straight)[0] == STEPS
    jax.tree.map(np.testing.assert_array_equal, last_state(workdir)[1], last_state(straight)[1])
    for each in (workdir, straight):
        assert [row['step'] for row in rows(each)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize('method', METHODS)
def test_a_run_that_was_stopped_ends_as_the_unbroken_one(method, runs):
    whole, straight, broken, workdir = runs[method]
    done, (stopped, step, resumed) = whole.result(), broken.result()
    assert done.returncode == 0, done.stderr
    if method == 'byol':
        assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
        assert f'Stopped by SIGTERM after step {step};' in stopped.stdout and 'Traceback' not in stopped.stderr
    else:
        assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert 0 < step < STEPS                                                 # in the middle
    assert resumed.returncode == 0, resumed.stderr
    assert f'resumed at step {step}' in resumed.stdout
    assert_same_run(workdir, straight)
    for row in rows(straight):          # how long the device waited for its input: not at all where it holds it
        assert 0 <= row['input_wait_share'] <= 1 and (row['input_wait_ms'] > 0) == (method != 'simclr')
    kept = last_state(straight)[1]['method_state'] or {}
    assert set(kept) == METHODS[method]                 # target and queue were compared too
    if 'pointer' in kept:
        assert kept['pointer'] == STEPS * 16 % 80          # it has wrapped around
