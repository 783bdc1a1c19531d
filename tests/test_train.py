"""pretrain() in this process: what it refuses, what it measures, and data of every kind."""

import json

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config, smoke
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.linear import linear
from simclr_jax.train import pretrain


def small_config(source='shapes', train_split='train[:64]', test_split='test[:40]', **overrides):
    config = smoke(base_config())
    config.update({'batch_size': 16, 'num_train_steps': 2})
    config.data.update({'source': source, 'train_split': train_split, 'test_split': test_split})
    config.encoder.width = 0.0625
    config.augment.image_size = 16
    config.schedule.warmup_epochs = 0.0
    config.optimizer.learning_rate = 0.1
    config.linear.update({'batch_size': 16, 'num_epochs': 1.0})
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize('overrides, sentence', [
    ({'method.name': 'simclrr'}, "method.name is 'simclrr'"),
    ({'encoder.depth': 20}, 'unknown encoder depth 20'),
    ({'encoder.dtype': 'float16'}, "unknown dtype 'float16'"),
    ({'optimizer.name': 'lamb'}, "unknown optimizer 'lamb'"),
    ({'optimizer.weight_decay_groups': (('probes', 0.1),)}, 'probes'),
    ({'schedule.warmup_epochs': 90.0}, 'warmup_steps'),
    ({'batch_size': 60}, 'batch_size 60 is not divisible by the 8 devices'),
    ({'batch_size': 1024}, 'has only 64 images: choose a smaller batch'),
    ({'eval.layer': 9}, '9'),
    ({'eval.layer': 9, 'eval.online_probe': False}, 'layer is 9: the head has layers 0'),
    ({'data.train_split': 'training'}, "no split 'training'"),
    ({'data.test_split': 'testing'}, "no split 'testing'"),
    ({'data.source': 'cifar1'}, "There is no data source 'cifar1'"),
    ({'augment.jitter.probability': 2.0}, 'probability'),
    ({'augment.view2': {'blurr': {'probability': 0.1}}}, "'blurr'"),
], ids=lambda value: ' '.join(value) if isinstance(value, dict) else '')
def test_what_cannot_train_is_named_before_anything_is_written(overrides, sentence, tmp_path):
    view2 = overrides.pop('augment.view2', {})
    config = small_config(**overrides)
    config.augment.view2 = view2
    with pytest.raises(ValueError, match=sentence):
        pretrain(config, str(tmp_path / 'workdir'))
    assert not (tmp_path / 'workdir').exists()


def save_npz(path, *, labels=None, test_labels=None, size=16):
    images, classes = make_shapes('train', size, 64)
    test_images, test_classes = make_shapes('test', size, 40)
    arrays = {'train_images': images, 'test_images': test_images}
    if labels:
        arrays['train_labels'] = classes.astype(labels)
    if test_labels:
        arrays['test_labels'] = test_classes.astype(test_labels)
    np.savez(path, **arrays)
    return f'arrays:{path}'


def test_labels_of_any_integer_type_are_measured_and_probed(tmp_path):
    source = save_npz(tmp_path / 'set.npz', labels=np.uint8, test_labels=np.uint8)
    config = small_config(source, 'train', '')
    results = pretrain(config, str(tmp_path / 'w'))
    assert set(results) == {'random', 'pretrained'}
    assert all(0 <= value <= 1 for row in results.values() for value in row.values())
    assert set(linear(config, str(tmp_path / 'w'))) == {'random', 'pretrained'}
    rows = [json.loads(line) for line in (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()]
    assert [(row['evaluation'], row['encoder']) for row in rows] == [
        ('frozen', 'random'), ('frozen', 'pretrained'), ('linear', 'random'), ('linear', 'pretrained')]


@pytest.mark.parametrize('labels, sentence', [
    (None, 'No labels: the online probe, kNN and the linear probe are off.'),
    (np.int64, 'No labels in test: kNN and the linear probe are off.'),
], ids=['no labels', 'no test labels'])
def test_what_cannot_be_measured_is_said_and_training_goes_on(labels, sentence, tmp_path, capsys):
    source = save_npz(tmp_path / 'set.npz', labels=labels)
    assert pretrain(small_config(source, 'train', ''), str(tmp_path / 'w')) == {}
    assert sentence in capsys.readouterr().out
    assert not (tmp_path / 'w' / 'results.jsonl').exists()


def test_a_folder_with_broken_files_trains_is_measured_and_counts_them(tmp_path, capsys):
    for split, count in (('train', 64), ('test', 20)):
        images, labels = make_shapes(split, 20, count)
        for number, (image, label) in enumerate(zip(images, labels)):
            path = tmp_path / 'images' / split / f'class{label % 2}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (tmp_path / 'images' / 'train' / 'class0' / 'broken.jpg').write_bytes(b'no image')
    (tmp_path / 'images' / 'test' / 'class1' / 'empty.png').write_bytes(b'')
    results = pretrain(small_config(f'folder:{tmp_path}/images', 'train', ''), str(tmp_path / 'w'))
    assert set(results) == {'random', 'pretrained'}
    said = capsys.readouterr().out
    assert '2 files could not be read and were skipped: class0/broken.jpg, class1/empty.png' in said


def test_the_raw_pixels_stand_beside_the_encoders_if_asked_for(tmp_path):
    config = small_config(**{'eval.pixel_floor': True, 'eval.linear_at_end': False})
    results = pretrain(config, str(tmp_path))
    assert list(results) == ['raw pixels', 'random', 'pretrained']
    assert all(set(row) == {'knn_accuracy'} for row in results.values())


def test_a_failed_start_does_not_claim_the_workdir(tmp_path):
    """Only a checkpoint binds a workdir to its config: before one, another config may try."""
    config = small_config(**{'encoder.norm_groups': 3})
    with pytest.raises(ValueError, match='norm_groups=3'):
        pretrain(config, str(tmp_path))
    pretrain(small_config(), str(tmp_path))
