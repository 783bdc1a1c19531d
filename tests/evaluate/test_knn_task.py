import json
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import simclr_jax
from simclr_jax.data.shapes import make_shapes
from simclr_jax.data.source import Source
from simclr_jax.evaluate.evaluated import load_evaluated
from simclr_jax.evaluate.knn_task import knn
from simclr_jax.train import pretrain
from tests.evaluate.runs import small_config, task_config

pytestmark = pytest.mark.usefixtures('one_device')


def test_knn_of_a_workdir_stands_beside_its_floors_with_all_that_it_is_a_number_of(workdir, tmp_path, capsys):
    results = knn(task_config('knn', workdir, k=(20, 1)), str(tmp_path))
    assert list(results) == ['raw pixels', 'random', 'pretrained']
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['encoder'] for row in rows] == list(results)
    for row in rows:
        assert (row['evaluation'], row['pretrained'], row['step']) == ('knn', workdir, 2)
        assert (row['data'], row['train_split'], row['split']) == ('shapes', 'train[:128]', 'test[:64]')
        assert (row['num_train'], row['num_test']) == (128, 64) and row['seconds'] >= 0
        assert row['protocol']['temperature'] == 0.07
        for k in (1, 20):
            assert row[f'knn_accuracy_k{k}'] == results[row['encoder']][f'knn_accuracy_k{k}']
            low, high = row[f'knn_accuracy_k{k}_interval']
            assert low < row[f'knn_accuracy_k{k}'] < high
    said = capsys.readouterr().out
    assert 'kNN (k = 20) top-1 %' in said and '95 % interval' in said


def test_preprocessing_and_encoder_are_those_of_the_checkpoint(workdir, tmp_path):
    """Against scikit-learn on what `load_encoder` makes of the images; the config has other values."""
    results = knn(task_config('knn', workdir, k=(20,), pixel_floor=False), str(tmp_path))
    encoder = simclr_jax.load_encoder(workdir)
    (train, train_labels), (test, test_labels) = make_shapes('train', 16, 128), make_shapes('test', 16, 64)
    oracle = KNeighborsClassifier(20, metric='cosine', weights=lambda distance: np.exp(-distance / 0.07))
    expected = oracle.fit(encoder(train), train_labels).score(encoder(test), test_labels)
    assert results['pretrained']['knn_accuracy_k20'] == pytest.approx(expected, abs=1.5 / 64)
    assert encoder.preprocessing.image_size == 16 and encoder.preprocessing.mean == (0.4, 0.5, 0.6)


def test_raw_pixels_that_do_not_fit_are_left_out_and_it_is_noted(workdir):
    evaluated, notes = load_evaluated(task_config('knn', workdir).knn, workdir, 'knn'), []
    small, large = (Source('set', 'train', count, None) for count in (1000, 400_000))
    assert set(evaluated.encoders(small, pixel_floor=True, note=notes.append)) == {
        'raw pixels', 'random', 'pretrained'} and not notes
    both = evaluated.encoders(small, large, pixel_floor=True, note=notes.append)
    assert set(both) == {'random', 'pretrained'}
    assert notes == ['Raw pixels are not measured: they do not fit in memory.']


def test_k_is_at_most_the_training_images_and_the_home_directory_is_found(
        workdir, tmp_path, monkeypatch, capsys):
    home, name = os.path.split(workdir)
    monkeypatch.setenv('HOME', home)
    results = knn(task_config('knn', f'~/{name}', k=(20, 200, 400), pixel_floor=False), str(tmp_path))
    assert list(results['random']) == ['knn_accuracy_k20', 'knn_accuracy_k128']
    shown = capsys.readouterr().out
    assert shown.count('knn.k is (20, 200, 400), but there are 128 training images: k is 20, 128.') == 1


def test_data_that_changed_since_the_run_are_noted_and_moved_ones_are_not(tmp_path, capsys):
    def save(folder, count):
        for number, (image, label) in enumerate(zip(*make_shapes('train', 16, count))):
            for split in ('train', 'test'):
                path = folder / split / f'class{label % 2}' / f'{number}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)

    save(tmp_path / 'a', 64)
    run = str(tmp_path / 'run')
    config = small_config(source=f'folder:{tmp_path}/a', train_split='train', test_split='')
    config.update({'num_train_steps': 1, 'eval': {'linear_at_end': False}})
    pretrain(config, run)
    capsys.readouterr()
    task = task_config('knn', run, k=(5,), pixel_floor=False)
    knn(task, str(tmp_path / 'same'))
    (tmp_path / 'a').rename(tmp_path / 'b')
    task.data.source = f'folder:{tmp_path}/b'
    knn(task, str(tmp_path / 'moved'))
    assert 'have changed' not in capsys.readouterr().out
    (tmp_path / 'b').rename(tmp_path / 'a')
    save(tmp_path / 'a', 70)
    task.data.source = ''
    knn(task, str(tmp_path / 'grown'))
    printed = capsys.readouterr().out
    assert f'The training data of {run} have changed since its run: 64 images before, 70 now.' in printed


def test_k_and_data_that_will_not_do_are_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match=r'knn.k is \(5, 0\)'):
        knn(task_config('knn', workdir, k=(5, 0)), str(tmp_path / 'out'))
    config = task_config('knn', workdir)
    config.data.test_split = 'none'
    with pytest.raises(ValueError, match="no labels in data.test_split 'none': kNN needs them"):
        knn(config, str(tmp_path / 'out'))
    with pytest.raises(FileNotFoundError):
        knn(task_config('knn', str(tmp_path / 'nothing')), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
