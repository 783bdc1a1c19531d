"""Views given to pretrain() as they are."""

import json

import jax.numpy as jnp
import pytest

from simclr_jax.config import base_config, smoke
from simclr_jax.train import pretrain
from simclr_jax.views.fields import View
from simclr_jax.views.presets import views_of

pytestmark = pytest.mark.usefixtures('one_device')


def tiny_config():
    config = smoke(base_config())
    config.update({'batch_size': 16, 'num_train_steps': 2})
    config.encoder.width = 0.0625
    config.augment.image_size = 16
    config.schedule.warmup_epochs = 0.0
    config.data.update({'train_split': 'train[:64]', 'test_split': 'none'})
    config.log.every_steps = 1
    return config


def losses(workdir):
    return [json.loads(line)['loss'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def usual(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('usual')
    pretrain(tiny_config(), str(workdir))
    return losses(workdir)


def test_the_views_of_the_config_given_as_such_train_the_same(tmp_path, usual):
    config = tiny_config()
    pretrain(config, str(tmp_path), views=views_of(config.augment))
    assert losses(tmp_path) == usual
    kept = json.loads((tmp_path / 'config.json').read_text())['augment']
    assert kept['view1']['crop']['area'] == list(config.augment.crop.area)


def test_a_view_with_a_function_without_a_name_trains(tmp_path, usual):
    view = View(extra=(lambda image, key: jnp.clip(image + 0.1, 0, 1),))
    pretrain(tiny_config(), str(tmp_path), views=view)
    assert len(losses(tmp_path)) == 2 and losses(tmp_path) != usual
