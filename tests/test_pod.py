"""Two real processes, joined by jax.distributed, train as one does."""

import json
import socket
import subprocess

import jax
import numpy as np

from simclr_jax import checkpoint

ARGUMENTS = ('--config=configs/smoke.py:smoke', '--config.num_train_steps=4', '--config.log.every_steps=1',
             '--config.data.train_split=train[:128]', '--config.data.test_split=test[:100]',
             '--config.eval.knn_every_epochs=1.0', '--config.optimizer.learning_rate=0.1')


def free_port():
    with socket.socket() as listener:
        listener.bind(('localhost', 0))
        return listener.getsockname()[1]


def test_two_processes_equal_one(command, run_main, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    done = run_main(*ARGUMENTS, f'--workdir={one}', devices=4)
    assert done.returncode == 0, done.stderr

    address = f'localhost:{free_port()}'
    processes = []
    for number in range(2):
        argv, options = command(
            *ARGUMENTS, f'--workdir={two}', '--distributed', f'--coordinator={address}',
            '--num_processes=2', f'--process_id={number}', devices=2)
        processes.append(subprocess.Popen(argv, **options))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert 'step 4/4' in outputs[0][0] and 'step 4/4' not in outputs[1][0]     # the lead alone speaks

    rows = [[json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
            for workdir in (one, two)]
    for before, after in zip(*rows, strict=True):
        for name in set(before) - {'time', 'images_per_second'}:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-5, err_msg=name)
    states = []
    for workdir in (one, two):
        with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
            states.append(checkpointer.restore_encoder())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5), *states)
