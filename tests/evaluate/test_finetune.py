"""Fine-tuning of a small run: what is trained, on which labels, and what it leaves."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.arrays import shapes_source
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.classifier_training import labelled_crops
from simclr_jax.evaluate.finetune import finetune, frozen_module
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.models.partly_frozen import apply_partly_frozen
from simclr_jax.models.resnet import ResNet
from simclr_jax.training.steps import make_encode
from tests.evaluate.runs import overflowing, task_config

pytestmark = pytest.mark.usefixtures('one_device')
CLASSIFIER_ALONE = {'from_block': 4, 'zero_init': True}


def finetune_config(workdir, **settings):
    return task_config('finetune', workdir, **{
        'batch_size': 64, 'num_epochs': 1.0, 'optimizer': 'sgd', 'learning_rate': 0.1, 'scaling': 'none',
        'nesterov': True, 'init': 'pretrained', **settings})


def modules(variables, kind, part='encoder'):
    return {name: jax.tree.leaves(module) for name, module in variables[kind].get(part, {}).items()}


def changed(before, after, kind, part='encoder'):
    """Names of the modules of which any bit is another one."""
    before, after = (modules(variables, kind, part) for variables in (before, after))
    return {name for name in before if not all(map(np.array_equal, before[name], after[name]))}


def test_what_is_frozen_keeps_every_bit_and_the_rest_learns(workdir, tmp_path):
    config = finetune_config(workdir, from_block=0, layer=1, optimizer='lars',
                             learning_rate=1.0, weight_decay=1e-4)
    finetune(config, str(tmp_path))
    before, after = load_pretrained(workdir).variables, load_pretrained(f'{tmp_path}/finetuned.safetensors')
    tuned = after.variables
    for kind in ('params', 'batch_stats'):
        assert changed(before, tuned, kind) == {'block'}
    assert changed(before, tuned, 'params', 'head') == {'dense1', 'norm1'}
    assert changed(before, tuned, 'batch_stats', 'head') == {'norm1'}
    assert after.classifier is None                     # only one on h is kept with the file
    assert after.network.mean == (0.4, 0.5, 0.6)
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [(row['encoder'], row['num_train'], row['num_test'], row['protocol']['from_block'])
            for row in rows] == [('pretrained', 128, 64, 0)]
    low, high = rows[0]['finetune_accuracy_interval']
    assert low < rows[0]['finetune_accuracy'] < high


def test_modules_belong_to_the_block_of_the_official_flag():
    """fine_tune_after_block: -1 all; 0 after the stem; 4 only the classifier (simclr tf2/run.py)."""
    def frozen(part, module, from_block, layer=0):
        return frozen_module(part, module, from_block=from_block, layer=layer, encoder=ResNet(depth=18))

    assert not any(frozen('encoder', name, -1) for name in ('stem_conv', 'stage1_block1'))
    assert frozen('encoder', 'stem_norm1', 0) and not frozen('encoder', 'stage1_block3', 0)
    assert frozen('encoder', 'stage3_block12', 3) and not frozen('encoder', 'stage4_block1', 3)
    assert frozen('head', 'dense1', 0) and not frozen('head', 'dense1', 0, layer=1)
    assert frozen('head', 'norm3', -1, layer=2) and frozen('head', 'dense1', 4, layer=1)


def test_a_pass_with_all_frozen_is_that_of_evaluation(workdir):
    pretrained = load_pretrained(workdir)
    network, variables = pretrained.network, pretrained.variables

    @jax.jit
    def passes(images):
        layers, stats = apply_partly_frozen(network, variables, images, is_frozen=lambda part, name: True)
        return layers[-1], stats, network.apply(variables, images, train=False).projection

    images = np.random.default_rng(0).random((8, 16, 16, 3), np.float32)
    projection, stats, expected = passes(images)
    jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
    np.testing.assert_allclose(projection, expected, rtol=1e-5, atol=1e-6)


def test_scratch_is_the_row_beside_it_on_a_balanced_share_of_labels(workdir, tmp_path):
    config = finetune_config(workdir, init='both', label_share=0.1, batch_size=8, from_block=4,
                             learning_rate=0.0)
    assert list(finetune(config, str(tmp_path))) == ['scratch', 'pretrained']
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['num_train'] for row in rows] == [10, 10]               # one of each class
    pretrained = load_pretrained(workdir)
    tuned, scratch = (load_pretrained(f'{tmp_path}/{name}.safetensors').variables
                      for name in ('finetuned', 'scratch'))
    jax.tree.map(np.testing.assert_array_equal, tuned, pretrained.variables)
    jax.tree.map(np.testing.assert_array_equal, scratch['params'], pretrained.initial['params'])
    assert changed(pretrained.initial, scratch, 'batch_stats')          # nothing of it is frozen


def test_a_list_of_files_of_a_folder_chooses_the_labels(workdir, tmp_path):
    for split, count in (('train', 40), ('test', 20)):
        for number, (image, label) in enumerate(zip(*make_shapes(split, 16, count))):
            path = tmp_path / 'images' / split / f'class{label}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (tmp_path / 'list.txt').write_text(''.join(f'{number}.png\n' for number in range(5, 25)))
    config = finetune_config(workdir, batch_size=16, subset_file=f'{tmp_path}/list.txt', **CLASSIFIER_ALONE)
    config.data.update({'source': f'folder:{tmp_path}/images', 'train_split': 'train', 'test_split': 'test'})
    finetune(config, str(tmp_path / 'out'))
    row = json.loads((tmp_path / 'out' / 'results.jsonl').read_text())
    assert (row['num_train'], row['num_test']) == (20, 20)


def test_the_classifier_alone_follows_nesterov_sgd_in_float64(workdir, tmp_path):
    """Against the recurrence written out: v = m v + g, w -= lr (g + m v), lr along a cosine."""
    config = finetune_config(workdir, **CLASSIFIER_ALONE)
    config.log.every_steps = 1
    finetune(config, str(tmp_path))
    rows = map(json.loads, (tmp_path / 'finetune' / 'metrics.jsonl').read_text().splitlines())
    losses = [row['pretrained_loss'] for row in rows if 'pretrained_loss' in row]
    assert len(losses) == 3
    pretrained, tuned = load_pretrained(workdir), load_pretrained(f'{tmp_path}/finetuned.safetensors')
    jax.tree.map(np.testing.assert_array_equal, tuned.variables, pretrained.variables)
    encode = jax.jit(make_encode(pretrained.network))
    parameters = np.zeros((33, 10))                     # kernel, and bias below it
    velocity, expected = np.zeros_like(parameters), []
    batches, crops = labelled_crops(config, pretrained.config.augment,
                                    shapes_source('shapes', 'train[:128]', 16), 64)
    for step, batch in enumerate(itertools.islice(batches, 3)):
        h, labels = encode(pretrained.variables, crops(batch)), batch['label']
        rows = np.append(np.asarray(h, np.float64), np.ones((len(labels), 1)), axis=1)
        p = np.exp(rows @ parameters)
        p /= p.sum(1, keepdims=True)
        expected.append(-np.log(p[np.arange(len(labels)), labels]).mean())
        gradient = rows.T @ (p - np.eye(10)[labels]) / len(labels)
        velocity = 0.9 * velocity + gradient
        parameters -= 0.05 * (1 + np.cos(np.pi * step / 3)) * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(tuned.classifier['kernel'], parameters[:-1], rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(tuned.classifier['bias'], parameters[-1], rtol=2e-3, atol=2e-5)


def test_a_training_that_is_no_longer_finite_leaves_no_result(workdir, tmp_path):
    path = overflowing(load_pretrained(workdir), tmp_path)
    config = finetune_config(path, **CLASSIFIER_ALONE)
    config.data.update({'source': 'shapes', 'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    with pytest.raises(FloatingPointError, match='lower finetune.learning_rate'):
        finetune(config, str(tmp_path / 'out'))
    assert not (tmp_path / 'out' / 'results.jsonl').exists()
    assert not (tmp_path / 'out' / 'finetuned.safetensors').exists()


@pytest.mark.parametrize('settings, sentence', [
    ({'init': 'random'}, "finetune.init is 'random'"), ({'from_block': 5}, 'finetune.from_block is 5'),
    ({'optimizer': 'lamb'}, "'lamb'"), ({'layer': 9}, 'finetune.layer is 9'),
    ({'label_share': 0.01}, 'less than one to each of 10 classes'),
    ({'label_share': 0.1, 'subset_file': 'x'}, 'give one'), ({'subset_file': 'x'}, 'no file x'),
    ({'batch_size': 256}, 'has only 128 images'), ({'num_epochs': 0.0}, 'finetune.num_epochs is 0.0')])
def test_settings_that_will_not_do_are_refused(settings, sentence, workdir, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        finetune(finetune_config(workdir, **settings), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
