"""The linear evaluation of a small run, in this process."""

import json

import jax
import numpy as np
import pytest

from simclr_jax import inputs, sharding
from simclr_jax.config import base_config, smoke
from simclr_jax.evaluate import linear as linear_module
from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.linear import linear
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.train import pretrain


def small_config(**data):
    config = smoke(base_config())
    config.num_train_steps = 2
    config.schedule.warmup_epochs = 0.0
    config.encoder.width = 0.0625
    config.augment.image_size = 16
    config.augment.mean = (0.4, 0.5, 0.6)
    config.optimizer.learning_rate = 0.1
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]', **data})
    config.linear.num_epochs = 3.0
    return config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp('run'))
    pretrain(small_config(), directory)
    return directory


def linear_config(workdir, **settings):
    """A config that says other things of the preprocessing than the run's own."""
    config = base_config()
    config.task, config.data.source = 'linear', ''
    config.linear.update({'pretrained': workdir, 'batch_size': 64, 'num_epochs': 2.0, **settings})
    return config


def test_preprocessing_and_network_come_from_the_checkpoint(workdir, tmp_path, monkeypatch):
    seen = []

    def spy(name):
        original = getattr(inputs, name)

        def call(source, **keywords):
            seen.append((name, keywords['image_size'], keywords.get('crop_proportion')))
            return original(source, **keywords)

        monkeypatch.setattr(inputs, name, call)

    spy('probe_batches')
    spy('eval_batches')
    results = linear(linear_config(workdir), str(tmp_path))
    assert {size for _, size, _ in seen} == {16} and {name for name, _, _ in seen} == {
        'probe_batches', 'eval_batches'}
    assert {proportion for name, _, proportion in seen if name == 'eval_batches'} == {1.0}
    assert load_pretrained(workdir).network.mean == (0.4, 0.5, 0.6)
    assert set(results) == {'random', 'pretrained'}
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['linear_accuracy'] for row in rows] == [
        results[name]['linear_accuracy'] for name in ('random', 'pretrained')]
    assert rows[1]['step'] == 2 and rows[1]['num_test'] == 64


def test_the_random_encoder_is_the_one_that_training_started_from(workdir, tmp_path):
    config = small_config()
    config.optimizer.learning_rate = 0.0                # nothing moves but the BatchNorm statistics
    pretrain(config, str(tmp_path))
    pretrained = load_pretrained(str(tmp_path))
    for part in ('encoder', 'head'):
        jax.tree.map(np.testing.assert_array_equal, pretrained.variables['params'][part],
                     pretrained.initial['params'][part])


def test_cached_features_serve_when_augmentation_is_off(workdir, tmp_path):
    results = linear(linear_config(workdir, augment=False), str(tmp_path))
    assert all(0 <= value <= 1 for row in results.values() for value in row.values())


def test_an_encoder_that_changes_is_caught(workdir, tmp_path, monkeypatch):
    hashes = iter(['before', 'after'])
    monkeypatch.setattr(linear_module, '_fingerprint', lambda variables: next(hashes))
    with pytest.raises(RuntimeError, match='changed during its linear evaluation'):
        linear(linear_config(workdir), str(tmp_path))


def test_the_fingerprint_sees_one_bit():
    tree = {'a': np.zeros(3, np.float32), 'b': [np.ones((2, 2), np.float32)]}
    before = linear_module._fingerprint(tree)
    tree['b'][0][1, 1] = np.nextafter(np.float32(1), np.float32(2))
    assert linear_module._fingerprint(tree) != before


def test_best_last_and_numbered_checkpoints_are_found(workdir):
    assert load_pretrained(workdir, 'last').step == load_pretrained(workdir, 'best').step == 2
    assert load_pretrained(workdir, '2').step == 2
    with pytest.raises(FileNotFoundError, match='no checkpoint of step 7'):
        load_pretrained(workdir, '7')
    with pytest.raises(ValueError, match="'newest'"):
        load_pretrained(workdir, 'newest')


def test_a_set_without_labels_is_refused(workdir, tmp_path):
    np.savez(tmp_path / 'set.npz', train_images=np.zeros((70, 16, 16), np.uint8),
             test_images=np.zeros((70, 16, 16), np.uint8))
    config = linear_config(workdir)
    config.data.update({'source': f'arrays:{tmp_path}/set.npz', 'train_split': 'train', 'test_split': 'test'})
    with pytest.raises(ValueError, match='no labels'):
        linear(config, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_a_classifier_learns_a_separable_problem():
    """Against chance: the fit, alone, on features that a line separates."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300).astype(np.int32)
    features = (np.eye(3)[labels] * 4 + 0.3 * rng.normal(size=(300, 3))).astype(np.float32)
    batches = linear_module._feature_batches(Features(features, labels), seed=0, batch_size=64)
    kernel, bias = linear_module.fit_classifier(
        batches, lambda batch: batch['image'], width=3, num_classes=3, num_steps=60, seed=0,
        mesh=sharding.make_mesh(),
        settings=base_config().linear, log=lambda step, metrics: None)
    assert ((features @ kernel + bias).argmax(1) == labels).mean() > 0.99
