"""What a run was made with comes back from its workdir, and another config, data or version is named."""

import json
import os

import jax
import numpy as np
import pytest

import simclr_jax
from simclr_jax.config import base_config
from simclr_jax.data.items import as_source
from simclr_jax.training import workdir as workdirs


def images(count=4, seed=0):
    random = np.random.default_rng(seed)
    return as_source([{'image': random.integers(0, 256, (4, 4, 3), np.uint8), 'label': i % 2}
                      for i in range(count)], 'train')


def write_config(workdir, **fields):
    config = base_config().to_dict()
    for name, value in fields.items():
        block, _, field = name.partition('__')
        config[block] = config.get(block, {}) | {field: value} if field else value
    workdirs.write_json(workdir, 'config.json', config)


def test_a_config_comes_back_and_a_killed_write_leaves_the_old_one(tmp_path, monkeypatch):
    config = {'batch_size': 256, 'augment': {'area': (0.08, 1.0), 'flip': True}, 'dir': None}
    workdirs.write_json(tmp_path / 'new', 'config.json', config)
    assert workdirs.load_config(tmp_path / 'new') == {
        'batch_size': 256, 'augment': {'area': [0.08, 1.0], 'flip': True}, 'dir': None}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        workdirs.write_json(tmp_path / 'new', 'config.json', {'batch_size': 1})
    assert workdirs.load_config(tmp_path / 'new')['batch_size'] == 256


def test_a_directory_that_is_no_workdir_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no config.json in {tmp_path}: give the workdir of a run'):
        workdirs.load_config(tmp_path)


def test_another_config_in_the_same_workdir_is_refused_field_by_field(tmp_path):
    config = {'batch_size': 256, 'method': {'temperature': 0.5, 'views': (1, 2)},
              'log': {'every': 10}, 'logits': 1}
    workdirs.check_config(tmp_path, config)  # a new workdir takes any config
    workdirs.write_json(tmp_path, 'config.json', config)
    workdirs.check_config(tmp_path, config | {'log': {'every': 99}})
    workdirs.check_config(tmp_path, config | {'logits': 2}, ignore=('logits',))
    workdirs.check_config(tmp_path, config | {'seed': 0, 'encoder': {'conv_padding': 'symmetric'}})
    with pytest.raises(ValueError) as error:
        workdirs.check_config(tmp_path, {
            'batch_size': 512, 'method': {'temperature': 0.5, 'views': [1, 3]},
            'log': {'every': 10}, 'seed': 1, 'new': 2})
    message = str(error.value)
    assert 'batch_size: 256 in the workdir, 512 now' in message
    assert 'method.views: [1, 2] in the workdir, [1, 3] now' in message
    assert 'logits: 1 in the workdir, absent now' in message
    assert 'seed: 0 in the workdir, 1 now' in message
    assert 'new: absent in the workdir, 2 now' in message
    assert 'temperature' not in message and '--workdir' in message
    assert message.count('\n  ') == 5                 # a line each
    with pytest.raises(ValueError, match='made with another config: seed: 0 in the workdir, 1 now. Give another'):
        workdirs.check_config(tmp_path, config | {'seed': 1})


def test_the_fields_of_a_predictor_that_there_is_not_are_no_difference(tmp_path):
    write_config(tmp_path, predictor__mode='none', predictor__out_dim=128)
    config = base_config().to_dict()
    workdirs.check_config(tmp_path, config | {'predictor': config['predictor'] | {'mode': 'none', 'out_dim': 64}})
    with pytest.raises(ValueError, match="predictor.mode: 'none' in the workdir, 'linear' now. Give another"):
        workdirs.check_config(tmp_path, config | {'predictor': config['predictor'] | {'mode': 'linear', 'out_dim': 64}})


@pytest.mark.parametrize('name, version, is_refused', [
    ('encoder__wavelets', '', True), ('head__wavelets', '0.1.0', True), ('eval__wavelets', '9.0', True),
    ('wavelets', '9.0', True), ('wavelets', '0.1.0', False), ('eval__wavelets', '0.0.9', False),
    ('method__wavelets', '9.0', False)])
def test_a_config_of_a_newer_version_names_itself(name, version, is_refused, tmp_path):
    """Fields of a user's own recipe, of which nothing is built, are none of a newer version."""
    write_config(tmp_path, **{name: 3})
    if version:
        workdirs.write_json(tmp_path, 'versions.json', {'simclr_jax': version})
    if not is_refused:
        assert workdirs.load_config(tmp_path)
        return
    with pytest.raises(ValueError, match=(
            'config.json has .*wavelets, which simclr_jax .* does not know: use the version that wrote it'
            f'{", " if version else ""}{version}, or a newer one')):
        workdirs.load_config(tmp_path)


def test_data_are_told_apart_by_what_they_hold(tmp_path):
    assert workdirs.data_changes(tmp_path, images()) == ''          # a workdir that does not say
    workdirs.save_run(tmp_path, {}, images())
    assert workdirs.data_changes(tmp_path, images()) == ''
    assert workdirs.data_changes(tmp_path, images(6)) == '4 images before, 6 now'
    assert '4 images as before, but different ones' in workdirs.data_changes(tmp_path, images(seed=1))


def test_versions_tell_what_ran_where(tmp_path):
    workdirs.save_run(tmp_path, {}, images())
    versions = json.loads((tmp_path / 'versions.json').read_text())
    assert versions['packages']['jax'] == jax.__version__
    assert versions['simclr_jax'] == simclr_jax.__version__
    assert (versions['backend'], versions['devices'], versions['processes']) == ('cpu', 8, 1)
