"""Workdirs of an earlier version resume, load and are evaluated: those in data_files are of commit 77bd7c5.

configs/imagenet.py:smoke (SimCLR) and configs/moco_v2.py:smoke with an encoder 1/32 as wide, stopped by
SIGTERM after step 7 of 12. What the code of that commit made of them stands beside them: features, the
losses of the whole run, and the accuracy of kNN.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import simclr_jax

DATA = pathlib.Path(__file__).parent / 'data_files' / 'workdir_77bd7c5'
NUMBERS = json.loads((DATA / 'numbers.json').read_text())
CONFIGS = {'simclr': ('--config=configs/imagenet.py:smoke', '--config.optimizer.learning_rate=0.0125'),
           'moco': ('--config=configs/moco_v2.py:smoke',)}
SETTINGS = ('--config.encoder.width=0.03125', '--config.log.every_steps=1',
            '--config.checkpoint.every_epochs=0.5', '--config.eval.knn_every_epochs=0.5',
            '--config.checkpoint.keep_last=1')


@pytest.fixture
def workdir(method, tmp_path):
    with tarfile.open(DATA / f'{method}.tar.gz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path / method


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('method', CONFIGS)
def test_it_resumes_to_its_end_as_the_whole_run_of_that_version(method, workdir, run_main, monkeypatch):
    # By the operations that it was made with: each step here makes a difference of rounding ten times as large, and
    # the compiled loops, which came later and have tests of their own, round by the processor's instructions.
    monkeypatch.setenv('SIMCLR_JAX_LOOPS', 'off')
    done = run_main(*CONFIGS[method], *SETTINGS, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert 'resumed at step 7' in done.stdout
    # MoCo's recipe has antialiased crops since, which would make other losses.
    assert ('stay bicubic without antialiasing' in done.stdout + done.stderr) == (method == 'moco')
    losses = {row['step']: row['contrastive_loss'] for row in rows(workdir / 'metrics.jsonl')
              if 'loss' in row}
    assert list(losses) == list(range(1, 13))
    # Not bit for bit: another version of XLA, or another optimisation level, adds in another order.
    np.testing.assert_allclose(list(losses.values()), NUMBERS[method]['contrastive_loss'], rtol=1e-4)


@pytest.mark.parametrize('method, network', [('simclr', ''), ('moco', ''), ('moco', 'target')])
def test_its_encoder_gives_the_features_of_that_version(method, network, workdir):
    expected = np.load(DATA / 'features.npz')
    encoder = simclr_jax.load_encoder(workdir, network=network)
    name = f'{method}_{network}_features' if network else f'{method}_features'
    np.testing.assert_allclose(encoder(expected['images']), expected[name], rtol=1e-4, atol=1e-5)
    if not network:
        np.testing.assert_allclose(encoder(expected['images'], layer='projection'),
                                   expected[f'{method}_projection'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', CONFIGS)
def test_knn_finds_what_it_found(method, workdir, run_main):
    done = run_main(CONFIGS[method][0], '--config.task=knn', '--config.knn.k=20', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    found = {row['encoder']: row['knn_accuracy_k20'] for row in rows(workdir / 'results.jsonl')}
    # One image of 256 may change its class with the order of summation.
    assert found == pytest.approx(NUMBERS[method]['knn'], abs=1.5 / 256)
