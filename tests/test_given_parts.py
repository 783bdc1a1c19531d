"""Views, methods and evaluators given to pretrain() as they are."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from simclr_jax.encoder import load_encoder
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


@pytest.mark.parametrize('metrics, message', [
    ({'learning_rate': 1.0}, "gives the metric 'learning_rate', which every step has"),
    ({'step': 1.0}, "gives the metric 'step', which every step has"),
    ({'rows': jnp.zeros(3)}, r"metric 'rows' is float32\[3\]: a metric is a real scalar")])
def test_a_metric_of_a_method_that_will_not_do_is_refused(metrics, message, tmp_path):
    def loss(z1, z2):
        return jnp.square(z1 - z2).mean(), metrics

    with pytest.raises(ValueError, match=message):
        pretrain(tiny_config(), str(tmp_path), method=functools.partial(simclr, temperature=0.5, loss=loss))


def scheduled(**attributes):
    def evaluator(encode, step):
        return {}

    evaluator.__dict__.update(attributes)
    return evaluator


@pytest.mark.parametrize('given, message', [
    ({'evaluators': scheduled()}, 'it takes a list of functions'),
    ({'evaluators': [scheduled(every_steps=0)]}, 'has every_steps 0: it takes a whole number, 1 or more'),
    ({'evaluators': [scheduled(every_epochs=float('nan'))]}, 'has every_epochs nan: it takes a number, 0 or more'),
    ({'evaluators': [lambda encode, step: None]}, 'The evaluator <lambda> gives NoneType: it takes'),
    ({'evaluators': [lambda encode, step: {'v': 'high'}]}, "gives 'v' as <U4 .*a real scalar"),
    ({'writers': ['wandb']}, "writers has 'wandb': a writer has write"),
    ({'writers': [scheduled]}, 'writers has <function scheduled'),
    ({'views': (View(),)}, 'views is .*: it takes a simclr_jax.View for both views, or two'),
    ({'method': 'byol'}, "method is 'byol': it takes a function")])
def test_parts_that_will_not_do_are_named(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(tiny_config(), str(tmp_path), **given)


def test_what_evaluators_give_is_all_there_by_its_name(tmp_path):
    class Each:
        def __init__(self, value, every_steps=None):
            self.value = value
            if every_steps:
                self.every_steps = every_steps

        def __call__(self, encode, step):
            return {'x': self.value, 'mean': encode(jnp.zeros((1, 16, 16, 3)) + step).mean()}

    pretrain(tiny_config(), str(tmp_path), evaluators=[*map(Each, (1.0, 2.0, 3.0)), Each(4.0, every_steps=1)])
    row = {name: value for row in rows(tmp_path) if row['step'] == 2 for name, value in row.items()}
    assert [row[name] for name in ('Each/x', 'Each_2/x', 'Each_3/x', 'x')] == [1, 2, 3, 4]
    assert row['mean'] == pytest.approx(row['Each/mean'], rel=1e-5)


def test_a_writer_changes_nothing_for_others_and_one_that_fails_alone_is_dropped(tmp_path):
    @dataclasses.dataclass
    class Keeps:
        rows: list
        fails: bool = dataclasses.field(default=False, compare=False)

        def write(self, step, metrics):
            assert not self.fails
            self.rows.append((step, metrics.pop('loss')))

        def note(self, text):
            pass

        image = note

    first, failing, last = Keeps([]), Keeps([], fails=True), Keeps([])
    pretrain(tiny_config(), str(tmp_path), writers=[first, failing, last])
    assert [step for step, _ in last.rows] == [1, 2] and first.rows == last.rows and not failing.rows


class Signed(nn.Module):
    sign: float = 1.0

    @nn.compact
    def __call__(self, images, train):
        return self.sign * nn.Dense(4)(images.mean((1, 2)))


def test_a_given_encoder_takes_the_place_of_the_configs_arguments_too(tmp_path):
    config = tiny_config()
    config.encoder.arguments = {'sign': -1.0}
    pretrain(config, str(tmp_path / 'plain'), encoder=Signed())
    pretrain(config, str(tmp_path / 'scaled'), encoder=Signed(np.float32(2)))
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    for name, module in (('plain', Signed()), ('scaled', Signed(2.0))):
        np.testing.assert_array_equal(load_encoder(str(tmp_path / name))(images),
                                      load_encoder(str(tmp_path / name), encoder=module)(images))


def test_features_that_are_no_floats_are_refused(tmp_path):
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return (10 * nn.Dense(4)(images.mean((1, 2)))).astype(jnp.int32)

    with pytest.raises(ValueError, match='The encoder Counts returns int32: features are floats'):
        pretrain(tiny_config(), str(tmp_path), encoder=Counts())


def inverted(image, key):
    return 1 - image


def test_another_function_in_the_second_view_alone_is_another_run(tmp_path):
    pretrain(tiny_config(), str(tmp_path), views=(View(), View(extra=(inverted,))))
    with pytest.raises(ValueError, match='augment.extra'):
        pretrain(tiny_config(), str(tmp_path), views=View())
