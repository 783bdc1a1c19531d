"""Nothing is lost: a run that was killed or interrupted goes on from its last checkpoint, bit for bit."""

import concurrent.futures
import json
import os
import signal
import subprocess
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from simclr_jax.training import checkpoint

STEPS = 18
METHODS = {'simclr': set(), 'moco_v2': {'target', 'queue', 'pointer'}, 'byol': {'target'}}
# One with the data set on the device, one with crops made on the host, one with views made there.
DATA = {'simclr': (), 'moco_v2': ('--config.data.source=folder:{folder}',),
        'byol': ('--config.data.source=folder:{folder}', '--config.data.augment_on=host')}
SETTINGS = (f'--config.num_train_steps={STEPS}', '--config.batch_size=16', '--config.augment.image_size=16',
            '--config.encoder.width=0.0625', '--config.data.train_split=train[:128]',
            '--config.checkpoint.every_epochs=0.25',                                    # every 2 steps
            '--config.log.every_steps=1', '--config.data.test_split=none',
            '--config.optimizer.learning_rate=0.5')


def arguments(workdir, method='simclr'):
    data = [option.format(folder=workdir.parent / 'images') for option in DATA[method]]
    return f'--config=configs/smoke.py:smoke,method={method}', *SETTINGS, *data, f'--workdir={workdir}'


def last_state(workdir):
    """The last step, and every leaf of the state saved there, the optimiser's among them."""
    with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
        step = checkpointer.latest_step()
    return step, ocp.PyTreeCheckpointer().restore(workdir / 'checkpoints' / str(step) / 'state')


def steps_logged(workdir):
    return [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


class Killed(NamedTuple):
    status: int                 # of the process that was killed
    step: int | None            # of the last checkpoint that it left
    resumed: subprocess.CompletedProcess


@pytest.fixture(scope='module')
def runs(run_main, tmp_path_factory):
    """{method: (future of the straight run, workdir, of the killed run, workdir)}; two at a time."""
    folder = tmp_path_factory.getbasetemp() / 'images'
    folder.mkdir()
    for number, image in enumerate(make_shapes('train', 24, 128)[0]):
        Image.fromarray(image[number % 2:]).save(folder / f'{number:03}.png')   # two sizes: not in memory

    def straight(method, workdir):
        return run_main(*arguments(workdir, method))

    def killed(method, workdir):
        status = run_main(*arguments(workdir, method), signalled='9 5').returncode
        step = last_state(workdir)[0]
        return Killed(status, step, run_main(*arguments(workdir, method)))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        # All straight runs first: the others then find every program compiled.
        jobs = {(job, method): (pool.submit(job, method, workdir), workdir)
                for job in (straight, killed) for method in METHODS
                for workdir in [tmp_path_factory.mktemp(job.__name__)]}
    return {method: (*jobs[straight, method], *jobs[killed, method]) for method in METHODS}


@pytest.fixture(scope='module')
def straight(runs):
    future, workdir, _, _ = runs['simclr']
    assert future.result().returncode == 0, future.result().stderr
    return workdir


def assert_same_run(workdir, straight):
    assert last_state(workdir)[0] == last_state(straight)[0] == STEPS
    jax.tree.map(np.testing.assert_array_equal, last_state(workdir)[1], last_state(straight)[1])
    assert steps_logged(workdir) == steps_logged(straight) == list(range(1, STEPS + 1))


@pytest.mark.parametrize('method', METHODS)
def test_a_killed_run_ends_as_the_unbroken_one(method, runs):
    whole, straight, broken, workdir = runs[method]
    done, killed = whole.result(), broken.result()
    assert done.returncode == 0, done.stderr
    assert killed.status == -signal.SIGKILL and 0 < killed.step < STEPS     # killed in the middle
    assert killed.resumed.returncode == 0, killed.resumed.stderr
    assert f'resumed at step {killed.step}' in killed.resumed.stdout
    assert_same_run(workdir, straight)
    kept = last_state(straight)[1]['method_state'] or {}
    assert set(kept) == METHODS[method]                 # target and queue were compared too
    if 'pointer' in kept:
        assert kept['pointer'] == STEPS * 16 % 256


def test_sigterm_saves_the_step_it_reached_and_leaves(run_main, straight, tmp_path):
    done = run_main(*arguments(tmp_path), signalled='15 3')
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert 'Stopped by SIGTERM after step' in done.stdout and 'Traceback' not in done.stderr
    assert 3 < last_state(tmp_path)[0] < STEPS
    done = run_main(*arguments(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, straight)


def test_another_config_in_the_same_workdir_is_refused(run_main, straight):
    before = sorted(os.listdir(straight / 'checkpoints'))
    done = run_main(*arguments(straight), '--config.batch_size=32', '--config.seed=1')
    assert done.returncode == 1
    assert 'batch_size: 16 in the workdir, 32 now' in done.stderr
    assert 'seed: 0 in the workdir, 1 now' in done.stderr
    assert sorted(os.listdir(straight / 'checkpoints')) == before


def test_a_finished_run_only_measures_again(run_main, straight):
    done = run_main(*arguments(straight))
    assert done.returncode == 0, done.stderr
    assert steps_logged(straight) == list(range(1, STEPS + 1))


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(run_main, tmp_path):
    done = run_main(*arguments(tmp_path), '--config.optimizer.learning_rate=1e30',
                    '--config.optimizer.name=sgd', '--config.checkpoint.every_epochs=0.125')
    assert done.returncode == 1
    assert 'at step' in done.stderr and 'Traceback' not in done.stderr
    # The first step of the warm-up has a rate of 0: after it, all is as it was initialised.
    step, state = last_state(tmp_path)
    assert f'The last good checkpoint is that of step {step};' in done.stderr
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state['params'], state['batch_stats'])))
