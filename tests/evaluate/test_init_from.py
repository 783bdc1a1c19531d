"""Pretraining goes on from weights at hand, with a new schedule."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from simclr_jax.config import base_config, smoke, use_method
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.train import pretrain
from simclr_jax.weights.write.export import export

pytestmark = pytest.mark.usefixtures('one_device')


def config(method='simclr', **overrides):
    fields = smoke(base_config())
    if method != 'simclr':
        use_method(fields, method, num_layers=2, hidden_width=16, out_dim=8)
    fields.update({'batch_size': 16, 'num_train_steps': 2})
    fields.data.update({'train_split': 'train[:64]', 'test_split': 'test[:40]'})
    fields.encoder.width, fields.augment.image_size = 0.0625, 16
    fields.schedule.warmup_epochs, fields.eval.linear_at_end = 0.0, False
    fields.update_from_flattened_dict(overrides)
    return fields


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp('first'))
    return workdir, pretrain(config(), workdir)


@pytest.mark.parametrize('method', ['simclr', 'byol'])
def test_a_run_begins_with_the_encoder_that_another_ended_with(method, first, tmp_path, capsys):
    workdir, results = first
    # A rate of 0: the encoder of the end is that of the start.
    second = pretrain(config(method, **{'init_from': workdir, 'optimizer.learning_rate': 0.0}), str(tmp_path))
    shown = capsys.readouterr().out
    assert f'The run starts from simclr, step 2 ({workdir}).' in shown
    assert ('Its projection head has another shape than that of this run' in shown) == (method == 'byol')
    assert set(second) == {'random', 'init_from', 'pretrained'}
    assert second['init_from'] == results['pretrained']
    for network in ('online', 'target')[:1 if method == 'simclr' else 2]:
        before, after = load_pretrained(workdir), load_pretrained(tmp_path, network=network)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6),
                     after.variables['params']['encoder'],
                     before.variables['params']['encoder'])         # m t + (1 - m) t is t but for rounding


@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
def test_a_file_of_weights_is_a_start_with_its_floor(suffix, first, tmp_path, capsys):
    workdir, results = first
    wanted = config()
    wanted.export.update({'pretrained': workdir, 'formats': ('torch',), 'dir': str(tmp_path)})
    export(wanted, str(tmp_path))
    path = tmp_path / 'encoder.safetensors'
    if suffix == 'pth':
        torch.save(safetensors.torch.load_file(path), path := tmp_path / 'encoder.pth')
    pretrain(config(init_from=str(path), num_train_steps=1, **{'eval.pixel_floor': True}), str(tmp_path / 'w'))
    assert f'({path}).' in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()]
    assert [line['encoder'] for line in lines] == ['raw pixels', 'random', 'init_from', 'pretrained']
    assert lines[2]['knn_accuracy'] == pytest.approx(results['pretrained']['knn_accuracy'], abs=1.5 / 40)


def test_the_weights_that_a_run_starts_from_may_go_while_it_trains(first, tmp_path):
    weights = shutil.copytree(first[0], tmp_path / 'weights')

    def remove(encode, step):
        shutil.rmtree(weights)
        return {}

    results = pretrain(config(init_from=str(weights)), str(tmp_path / 'w'), evaluators=[remove])
    assert results['init_from'] == first[1]['pretrained']


def test_another_encoder_is_named_with_its_fields(first, tmp_path):
    with pytest.raises(ValueError, match='is not that of this run: .*set the encoder fields .*width=0.0625'):
        pretrain(config(**{'init_from': first[0], 'encoder.width': 0.125}), str(tmp_path / 'w'))
    assert not pathlib.Path(tmp_path / 'w').exists()
