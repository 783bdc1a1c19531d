"""Every recipe builds as shipped, and trains through the command with `:smoke`."""

import concurrent.futures
import functools
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config, flatten, nearest_field, parse_argument, view_config
from simclr_jax.config.recipes import METHODS
from simclr_jax.data.shapes import make_shapes
from simclr_jax.models.building import make_network
from simclr_jax.runtime import sharding
from simclr_jax.train import build
from simclr_jax.training import checkpoint, optimizers as optim, schedules
from simclr_jax.views.from_config import views_of

CONFIGS = sorted(pathlib.Path(__file__).parent.parent.joinpath('configs').glob('*.py'))
EVALUATION = {'linear': {'random', 'pretrained'}, 'finetune': {'scratch', 'pretrained'},
              'transfer': {'random', 'pretrained', 'raw pixels'}}           # the encoders that each measures
MEASURED = 'cifar10'            # the recipe whose run the others evaluate
PRETRAINING = [path for path in CONFIGS if path.stem not in (*EVALUATION, 'distil')]
ARGUMENTS = {'cifar10': ['depth=50'], 'imagenet': ['epochs=1000,width=4'],
             'imagenet_v2': ['depth=152,width=3,sk=true'], 'folder': ['size=32'],
             'moco_v2': ['v3', 'symmetric', 'data=cifar10'],
             'byol': ['epochs=300', 'data=cifar10'], 'simsiam': ['data=cifar10'],
             'barlow_twins': ['vicreg'], 'moco_v3_vit': ['data=cifar10'],
             'smoke': ['no_colour', *(f'method={name}' for name in METHODS if name != 'simclr')]}
WITH_PREDICTOR, WITH_TARGET = ('byol', 'simsiam', 'nnclr'), ('byol', 'moco')
RECIPES = [pytest.param(path, argument, id=f'{path.stem}:{argument}')
           for path in PRETRAINING for argument in ['', *ARGUMENTS.get(path.stem, [])]]
IMAGENET, CIFAR10 = 1_281_167, 50_000               # training images
EXAMPLES = {'imagenet2012': IMAGENET, 'cifar10': CIFAR10, 'fashion_mnist': 60_000, 'shapes': 10_000}


def load(path, argument=''):
    return runpy.run_path(str(path))['get_config'](argument)


@functools.cache
def built(path, argument, num_examples=0):
    """Config of a recipe, its state as shapes, and its train step; nothing is allocated."""
    config = load(path, argument)
    num_examples = num_examples or EXAMPLES.get(config.data.source, 100_000)
    steps = config.num_train_steps or schedules.num_train_steps(num_examples, config.num_epochs,
                                                                config.batch_size)
    _, init_state, train_step, _ = build(config, sharding.make_mesh(), num_examples=num_examples,
                                         num_classes=10, num_steps=steps)
    return config, jax.eval_shape(init_state), train_step


@pytest.mark.parametrize('path, argument', [recipe for recipe in RECIPES if 'method=' not in recipe.id])
def test_a_recipe_builds_its_network_views_and_schedule(path, argument):
    config, state, _ = built(path, argument)
    kept = state.method_state or {}
    if 'queue' in kept:
        assert kept['queue'].shape == (config.method.queue_size, config.head.out_dim)
        assert config.method.queue_size >= config.batch_size * (1 + config.method.get('symmetric', False))
    assert ('predictor' in state.params) == (config.method.name in WITH_PREDICTOR or 'v3' in f'{path.stem} {argument}')
    assert ('target' in kept) == (config.method.name in WITH_TARGET)
    assert config.batch_size % config.encoder.norm_groups == 0
    views_of(config.augment)
    json.dumps(config.to_dict())                        # it goes into config.json


@pytest.mark.parametrize('path, argument', [recipe for recipe in RECIPES if not recipe.id.endswith(':')])
def test_a_recipe_with_an_argument_makes_a_step_that_keeps_the_form_of_the_state(path, argument):
    config, state, train_step = built(path, f'{argument},smoke', num_examples=512)
    size = config.augment.image_size
    view = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), np.float32)
    number = jax.ShapeDtypeStruct((config.batch_size,), np.int32)
    batch = {'view1': view, 'view2': view, 'label': number, 'index': number}
    new_state, metrics = jax.eval_shape(train_step, state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state)
    assert {(metric.shape, metric.dtype) for name, metric in metrics.items() if name != 'trust_ratios'} == {
        ((), np.dtype('float32'))}
    assert {'loss', 'gradient_norm', 'learning_rate', 'probe_accuracy'} <= set(metrics)


@pytest.fixture(scope='module')
def smoke_runs(run_main, tmp_path_factory):
    """{recipe: (completed process, workdir)} of three steps each; two at a time, most of it is start-up."""
    images = tmp_path_factory.mktemp('images')
    for number, image in enumerate(make_shapes('train', 20, 80)[0]):
        (images / f'class{number % 2}').mkdir(exist_ok=True)
        Image.fromarray(image).save(images / f'class{number % 2}' / f'{number}.png')

    def run(path):
        workdir = tmp_path_factory.mktemp(path.stem)
        data = ([f'--config.data.source=folder:{images}'] if path.stem == 'folder' else
                ['--config.data.train_split=train[:128]', '--config.data.test_split=' + (
                    'test[:64]' if path.stem == MEASURED else 'none')])
        return run_main(f'--config={path}:smoke', f'--workdir={workdir}', '--config.num_train_steps=3',
                        '--config.batch_size=16',
                        '--config.schedule.warmup_epochs=0', '--config.log.every_steps=1',
                        '--config.augment.image_size=16', '--config.encoder.width=0.0625', *data), workdir

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


@pytest.fixture(scope='module')
def evaluated(smoke_runs, run_main, tmp_path_factory):
    """evaluated(task) -> the workdir of its recipe on a smoke run, made once."""
    @functools.cache
    def evaluate(task):
        recipe, workdir = CONFIGS[0].parent, tmp_path_factory.mktemp(task)
        done = run_main(f'--config={recipe}/{task}.py:smoke', f'--workdir={workdir}', '--config.finetune.layer=0',
                        f'--config.{task}.pretrained={smoke_runs[recipe / f"{MEASURED}.py"][1]}')
        assert done.returncode == 0, done.stderr
        return workdir

    return evaluate


@pytest.mark.parametrize('task', EVALUATION)
def test_an_evaluation_recipe_measures_a_smoke_run_beside_its_floors(task, evaluated):
    lines = (evaluated(task) / 'results.jsonl').read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row['evaluation'] != 'distil']
    assert {row['encoder'] for row in rows if row['evaluation'] == task} >= EVALUATION[task]
    assert {row['data'].partition(':')[0] for row in rows} == {'shapes'}
    assert all(row['num_test'] == 64 for row in rows) or task == 'transfer'     # it takes whole sets


def test_the_recipe_of_distillation_learns_from_what_that_of_fine_tuning_leaves(evaluated, run_main):
    workdir = evaluated('finetune')
    done = run_main(f'--config={CONFIGS[0].parent}/distil.py:smoke', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert [row['encoder'] for row in rows if row['evaluation'] == 'distil'] == ['teacher', 'student']


def rates(config, num_examples):
    """Steps of a run and its learning rate at each of them, float64."""
    steps = schedules.num_train_steps(num_examples, config.num_epochs, config.batch_size)
    peak = schedules.scaled_learning_rate(config.optimizer.learning_rate, config.batch_size,
                                          config.optimizer.scaling)
    schedule = schedules.make_schedule(
        config.schedule.name, peak=peak, total_steps=steps, steps_per_epoch=num_examples / config.batch_size,
        warmup_steps=schedules.num_warmup_steps(num_examples, config.schedule.warmup_epochs,
                                                config.batch_size))
    return steps, np.float64(jax.vmap(schedule)(np.arange(steps)))


def decays(config):
    """{parameter path: the weight decay that one step applies}, measured on a smoke-sized network."""
    small = load(CONFIGS[0].parent / 'smoke.py', 'smoke')
    small.update({'head': config.head, 'predictor': config.predictor})
    small.head.update({'hidden_width': 16, 'out_dim': 8})
    small.predictor.update({'hidden_width': 16, 'out_dim': 8})
    network = make_network(encoder=small.encoder.to_dict(), head=small.head.to_dict(),
                           predictor=small.predictor.to_dict(), num_classes=10)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, 32, 32, 3)), train=False))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes['params'])
    settings = {name: value for name, value in config.optimizer.items()
                if name not in ('learning_rate', 'scaling')}
    plain = optim.make_optimizer(**settings | {'name': 'sgd', 'momentum': 0.0})(1.0)
    updates, _ = plain.update(jax.tree.map(np.zeros_like, ones), plain.init(ones), ones)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): float(-leaf.max())
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}


def test_moco_v2_has_the_published_settings():
    """facebookresearch/moco README, main_moco.py --mlp --moco-t 0.2 --aug-plus --cos, moco/builder.py."""
    config, state, _ = built(CONFIGS[0].parent / 'moco_v2.py', '')
    assert (config.batch_size, config.num_epochs, config.encoder.depth) == (256, 200.0, 50)
    method = config.method
    assert (method.queue_size, method.momentum, method.temperature) == (65536, 0.999, 0.2)
    assert not method.symmetric and not method.momentum_rises
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.nesterov) == ('sgd', 0.9, False)
    _, rate = rates(config, IMAGENET)
    assert rate[0] == pytest.approx(0.03) and len(np.unique(rate)) == 200
    # Epoch e of 200 has 0.03 * (1 + cos(pi e / 200)) / 2, soon after it began as soon before it ends.
    epoch = np.arange(200)
    for part in (0.01, 0.5, 0.99):
        steps = np.int64((epoch + part) * IMAGENET / 256)
        np.testing.assert_allclose(rate[steps], 0.015 * (1 + np.cos(np.pi * epoch / 200)), atol=1e-8)
    decay = decays(config)
    assert list(decay.values()) == pytest.approx([1e-4] * len(decay))
    assert any(path.endswith('norm1/scale') for path in decay) and any('bias' in path for path in decay)
    params = state.params['head']
    assert config.head.out_dim == 128 and {name: set(part) for name, part in params.items()} == {
        'dense1': {'kernel', 'bias'}, 'dense2': {'kernel', 'bias'}}
    assert params['dense1']['kernel'].shape == (2048, 2048)
    for name in ('view1', 'view2'):
        view = view_config(config.augment, name)
        assert view['crop']['area'] == (0.2, 1.0) and view['blur']['probability'] == 0.5
        jitter = view['jitter']
        assert [jitter[each] for each in ('probability', 'brightness', 'contrast', 'saturation', 'hue')] == [
            0.8, 0.4, 0.4, 0.4, 0.1]


@pytest.mark.parametrize('epochs, rate, decay, momentum', [
    (100, 0.6, 1e-6, 0.99), (300, 0.3, 1e-6, 0.99), (1000, 0.3, 1.5e-6, 0.996)])
def test_moco_v3_has_the_published_settings(epochs, rate, decay, momentum):
    """facebookresearch/moco-v3 main_moco.py, moco/builder.py, CONFIG.md: ResNet-50, batch 4096."""
    config = load(CONFIGS[0].parent / 'moco_v2.py', f'v3,epochs={epochs}')
    params = built(CONFIGS[0].parent / 'moco_v2.py', 'v3')[1].params
    assert (config.batch_size, config.num_epochs, config.schedule.warmup_epochs) == (4096, epochs, 10.0)
    assert rates(config, IMAGENET)[1].max() == pytest.approx(rate * 16, rel=1e-6)
    method = config.method
    assert (method.temperature, method.momentum, method.momentum_rises) == (1.0, momentum, True)
    assert method.symmetric and method.queue_size == 0 and config.encoder.norm_groups == 1
    assert (config.optimizer.name, config.optimizer.rate_in_momentum) == ('lars', False)
    for path, value in decays(config).items():
        excluded = path.rsplit('/', 1)[-1] in ('scale', 'bias') or path.startswith('probe')
        assert value == (0.0 if excluded else pytest.approx(decay))
    assert [params['head'][name]['kernel'].shape for name in ('dense1', 'dense2')] == [
        (2048, 4096), (4096, 256)]
    assert [params['predictor'][name]['kernel'].shape for name in ('dense1', 'dense2')] == [
        (256, 4096), (4096, 256)]
    assert set(params['head']['norm2']) == {'scale'} and 'norm2' not in params['predictor']
    assert config.augment.crop.area == (0.2, 1.0)
    one, two = (view_config(config.augment, name) for name in ('view1', 'view2'))
    assert [(view['blur']['probability'], view['solarize']['probability']) for view in (one, two)] == [
        (1.0, 0.0), (0.1, 0.2)]


@pytest.mark.parametrize('epochs, rate, decay, momentum', [
    (40, 0.45, 1e-6, 0.97), (100, 0.45, 1e-6, 0.99), (300, 0.3, 1e-6, 0.99), (1000, 0.2, 1.5e-6, 0.996)])
def test_byol_has_the_published_settings(epochs, rate, decay, momentum):
    """deepmind-research byol/configs/byol.py, whose presets go by the epochs; batch 4096."""
    config = load(CONFIGS[0].parent / 'byol.py', f'epochs={epochs}')
    params = built(CONFIGS[0].parent / 'byol.py', '')[1].params
    assert (config.batch_size, config.num_epochs, config.method.momentum) == (4096, epochs, momentum)
    steps, curve = rates(config, IMAGENET)
    warmup = IMAGENET * 10 // 4096
    assert curve.max() == pytest.approx(rate * 16, rel=1e-6) and curve.argmax() == warmup
    assert curve[0] == 0.0 and curve[-1] < 1e-4 * curve.max()
    assert (config.optimizer.name, config.optimizer.rate_in_momentum) == ('lars', False)
    for path, value in decays(config).items():
        excluded = path.rsplit('/', 1)[-1] in ('scale', 'bias')
        assert value == (0.0 if excluded else pytest.approx(decay))
    for name, width in (('head', 2048), ('predictor', 256)):
        assert params[name]['dense1']['kernel'].shape == (width, 4096)
        assert params[name]['dense2']['kernel'].shape == (4096, 256)
        assert {part: set(leaves) for part, leaves in params[name].items()} == {
            'dense1': {'kernel', 'bias'}, 'norm1': {'scale', 'bias'}, 'dense2': {'kernel'}}
    one, two = (view_config(config.augment, name) for name in ('view1', 'view2'))
    assert [(view['blur']['probability'], view['solarize']['probability']) for view in (one, two)] == [
        (1.0, 0.0), (0.1, 0.2)]
    assert one['jitter']['brightness_mode'] == 'add' and one['jitter']['saturation'] == 0.2
    assert one['crop']['area'] == (0.08, 1.0)


@pytest.mark.parametrize('epochs, preset', [(10, 40), (200, 300), (301, 1000), (3000, 1000)])
def test_byol_takes_the_next_longer_preset(epochs, preset):
    config, other = (load(CONFIGS[0].parent / 'byol.py', f'epochs={each}') for each in (epochs, preset))
    assert config.num_epochs == epochs
    config.num_epochs = other.num_epochs
    assert flatten(config) == flatten(other)


def test_small_sets_have_their_own_moco_and_byol():
    """moco's CIFAR-10 notebook; byol with solo-learn's batch."""
    recipes = CONFIGS[0].parent
    config = load(recipes / 'moco_v2.py', 'data=cifar10')
    method = config.method
    assert config.batch_size == 512
    assert (method.queue_size, method.momentum, method.temperature) == (4096, 0.99, 0.1)
    assert rates(config, CIFAR10)[1][0] == pytest.approx(0.06)
    assert all(value == pytest.approx(5e-4) for value in decays(config).values())
    byol = load(recipes / 'byol.py', 'data=cifar10')
    assert rates(byol, CIFAR10)[1].max() == pytest.approx(2.0, rel=1e-6) and byol.batch_size == 256
    for each in (config, byol):
        assert (each.augment.image_size, each.encoder.stem, each.encoder.depth) == (32, 'cifar', 18)
        assert all(view_config(each.augment, view)['blur']['probability'] == 0 for view in ('view1', 'view2'))
    for path, argument in (('moco_v2', 'v3,data=cifar10'), ('moco_v2', 'data=mnist'), ('byol', 'data=mnist')):
        with pytest.raises(ValueError, match='data='):
            load(recipes / f'{path}.py', argument)


@pytest.mark.parametrize('method', METHODS[1:])
def test_a_user_who_changes_the_method_changes_nothing_else_but_the_steps_of_moco(method):
    simclr, other = (flatten(load(CONFIGS[0].parent / 'smoke.py', f'method={name}'))
                     for name in ('simclr', method))
    changed = {name for name in {**simclr, **other} if simclr.get(name) != other.get(name)}
    longer = {'batch_size', 'num_train_steps', 'optimizer'} if method == 'moco_v2' else set()
    assert changed and {name.split('.')[0] for name in changed} <= {'method', 'head', 'predictor', *longer}
    assert other['method.name'] == {'sup_con': 'simclr', 'simclr_memory': 'moco'}.get(method, method.partition('_v')[0])


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'swav'.*simclr, moco_v2, moco_v3, byol"):
        load(CONFIGS[0].parent / 'smoke.py', 'method=swav')


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
    with pytest.raises(ValueError, match="depth takes a whole number, not 'deep'"):
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
