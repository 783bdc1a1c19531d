"""Writers beside the usual ones: wandb offline, MLflow in files, a user's own, and one that fails."""

import functools
import io
import socket

import numpy as np
import pytest

from simclr_jax.config.names import resolve
from simclr_jax.runlog.writer import MetricWriter, find_writer

PICTURE = np.zeros((4, 6, 3), np.uint8)


class Kept:
    """A writer that remembers."""

    def __init__(self, workdir='', *, start_step=0, config=None):
        self.rows, self.notes, self.images, self.config = [], [], [], config

    def write(self, step, metrics):
        self.rows.append((step, metrics))

    def note(self, text):
        self.notes.append(text)

    def image(self, name, array):
        self.images.append((name, array.shape))


class Broken(Kept):
    def write(self, step, metrics):
        raise ConnectionError('no network')


def run(workdir, writers, start_step=0, steps=(1, 2)):
    stream = io.StringIO()
    with MetricWriter(workdir, total_steps=9, start_step=start_step, stream=stream,
                      writers=writers) as writer:
        for step in steps:
            writer.write(step, {'loss': step / 8, 'views': PICTURE})
        writer.note('said')
        writer.table('results', ['a'], [[1]])
    return stream.getvalue()


def named(name, workdir, start_step=0):
    return lambda: find_writer(name, resolve)(str(workdir), start_step=start_step,
                                              config={'batch_size': 64, 'log.writers': (name,)})


def test_a_users_writer_gets_rows_notes_tables_and_images(tmp_path):
    kept = Kept()
    run(tmp_path, [kept])
    assert kept.rows == [(1, {'loss': 0.125}), (2, {'loss': 0.25})]
    assert kept.images == [('views', (4, 6, 3))] * 2
    assert kept.notes[0] == 'said' and kept.notes[1].startswith('results\n')


def test_a_writer_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / 'users_writer.py').write_text(
        'class Mine:\n'
        '    def __init__(self, workdir, *, start_step, config):\n'
        '        self.rows, self.config = [], config\n'
        '    def write(self, step, metrics): self.rows.append(step)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    writer = named('users_writer:Mine', tmp_path)()
    run(tmp_path / 'w', [writer])
    assert writer.rows == [1, 2] and writer.config['batch_size'] == 64
    with pytest.raises(ValueError, match="log.writers is 'wandbb': it takes wandb, mlflow, tensorboard, and a part"):
        named('wandbb', tmp_path)()


def test_a_writer_that_fails_is_named_once_and_the_run_goes_on(tmp_path):
    kept = Kept()
    shown = run(tmp_path, [Broken(), kept], steps=(1, 2, 3))
    assert shown.count('Broken.write failed') == 1 and 'ConnectionError: no network' in shown
    assert len(kept.rows) == 3 and 'step 3/9' in shown


def test_wandb_keeps_a_run_offline_and_nothing_of_the_machine(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(socket, 'gethostname', lambda: 'a-name-of-this-host')
    run(tmp_path, [named('wandb', tmp_path)])
    run(tmp_path, [named('wandb', tmp_path, 2)], start_step=2, steps=(3,))
    files = [path for path in (tmp_path / 'wandb').rglob('*.wandb') if not path.parent.is_symlink()]
    ids = {path.stem for path in files}
    assert len(files) == 2 and len(ids) == 1            # resumed in the same run
    text = b''.join(path.read_bytes() for path in files)
    assert all(word in text for word in (b'loss', b'0.125', b'0.25', b'0.375', b'batch_size', b'said'))
    kept = {path.name for path in (tmp_path / 'wandb').rglob('*') if 'files' in path.parts and path.is_file()}
    assert not kept & {'requirements.txt', 'output.log', 'diff.patch', 'wandb-metadata.json'}
    assert b'a-name-of-this-host' not in text


def test_mlflow_keeps_a_run_in_files_and_goes_on_in_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    workdir = tmp_path / "it's"
    run(workdir, [named('mlflow', workdir)])
    writer = named('mlflow', workdir, 2)
    run(workdir, [writer], start_step=2, steps=(3,))
    again = writer()
    again.write(3, {'gradient_norm/(^|/)Dense_0': 0.5})         # more than mlflow takes in a name
    again.close()
    client = mlflow.MlflowClient(tracking_uri=f'file:{workdir}/mlruns')
    experiment = client.get_experiment_by_name('simclr_jax')
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, 'loss')
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert found.data.metrics['gradient_norm/___/_Dense_0'] == 0.5
    assert found.data.params['batch_size'] == '64' and found.info.status == 'FINISHED'


def test_a_writer_that_cannot_be_made_is_named(tmp_path):
    def no_login(workdir, *, start_step, config):
        raise RuntimeError('no login')

    with pytest.raises(ValueError, match='The writer no_login of log.writers cannot be made: RuntimeError: no login.$'):
        run(tmp_path, [functools.partial(no_login, tmp_path, start_step=0, config={})])
