"""Views, methods and evaluators given to pretrain() as they are."""

import functools
import json

import jax.numpy as jnp
import pytest

from simclr_jax.methods import barlow_twins, simclr
from simclr_jax.train import pretrain
from simclr_jax.views.fields import View
from simclr_jax.views.from_config import views_of
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures('one_device')


def tiny_config():
    return small_config(**{'data.test_split': 'none', 'log.every_steps': 1})


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir):
    return [row['loss'] for row in rows(workdir)]


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
    view, config = View(extra=(lambda image, key: jnp.clip(image + 0.1, 0, 1),)), tiny_config()
    pretrain(config, str(tmp_path), views=view)
    assert len(losses(tmp_path)) == 2 and losses(tmp_path) != usual
    config.augment.update({'small_views': 1, 'small_size': 8})
    pretrain(config, str(tmp_path / 'small'), views=view)
    assert len(losses(tmp_path / 'small')) == 2


def test_the_arguments_bound_to_a_method_are_kept_and_held_to(tmp_path):
    config = tiny_config()
    pretrain(config, str(tmp_path), method=functools.partial(barlow_twins, off_diagonal=0.01))
    kept = json.loads((tmp_path / 'config.json').read_text())
    assert kept['method']['name'].endswith(':barlow_twins') and kept['method']['off_diagonal'] == 0.01
    with pytest.raises(ValueError, match='method.off_diagonal'):
        pretrain(config, str(tmp_path), method=functools.partial(barlow_twins, off_diagonal=0.9))
    kept['method'] = {'name': kept['method']['name']}           # as earlier versions kept it
    (tmp_path / 'config.json').write_text(json.dumps(kept))
    pretrain(config, str(tmp_path), method=functools.partial(barlow_twins, off_diagonal=0.01))


def aligned(z1, z2):
    value = jnp.square(z1 - z2).sum(1).mean()
    return value, {'alignment': value, 'gap': 2 * value}


def test_no_metric_hides_another_of_its_name(tmp_path):
    called = []

    class Mine:
        every_steps = 3

        def __call__(self, encode, step):
            called.append(step)
            return {'loss': -1.0, 'fresh': 7.0}

    def other(encode, step):
        return {'knn_accuracy': 0.5}

    config = tiny_config()
    config.num_train_steps, config.log.every_steps = 8, 2
    config.data.test_split = 'test[:40]'
    pretrain(config, str(tmp_path), evaluators=[Mine(), other],
             method=functools.partial(simclr, temperature=0.5, loss=aligned))
    assert called == [4, 6, 8]              # the first row after each three steps, and the last
    found = {row['step']: row for row in rows(tmp_path) if 'loss' in row}
    for step, row in found.items():
        assert row['objective/alignment'] * 2 == pytest.approx(row['gap']) and row['loss'] >= 0
        assert row['alignment'] != row['objective/alignment']        # of the health, as in any run
        assert (row.get('Mine/loss'), row.get('fresh')) == ((-1, 7) if step in called else (None, None))
    of_epochs = [row for row in rows(tmp_path) if 'other/knn_accuracy' in row]
    assert {row['other/knn_accuracy'] for row in of_epochs} == {0.5}
    assert [row['step'] for row in of_epochs if 'knn_accuracy' in row] == [8]


def test_a_metric_that_every_step_has_is_refused(tmp_path):
    def loss(z1, z2):
        return jnp.square(z1 - z2).mean(), {'learning_rate': 1.0}

    with pytest.raises(ValueError, match="gives the metric 'learning_rate', which every step has"):
        pretrain(tiny_config(), str(tmp_path), method=functools.partial(simclr, temperature=0.5, loss=loss))
