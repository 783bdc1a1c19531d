"""Every recipe builds as shipped, and trains through the command with `:smoke`."""

import concurrent.futures
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from simclr_jax import checkpoint, schedules
from simclr_jax.config import base_config, flatten, nearest_field, parse_argument, view_config
from simclr_jax.data.host_augment import check_view
from simclr_jax.methods import make_method
from simclr_jax.models.network import make_network

CONFIGS = sorted(pathlib.Path(__file__).parent.parent.joinpath('configs').glob('*.py'))
PRETRAINING = [path for path in CONFIGS if path.stem != 'linear']
ARGUMENTS = {'cifar10': ['depth=50'], 'imagenet': ['epochs=1000,width=4', 'depth=152'],
             'imagenet_v2': ['depth=152,width=3,sk=true'], 'folder': ['size=32'], 'smoke': ['no_colour']}


def load(path, argument=''):
    return runpy.run_path(str(path))['get_config'](argument)


@pytest.mark.parametrize('path, argument', [
    pytest.param(path, argument, id=f'{path.stem}:{argument}')
    for path in PRETRAINING for argument in ['', *ARGUMENTS.get(path.stem, [])]])
def test_a_recipe_builds_its_network_views_and_schedule(path, argument):
    config = load(path, argument)
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(), num_classes=10,
                           probe_layer=config.eval.layer, mean=config.augment.mean, std=config.augment.std)
    method = make_method(network=network, **config.method)
    size = config.augment.image_size
    params, batch_stats, method_state = jax.eval_shape(
        method.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    view = jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32)
    batch = {'view1': view, 'view2': view, 'label': jax.ShapeDtypeStruct((8,), jnp.int32)}
    loss, aux = jax.eval_shape(method.loss, params, batch_stats, method_state, batch)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert jax.tree.structure(aux.batch_stats) == jax.tree.structure(batch_stats)
    for name in ('view1', 'view2'):
        check_view(view_config(config.augment, name))
    json.dumps(config.to_dict())                        # it goes into config.json


@pytest.fixture(scope='module')
def smoke_runs(run_main, tmp_path_factory):
    """{recipe: (completed process, workdir)} of three steps each; two at a time, most of it is start-up."""

    def run(path):
        workdir = tmp_path_factory.mktemp(path.stem)
        return run_main(f'--config={path}:smoke', f'--workdir={workdir}', '--config.num_train_steps=3',
                        '--config.schedule.warmup_epochs=0', '--config.log.every_steps=1',
                        '--config.data.train_split=train[:128]',
                        '--config.data.test_split=test[:64]'), workdir

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(PRETRAINING, pool.map(run, PRETRAINING)))


@pytest.mark.parametrize('path', PRETRAINING, ids=lambda path: path.stem)
def test_a_recipe_trains_three_steps_with_smoke(path, smoke_runs):
    done, workdir = smoke_runs[path]
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows if 'loss' in row] == [1, 2, 3]
    with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
        assert checkpointer.latest_step() == 3


def test_the_linear_recipe_measures_a_smoke_run_beside_its_floor(smoke_runs, run_main, tmp_path):
    recipe = CONFIGS[0].parent
    pretrained = smoke_runs[recipe / 'cifar10.py'][1]
    done = run_main(f'--config={recipe}/linear.py:smoke', f'--config.linear.pretrained={pretrained}',
                    f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    linear = [row for row in rows if row['evaluation'] == 'linear']
    assert [row['encoder'] for row in linear] == ['random', 'pretrained']
    assert {row['data'] for row in linear} == {'shapes'} and linear[0]['num_test'] == 64


def test_published_settings_follow_from_the_recipes():
    """google-research/simclr README: 31,279 steps, peak 4.8 (ImageNet); 97,657, 2.0 (CIFAR-10)."""
    recipe = CONFIGS[0].parent
    for name, examples, steps, warmup, peak in (('imagenet', 1_281_167, 31_279, 3_127, 4.8),
                                                ('cifar10', 50_000, 97_657, 976, 2.0)):
        config = load(recipe / f'{name}.py')
        assert schedules.num_train_steps(examples, config.num_epochs, config.batch_size) == steps
        warmup_epochs = config.schedule.warmup_epochs
        assert schedules.num_warmup_steps(examples, warmup_epochs, config.batch_size) == warmup
        assert schedules.scaled_learning_rate(config.optimizer.learning_rate, config.batch_size,
                                              config.optimizer.scaling) == pytest.approx(peak)


def test_arguments_take_the_type_of_their_default():
    values = parse_argument('epochs=300,sk,depth=101', epochs=100.0, sk=False, depth=50)
    assert (values.epochs, values.sk, values.depth, values.smoke) == (300.0, True, 101, False)
    with pytest.raises(ValueError, match="'dept'.*depth"):
        parse_argument('dept=101', depth=50)
    with pytest.raises(ValueError, match="depth='deep'.*int"):
        parse_argument('depth=deep', depth=50)


def test_a_view_may_override_single_values_of_an_operation():
    config = base_config()
    config.augment.view2 = {'blur': {'probability': 0.1}, 'solarize': {'probability': 0.2}}
    one, two = (view_config(config.augment, name) for name in ('view1', 'view2'))
    assert (one['blur']['probability'], two['blur']['probability']) == (0.5, 0.1)
    assert two['blur']['sigma'] == (0.1, 2.0) and one['crop'] == two['crop']
    config.augment.view2 = {'blurr': {'probability': 0.1}}
    with pytest.raises(ValueError, match="'blurr'.*blur"):
        view_config(config.augment, 'view2')


def test_the_nearest_field_is_the_one_that_was_meant():
    config = base_config()
    assert nearest_field(config, 'batchsize') == 'batch_size'
    assert nearest_field(config, 'encoder.dept') == 'encoder.depth'
    assert nearest_field(config, 'temperature') == 'method.temperature'
    assert 'augment.jitter.hue' in flatten(config)
