"""A pod in a box: real processes, joined by jax.distributed, with 2 simulated devices each.

They train as one process does, go on after one of them was killed or told to stop, and fail together.
"""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.stores import last_state

STEPS = 12
ARGUMENTS = ('--config=configs/smoke.py:smoke', f'--config.num_train_steps={STEPS}', '--config.batch_size=32',
             '--config.augment.image_size=16', '--config.encoder.name=tests.encoders:OneBlock',
             '--config.data.train_split=train[:64]', '--config.log.every_steps=1',
             '--config.checkpoint.every_epochs=1.0',                                        # every 2 steps
             '--config.optimizer.learning_rate=0.02', '--config.augment.jitter.probability=0',
             '--config.augment.grey.probability=0', '--config.augment.blur.probability=0')      # quickly compiled
MEASURED = ('--config.data.test_split=test[:100]', '--config.eval.knn_every_epochs=6.0',    # at 12 only
            '--config.eval.linear_at_end=false', '--config.eval.pixel_floor=false')
NOT_MEASURED = ('--config.data.test_split=none',)       # it changes no parameter, and takes as long again


@pytest.fixture(scope='module')
def start_pod(command):
    """start_pod(workdir, *arguments, signalled='') -> the launcher of 2 processes with 2 devices, running.

    `signalled` as in tests/signals.py; then they start again up to 3 times.
    """
    def start(workdir, *arguments, signalled=''):
        _, keywords = command()
        keywords['env'] |= {'PYTHON': sys.executable, 'SIGNAL': signalled}
        if signalled:
            arguments = *arguments, "--config.log.writers=('tests.signals:Send',)"
        return subprocess.Popen(
            ['bash', 'launch/gpu.sh', '--no-install', '--processes', '2', '--cpu-devices', '2',
             f'--restarts={3 if signalled else 0}', *ARGUMENTS, *arguments, f'--workdir={workdir}'], **keywords)

    return start


@pytest.fixture(scope='module')
def unbroken(start_pod, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('unbroken')
    launcher = start_pod(workdir, *MEASURED)
    output, error = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, error
    assert output.count(f'step {STEPS}/{STEPS}  loss') == 1         # the lead alone speaks
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_close(workdir, unbroken):
    """Another number of devices adds in another order: equal up to what training makes of rounding."""
    for before, after in zip(rows(unbroken), rows(workdir)):      # kNN comes last, if at all
        for name in (set(before) & set(after)) - {'time', 'images_per_second'}:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-3, err_msg=name)
    (step, state), (last, expected) = last_state(workdir), last_state(unbroken)
    assert step == last == STEPS
    for name in ('params', 'batch_stats'):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4),
                     expected[name], state[name])


def test_two_processes_equal_one(unbroken, run_main, tmp_path):
    done = run_main(*ARGUMENTS, *MEASURED, f'--workdir={tmp_path}', devices=1)
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path, unbroken)
    assert [row.keys() for row in rows(tmp_path)] == [row.keys() for row in rows(unbroken)]
    assert 'knn_accuracy' in rows(unbroken)[-1]         # the processes share out the queries


def test_one_of_two_processes_is_killed_and_the_launcher_ends_as_if_nothing_had_been(
        unbroken, start_pod, tmp_path):
    launcher = start_pod(tmp_path, *NOT_MEASURED, signalled='9 5 1')
    output, error = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, error
    assert 'status 137; all start again' in error
    assert f'resumed at step 4/{STEPS}' in output or f'resumed at step 2/{STEPS}' in output
    assert last_state(tmp_path)[0] == STEPS
    jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path)[1], last_state(unbroken)[1])
    assert [row['step'] for row in rows(tmp_path)] == list(range(1, STEPS + 1))


def test_sigterm_to_one_process_saves_on_all_and_another_device_count_goes_on(
        unbroken, start_pod, run_main, tmp_path):
    launcher = start_pod(tmp_path, *NOT_MEASURED, signalled='15 2 1')
    output, error = launcher.communicate(timeout=500)
    assert launcher.returncode == 143, error
    assert 'Traceback' not in error
    saved = last_state(tmp_path)[0]
    assert saved in (6, 11) and f'Stopped by SIGTERM after step {saved}' in output
    done = run_main(*ARGUMENTS, *NOT_MEASURED, f'--workdir={tmp_path}', devices=1)
    assert done.returncode == 0, done.stderr
    assert f'resumed at step {saved}/{STEPS}' in done.stdout
    assert [row['step'] for row in rows(tmp_path)] == list(range(1, STEPS + 1))
    assert_close(tmp_path, unbroken)


def test_a_failure_on_one_host_is_told_on_all(command, tmp_path):
    with socket.socket() as listener:
        listener.bind(('localhost', 0))
        port = listener.getsockname()[1]
    processes = []
    for number, source in enumerate(['shapes', 'folder:/nowhere']):
        argv, options = command(
            *ARGUMENTS, f'--workdir={tmp_path / "workdir"}', f'--config.data.source={source}', '--multihost',
            f'--coordinator=localhost:{port}', '--num_processes=2', f'--process_id={number}')
        processes.append(subprocess.Popen(argv, **options))
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    host = socket.gethostname()
    sentence = "data.source is folder:/nowhere: there is no directory '/nowhere'."
    assert f'error: process 1 of 2 ({host}): {sentence}' in errors[1]
    assert f'error: process 0 of 2 ({host}): stopped because process 1 of 2 ({host}) failed: {sentence}' in errors[0]
    assert 'Traceback' not in errors[0] + errors[1]


def test_half_a_set_of_options_is_refused(run_main, tmp_path):
    done = run_main(*ARGUMENTS, f'--workdir={tmp_path}', '--multihost', '--process_id=0')
    assert done.returncode == 1
    assert done.stderr.strip().endswith('--coordinator, --num_processes and --process_id go together.')
