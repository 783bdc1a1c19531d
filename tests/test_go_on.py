"""What a run says of the workdir it finds: data that changed, damaged checkpoints, warm-ups, floors."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from simclr_jax.runtime.lock import WorkdirLock
from simclr_jax.train import pretrain
from tests.runs import small_config
from tests.stores import last_state

pytestmark = pytest.mark.usefixtures('one_device')


def config(**overrides):
    return small_config(**{'num_train_steps': 4, 'checkpoint.every_epochs': 0.25, **overrides})


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    pretrain(config(), str(workdir))
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'w')


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('damage', ['no metadata', 'empty step', 'cut files'])
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_last_whole_one(damage, workdir, capsys):
    last = workdir / 'checkpoints' / '4'
    if damage == 'empty step':
        shutil.rmtree(last)
        last.mkdir()
    for path in last.rglob('*'):
        if damage == 'no metadata' and path.name == '_METADATA':
            path.unlink()
        elif damage == 'cut files' and path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    pretrain(config(), str(workdir))
    shown = capsys.readouterr().out
    assert 'resumed at step 3/4' in shown
    assert 'The checkpoint of step 4 is damaged' in shown
    assert (workdir / 'checkpoints' / '4').is_dir() and (workdir / 'checkpoints' / 'damaged.4').is_dir()


def test_without_a_whole_checkpoint_nothing_is_overwritten(workdir):
    for path in (workdir / 'checkpoints').rglob('_METADATA'):
        path.unlink()
    before = sorted(os.listdir(workdir / 'checkpoints'))
    with pytest.raises(ValueError, match='No checkpoint in .* can be read'):
        pretrain(config(), str(workdir))
    assert sorted(os.listdir(workdir / 'checkpoints')) == before


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r'at step \d.*The last good checkpoint is that of step') as error:
        pretrain(config(**{'optimizer.learning_rate': 1e30, 'optimizer.name': 'sgd', 'log.every_steps': 1,
                           'schedule.warmup_epochs': 0.25}), str(tmp_path))
    # The first step of the warm-up has a rate of 0: after it, all is as it was initialised.
    step, state = last_state(tmp_path)
    assert f'that of step {step};' in str(error.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state['params'], state['batch_stats'])))


def test_an_empty_config_is_named_and_so_are_checkpoints_without_one(workdir):
    (workdir / 'config.json').write_text('')
    with pytest.raises(ValueError, match='config.json is damaged'):
        pretrain(config(), str(workdir))
    (workdir / 'config.json').unlink()
    with pytest.raises(ValueError, match='has checkpoints but no config.json: restore it'):
        pretrain(config(), str(workdir))


def test_another_config_in_the_same_workdir_is_refused_with_or_without_a_checkpoint(workdir):
    before = sorted(workdir.rglob('*'))
    with pytest.raises(ValueError, match=r'batch_size: 16 in the workdir, 32 now\n  seed: 0 in the workdir, 1 now'):
        pretrain(config(seed=1, batch_size=32), str(workdir))
    assert sorted(workdir.rglob('*')) == before
    shutil.rmtree(workdir / 'checkpoints')
    with pytest.raises(ValueError, match='seed: 0 in the workdir, 1 now'):
        pretrain(config(seed=1), str(workdir))


def test_two_runs_in_one_workdir_are_refused(workdir):
    other = WorkdirLock(str(workdir), is_lead=True)
    other.acquire()
    before = (workdir / 'metrics.jsonl').read_text()
    with other, pytest.raises(ValueError, match='Another run is using'):
        pretrain(config(), str(workdir))
    assert (workdir / 'metrics.jsonl').read_text() == before


def test_a_finished_run_only_measures_again_and_its_floors_once(workdir):
    before = [row for row in rows(workdir) if 'loss' in row]
    kept = json.loads((workdir / 'floors.json').read_text())
    kept['floors']['random']['knn_accuracy'] = 0.4321       # who measures again finds another number
    (workdir / 'floors.json').write_text(json.dumps(kept))
    results = pretrain(config(), str(workdir))
    assert results['random'] == {'knn_accuracy': 0.4321} and set(results) == {'random', 'pretrained'}
    assert [row for row in rows(workdir) if 'loss' in row] == before
    results = pretrain(config(**{'eval.knn_k': 5}), str(workdir))       # other settings: they are measured anew
    assert results['random'] != {'knn_accuracy': 0.4321}


def save_images(folder, count):
    for number, image in enumerate(make_shapes('train', 20, count)[0]):
        path = folder / 'train' / f'class{number % 2}' / f'{number:03}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_a_moved_folder_resumes_and_a_grown_one_is_refused(tmp_path):
    def settings(folder):
        return config(**{'data.source': f'folder:{folder}', 'data.train_split': 'train',
                         'data.test_split': 'none'})

    save_images(tmp_path / 'a', 40)
    pretrain(settings(tmp_path / 'a'), str(tmp_path / 'w'))
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    pretrain(settings(tmp_path / 'b'), str(tmp_path / 'w'))
    save_images(tmp_path / 'b', 60)
    with pytest.raises(ValueError, match='The training data of .* have changed: 40 images before, 60 now'):
        pretrain(settings(tmp_path / 'b'), str(tmp_path / 'w'))


def test_a_shortened_warm_up_and_activations_of_float32_on_a_cpu_are_said(tmp_path, capsys):
    auto = config(**{'schedule.warmup_epochs': 90.0, 'num_train_steps': 20, 'checkpoint.every_epochs': 5.0,
                     'encoder.dtype': 'auto', 'data.test_split': 'none'})
    pretrain(auto, str(tmp_path / 'w'))
    shown = capsys.readouterr().out
    assert 'schedule.warmup_epochs 90 are 360 steps, and the run has 20: the warm-up is shortened to 2.' in shown
    assert 'encoder.dtype is auto: activations are float32 here.' in shown
    kept = json.loads((tmp_path / 'w' / 'config.json').read_text())
    assert kept['encoder']['dtype'] == 'float32'
    kept['encoder']['dtype'] = 'bfloat16'               # a run that was begun elsewhere stays as it is
    (tmp_path / 'w' / 'config.json').write_text(json.dumps(kept))
    pretrain(auto, str(tmp_path / 'w'))
    assert json.loads((tmp_path / 'w' / 'config.json').read_text())['encoder']['dtype'] == 'bfloat16'
