"""The linear evaluation of a small run, in this process."""

import json

import jax
import numpy as np
import pytest

from simclr_jax.config import base_config
from simclr_jax.data.arrays import shapes_source
from simclr_jax.evaluate.accuracies import unchanged
from simclr_jax.evaluate.classifier_training import accuracies, labelled_crops
from simclr_jax.evaluate.evaluated import load_evaluated
from simclr_jax.evaluate.linear import fit_classifier, linear
from simclr_jax.evaluate.logistic import L2_VALUES
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.runtime import sharding
from simclr_jax.weights.write.export import export
from tests.evaluate.runs import task_config

pytestmark = pytest.mark.usefixtures('one_device')


def linear_config(workdir, **settings):
    return task_config('linear', workdir, **{'batch_size': 64, 'num_epochs': 2.0, 'pixel_floor': False,
                                             **settings})


def test_both_encoders_have_a_line_of_results(workdir, tmp_path):
    results = linear(linear_config(workdir), str(tmp_path))
    assert set(results) == {'random', 'pretrained'}
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['linear_accuracy'] for row in rows] == [
        results[name]['linear_accuracy'] for name in ('random', 'pretrained')]
    assert rows[1]['step'] == 2 and (rows[1]['num_train'], rows[1]['num_test']) == (128, 64)


def test_the_crops_of_training_are_made_as_the_checkpoint_says(workdir):
    pretrained = load_pretrained(workdir)
    batches, crops = labelled_crops(linear_config(workdir), pretrained.config.augment, shapes_source(
        'shapes', 'train[:128]', 16), 8)
    assert crops(next(batches)).shape == (8, 16, 16, 3) and pretrained.network.mean == (0.4, 0.5, 0.6)


def test_cached_features_serve_when_augmentation_is_off(workdir, tmp_path):
    results = linear(linear_config(workdir, augment=False), str(tmp_path))
    assert all(0 <= value <= 1 for row in results.values() for value in row.values())


def test_a_probe_leaves_the_encoder_as_it_was(workdir):
    """Trained through it, on augmented crops, with the very variables that the features are of."""
    evaluated = load_evaluated(linear_config(workdir).linear, workdir, 'linear')
    encode, source = evaluated.encode_with(evaluated.pretrained.variables), shapes_source('shapes', 'train[:64]', 16)
    before, variables = evaluated.features(encode, source)[0], jax.tree.map(np.array, encode.args)
    config = linear_config(workdir)
    batches, crops = labelled_crops(config, evaluated.config.augment, source, 8)
    fit_classifier(batches, lambda batch: encode(crops(batch)), width=evaluated.width, num_classes=10, num_steps=3,
                   settings=config.linear, seed=0, mesh=evaluated.mesh, log=lambda step, metrics: None)
    jax.tree.map(np.testing.assert_array_equal, encode.args, variables)
    np.testing.assert_array_equal(evaluated.features(encode, source)[0].features, before.features)


def test_an_encoder_that_changes_while_it_is_evaluated_is_caught(workdir):
    evaluated = load_evaluated(linear_config(workdir).linear, workdir, 'linear')
    encode = evaluated.encode_with(evaluated.pretrained.variables)
    with unchanged(encode):
        pass
    layers = encode.args[0]['params']['encoder']
    with pytest.raises(RuntimeError, match='encoder changed during its evaluation'), unchanged(encode):
        layer = layers[next(name for name in layers if 'kernel' in layers[name])]
        layer['kernel'] = layer['kernel'] + 1e-6


def test_lbfgs_chooses_an_l2_for_each_encoder_and_for_the_raw_pixels_and_says_which(workdir, tmp_path):
    results = linear(linear_config(workdir, solver='lbfgs', pixel_floor=True), str(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['encoder'] for row in rows] == list(results) == ['raw pixels', 'random', 'pretrained']
    for row in rows:
        assert row['l2'] in L2_VALUES and len(row['heldout']) == 45 and row['num_train'] == 128
        low, high = row['linear_accuracy_interval']
        assert low < row['linear_accuracy'] < high


def test_top_5_is_of_more_than_five_classes():
    logits, labels = np.eye(6)[:, ::-1], np.zeros(6, int)
    assert accuracies(logits, labels) == pytest.approx(
        {'linear_accuracy': 1 / 6, 'linear_top5_accuracy': 1.0})
    assert list(accuracies(logits[:, :5], labels)) == ['linear_accuracy']


@pytest.mark.parametrize('settings, sentence', [
    ({'solver': 'adam'}, "linear.solver is 'adam'"), ({'l2': 'best'}, "linear.l2 is 'best'"),
    ({'l2': '-1'}, "linear.l2 is '-1'"),
    ({'batch_size': 256}, '^linear.batch_size is 256, but .*has only 128 images'),
    ({'layer': 7}, 'linear.layer is 7: the head has layers 0')])
def test_settings_that_will_not_do_are_refused(settings, sentence, workdir, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        linear(linear_config(workdir, **settings), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_best_last_and_numbered_checkpoints_are_found(workdir):
    assert load_pretrained(workdir, 'last').step == load_pretrained(workdir, 'best').step == 2
    assert load_pretrained(workdir, '2').step == 2


@pytest.mark.parametrize('name, value, sentence', [
    ('checkpoint', '7', 'is 7: .* has checkpoints'), ('checkpoint', 'newest', "is 'newest': it takes 'last'"),
    ('encoder', 'target', "is 'target': the run in .* has no target network"),
    ('encoder', 'student', "is 'student': it takes 'online' or 'target'")])
@pytest.mark.parametrize('task, run', [('linear', linear), ('export', export)])
def test_a_wrong_checkpoint_or_network_is_named_with_its_field(task, run, name, value, sentence, workdir, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=f'^{task}.{name} {sentence}'):
        run(task_config(task, workdir, **{name: value}), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


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
    rows = (rng.choice(300, 64, replace=False) for _ in iter(int, 1))
    kernel, bias = fit_classifier(
        ({'image': features[row], 'label': labels[row]} for row in rows), lambda batch: batch['image'],
        width=3, num_classes=3, num_steps=60, seed=0, mesh=sharding.make_mesh(),
        settings=base_config().linear, log=lambda step, metrics: None)
    assert ((features @ kernel + bias).argmax(1) == labels).mean() > 0.99
