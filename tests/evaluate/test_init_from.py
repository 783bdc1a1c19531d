"""Pretraining goes on from weights at hand, with a new schedule."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from simclr_jax.evaluate.pretrained import as_imported, load_pretrained
from simclr_jax.train import pretrain
from simclr_jax.weights.tensors import write_flax
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp('first'))
    return workdir, pretrain(small_config(), workdir)


@pytest.mark.parametrize('method', ['simclr', 'byol'])
def test_a_run_begins_with_the_encoder_that_another_ended_with(method, first, tmp_path, capsys):
    workdir, results = first
    # A rate of 0: the encoder of the end is that of the start.
    second = pretrain(small_config(method, **{'init_from': workdir, 'optimizer.learning_rate': 0.0}), str(tmp_path))
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


def test_a_file_of_weights_is_a_start_with_its_floor(first, tmp_path, capsys):
    workdir, results = first
    path = tmp_path / 'encoder.safetensors'
    write_flax(path, as_imported(load_pretrained(workdir)))
    pretrain(small_config(init_from=str(path), **{'eval.pixel_floor': True}), str(tmp_path / 'w'))
    assert f'({path}).' in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()]
    assert [line['encoder'] for line in lines] == ['raw pixels', 'random', 'init_from', 'pretrained']
    assert lines[2]['knn_accuracy'] == pytest.approx(results['pretrained']['knn_accuracy'], abs=1.5 / 40)


def test_the_weights_that_a_run_starts_from_may_go_while_it_trains(first, tmp_path):
    weights = shutil.copytree(first[0], tmp_path / 'weights')

    def remove(encode, step):
        shutil.rmtree(weights)
        return {}

    results = pretrain(small_config(init_from=str(weights)), str(tmp_path / 'w'), evaluators=[remove])
    assert results['init_from'] == first[1]['pretrained']


def test_another_encoder_is_named_with_its_fields(first, tmp_path):
    with pytest.raises(ValueError, match='is not that of this run: .*set the encoder fields .*OneBlock'):
        pretrain(small_config(**{'init_from': first[0], 'encoder.name': 'resnet'}), str(tmp_path / 'w'))
    assert not pathlib.Path(tmp_path / 'w').exists()
