"""Encoders that are not ours (tests/encoders.py) pretrain with every method and go through every task."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from PIL import Image

import simclr_jax
from simclr_jax.config import base_config, smoke, use_method
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.embed import embed, read_features
from simclr_jax.evaluate.finetune import finetune
from simclr_jax.evaluate.knn_task import knn
from simclr_jax.evaluate.linear import linear
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.evaluate.search import search
from simclr_jax.models.building import describe_encoder, make_encoder, make_network
from simclr_jax.models.network import forward_train, init_variables
from simclr_jax.report.report import report
from simclr_jax.runtime import sharding
from simclr_jax.train import build, pretrain
from simclr_jax.weights.write.export import export
from simclr_jax.weights.write.programs import load_stablehlo
from tests.encoders import CNN, ENCODERS, NnxCNN, ViT
from tests.evaluate.runs import task_config
from tests.stores import last_state

BATCH, SIZE, STEPS = 32, 8, 2
# What goes through the tasks: with flax's BatchNorm and a target; without any statistics; bridged, with nnx's
# BatchNorm.
RUNS = {'cnn': 'byol', 'vit': 'moco_v2', 'nnx': 'simclr'}


def make_config(method, **overrides):
    config = smoke(base_config())
    use_method(config, method, num_layers=2, hidden_width=16, out_dim=8)
    if 'queue_size' in config.method:
        config.method.queue_size = 64 if config.method.queue_size else 0
    config.encoder.norm_groups = 4 if method == 'moco_v2' else 1
    config.batch_size, config.augment.image_size = BATCH, SIZE
    for operation in ('jitter', 'grey', 'blur'):         # seconds of compilation
        config.augment[operation].probability = 0.0
    config.optimizer.update({'learning_rate': 0.2, 'scaling': 'none'})
    config.schedule.warmup_epochs = 0.0
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def batches():
    images, labels = make_shapes('train', SIZE, STEPS * BATCH)
    noise = np.random.default_rng(0).normal(size=(2, *images.shape)).astype(np.float32)
    view1, view2 = images / np.float32(255) + 0.1 * noise
    return [{'view1': view1[rows], 'view2': view2[rows], 'label': labels[rows]}
            for rows in (slice(step * BATCH, (step + 1) * BATCH) for step in range(STEPS))]


def build_run(encoder, method, mesh, **overrides):
    return build(make_config(method, **overrides), mesh, num_examples=STEPS * BATCH, num_classes=10,
                 num_steps=STEPS, encoder=ENCODERS[encoder])


@functools.cache
def first_state(encoder, method):
    """On the host, as one device draws it."""
    _, init_state, *_ = build_run(encoder, method, sharding.make_mesh(jax.devices()[:1]))
    return jax.device_get(jax.jit(init_state)())


@functools.cache
def train(encoder, method, num_devices, **overrides):
    """(losses, the first state, the last state) of a run of two steps, on the host."""
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    _, _, train_step, shardings = build_run(encoder, method, mesh, **overrides)
    start = first_state(encoder, method)
    state = jax.device_put(start, shardings)
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    losses = []
    for batch in batches():
        state, metrics = step(state, sharding.put_batch(mesh, batch))
        losses.append(float(metrics['loss']))
    return losses, start, jax.device_get(state)


@pytest.mark.parametrize('method, shard_state', [('byol', True), ('moco_v2', False)])
def test_eight_devices_make_the_run_of_one(method, shard_state):
    one, eight = train('cnn', method, 1), train('cnn', method, 8, shard_state=shard_state)
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=str(path)),
        one, eight)


@pytest.mark.parametrize('encoder, method', [
    *(('vit', method) for method in ('simclr', 'moco_v3', 'byol')), ('nnx', 'moco_v2'), ('nnx', 'byol')])
def test_an_encoder_trains_with_other_methods_in_chunks_and_with_a_split_state(encoder, method):
    losses, start, end = train(encoder, method, 8, encoder_chunks=2, shard_state=True)
    assert np.isfinite(losses).all()
    before, after = (jax.tree.leaves(state.params['encoder']) for state in (start, end))
    assert all((a != b).any() for a, b in zip(before, after) if a.size > 16)     # biases may rest
    statistics = [jax.tree.leaves(state.batch_stats.get('encoder', {})) for state in (start, end)]
    assert bool(statistics[0]) == (encoder != 'vit')
    assert all((a != b).any() for a, b in zip(*statistics))


# ---- one pass in training mode -----------------------------------------------------------------------


def bare_network(encoder, **settings):
    return make_network(encoder={}, module=encoder, head={'mode': 'none'}, **settings)


forward = jax.jit(forward_train, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def start(network, images):
    return init_variables(network, jax.random.key(0), images)


def some_images(count=8):
    return np.random.default_rng(1).random((count, SIZE, SIZE, 3), np.float32)


@pytest.mark.parametrize('encoder', ['cnn', 'nnx'])
@pytest.mark.parametrize('strided', [False, True])
def test_groups_of_rows_are_passes_of_their_own(encoder, strided):
    """norm_groups of an encoder that knows nothing of them: as one pass for each group."""
    images, network = some_images(), bare_network(ENCODERS[encoder])
    variables = start(network, images)
    grouped, statistics = forward(network.clone(norm_groups=2, norm_strided=strided), **variables,
                                  images=images)
    rows = (np.arange(8) % 2 if strided else np.arange(8) // 4)
    passes = [forward(network, **variables, images=images[rows == group]) for group in (0, 1)]
    for group, (alone, _) in enumerate(passes):
        np.testing.assert_allclose(grouped.features[rows == group], alone.features, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-4, atol=1e-6),
                 statistics, *(means for _, means in passes))
    with pytest.raises(ValueError, match='batch of 8 rows does not divide into norm_groups=3'):
        forward(network.clone(norm_groups=3), **variables, images=images)


@pytest.mark.parametrize('encoder', [ViT(dropout=0.5), bridge.to_linen(NnxCNN, width=8, dropout=0.5)])
@pytest.mark.parametrize('chunks', [1, 2])
def test_dropout_follows_the_key_of_the_step(encoder, chunks):
    network = bare_network(encoder, encoder_chunks=chunks)
    variables = start(network, some_images())

    def features(images, seed):
        return np.asarray(forward(network, **variables, images=images, key=jax.random.key(seed))[0].features)

    first = features(some_images(), 1)
    np.testing.assert_array_equal(features(some_images(), 1), first)
    assert (features(some_images(), 2) != first).any()
    same = features(np.repeat(some_images(1), 8, 0), 1)
    assert len(np.unique(same, axis=0)) == 8                                    # chunks draw anew


class Odd(nn.Module):
    output: str = 'map'

    @nn.compact
    def __call__(self, images, train):
        if self.output == 'collection':
            self.variable('cache', 'seen', lambda: 0)
        return {'map': images, 'tuple': (images.mean((1, 2)), images), 'scalar': images.mean()}.get(
            self.output, images.mean((1, 2)))


class Deterministic(nn.Module):
    def __call__(self, images, deterministic):
        return images.mean((1, 2))


@pytest.mark.parametrize('encoder, sentence', [
    (Odd('map'), r'Odd returns \[8, 8, 8, 3\] for 8 images: features \[B, D\]'),
    (Odd('tuple'), r'Odd returns \(\[8, 3\], \[8, 8, 8, 3\]\)'), (Odd('scalar'), r'Odd returns \[\]'),
    (Odd('collection'), "Odd keeps variables in collection 'cache'"),
    (Deterministic(), 'has no argument `train`'), (ViT, 'it takes a Flax module'),
    (NnxCNN(rngs=nnx.Rngs(0)), 'give flax.nnx.bridge.to_linen'), (len, 'it takes a Flax module')])
def test_what_is_no_encoder_is_told_in_a_sentence(encoder, sentence):
    with pytest.raises(ValueError, match=sentence):
        start(bare_network(encoder), some_images())


# ---- by name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('encoder', [
    ViT(width=8, dropout=0.1), CNN(dtype=jax.numpy.bfloat16), bridge.to_linen(NnxCNN, width=4),
    simclr_jax.ResNet(depth=18, width=0.5)])
def test_a_config_builds_the_encoder_again(encoder):
    fields = json.loads(json.dumps(describe_encoder(encoder)))
    again = make_encoder({'dtype': 'float32', **fields})
    same = [jax.eval_shape(functools.partial(start, bare_network(module)), some_images())
            for module in (encoder, again)]
    assert type(again) is type(encoder) and same[0] == same[1]
    assert describe_encoder(again) == describe_encoder(encoder)


def test_dtype_is_an_argument_where_the_encoder_takes_it():
    assert make_encoder({'name': 'tests.encoders:CNN', 'dtype': 'bfloat16'}).dtype == jax.numpy.bfloat16
    stated = {'name': 'tests.encoders:CNN', 'arguments': {'dtype': 'float32'}, 'dtype': 'bfloat16'}
    assert make_encoder(stated).dtype == 'float32'
    without = {'name': 'tests.encoders:ViT', 'arguments': {'width': 8}, 'dtype': 'bfloat16'}
    assert make_encoder(without) == ViT(8)


@pytest.mark.parametrize('fields, sentence', [
    ({'name': 'tests.encoders:Nothing'}, 'encoder.name is .* has no Nothing'),
    ({'name': 'tests.encoders:ENCODERS'}, 'is not a class of Flax modules'),
    ({'name': 'os:system'}, 'is not a class of Flax modules'),
    ({'name': 'tests.encoders:ViT', 'arguments': {'depth': 3}}, 'do not fit tests.encoders:ViT'),
    ({'name': 'tests.encoders:NnxCNN', 'arguments': {'depth': 3}}, 'encoder.arguments do not fit'),
    ({'name': ''}, 'encoder.name is empty: .* Give it again as encoder='),
    ({'name': 'swin'}, "encoder.name is 'swin'"),
    ({'depth': 18, 'arguments': {'width': 2}}, 'encoder.arguments are for')])
def test_a_name_or_arguments_that_will_not_do_are_told_in_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_encoder(fields)


def test_a_run_notes_what_its_encoder_does_not_take(on_one_device, tmp_path):
    class Local(ViT):
        pass

    config = make_config('simclr')
    config.num_train_steps, config.encoder.dtype = 1, 'bfloat16'
    config.data.update({'train_split': 'train[:64]', 'test_split': 'none'})
    with on_one_device():
        pretrain(config, str(tmp_path), encoder=Local())
    notes = (tmp_path / 'log.txt').read_text()
    assert 'encoder.dtype is bfloat16, but Local has no field dtype' in notes
    assert 'Local cannot be named in config.json' in notes
    with pytest.raises(ValueError, match='encoder.name is empty'):
        simclr_jax.load_encoder(tmp_path)
    assert simclr_jax.load_encoder(tmp_path, encoder=Local()).width == 16


# ---- every task --------------------------------------------------------------------------------------

CLASSES = {'cnn': 'CNN', 'vit': 'ViT', 'nnx': 'NnxCNN'}


@pytest.fixture(scope='module', params=RUNS)
def run(request, tmp_path_factory):
    """(name, the workdir of its run of four steps with a checkpoint every two)."""
    workdir = str(tmp_path_factory.mktemp(request.param))
    pretrain(run_config(request.param), workdir, encoder=ENCODERS[request.param])
    return request.param, workdir


def run_config(name):
    config = make_config(RUNS[name])
    config.num_train_steps, config.checkpoint.every_epochs = 4, 0.5
    config.encoder_chunks, config.shard_state = 2, True
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    return config


def test_a_run_that_goes_on_ends_as_the_straight_one(run, tmp_path):
    name, workdir = run
    shutil.copytree(workdir, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
    pretrain(run_config(name), str(tmp_path / 'run'), encoder=ENCODERS[name])
    jax.tree.map(np.testing.assert_array_equal, last_state(tmp_path / 'run'), last_state(workdir))


def test_the_encoder_is_loaded_with_the_layers_that_it_has(run):
    name, workdir = run
    loaded = simclr_jax.load_encoder(workdir)
    assert loaded.layers == ('features', *(['block'] if name == 'vit' else []), 'projection')
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    assert [len(loaded(images, layer=layer)) for layer in loaded.layers] == [3] * len(loaded.layers)
    given = simclr_jax.load_encoder(workdir, encoder=ENCODERS[name])
    np.testing.assert_array_equal(given(images), loaded(images))
    if name != 'cnn':
        with pytest.raises(ValueError, match=f'the encoder {CLASSES[name]} has no field dtype'):
            simclr_jax.load_encoder(workdir, dtype='bfloat16')
    else:
        coarse = simclr_jax.load_encoder(workdir, dtype='bfloat16')
        np.testing.assert_allclose(coarse(images), loaded(images), atol=0.05)


def test_it_goes_through_the_evaluations(run, tmp_path):
    name, workdir = run
    solver = {'solver': 'lbfgs', 'l2': '1'}
    if name == 'cnn':
        solver = {'batch_size': 64, 'num_epochs': 1.0, 'pixel_floor': False}
    for task, settings in ((knn, {'k': (5,)}), (linear, solver)):
        results = task(task_config(task.__name__, workdir, **settings), str(tmp_path))
        assert set(results) >= {'random', 'pretrained'}


def test_fine_tuning_freezes_what_it_can_and_its_file_is_an_encoder(run, tmp_path):
    name, workdir = run
    settings = {'batch_size': 64, 'num_epochs': 1.0, 'optimizer': 'sgd', 'learning_rate': 0.1,
                'scaling': 'none', 'init': 'pretrained'}
    before = load_pretrained(workdir).variables
    for from_block in {'cnn': (0, 4), 'vit': (-1, 0), 'nnx': (0, 4)}[name]:
        config = task_config('finetune', workdir, from_block=from_block, **settings)
        if from_block == 0 and name != 'cnn':
            with pytest.raises(ValueError, match=f'the encoder {CLASSES[name]} has no stages'):
                finetune(config, str(tmp_path))
            continue
        finetune(config, str(tmp_path))
        after = load_pretrained(f'{tmp_path}/finetuned.safetensors').variables
        for kind in ('params', 'batch_stats'):
            old, new = (variables[kind].get('encoder', {}) for variables in (before, after))
            kept = {module for module in old if all(
                map(np.array_equal, *map(jax.tree.leaves, (old[module], new[module]))))}
            assert kept == {module for module in old
                            if from_block == 4 or from_block == 0 and module.endswith('0')}


@pytest.mark.parametrize('run', ['nnx'], indirect=True)
def test_features_go_to_a_file_and_are_searched(run, tmp_path):
    _, workdir = run
    config = task_config('embed', workdir, file='features.npz')
    config.data.update({'source': 'shapes', 'train_split': 'test[:20]'})
    embed(config, str(tmp_path))
    assert len(read_features(f'{tmp_path}/features.npz').features) == 20
    Image.fromarray(make_shapes('test', SIZE, num_examples=20)[0][3]).save(tmp_path / '3.png')
    rows = search(task_config('search', '', query=(f'{tmp_path}/3.png',), k=2), str(tmp_path))
    assert rows[0]['index'] == 3


@pytest.mark.parametrize('run', ['vit'], indirect=True)
def test_it_has_a_report(run, tmp_path):
    _, workdir = run
    config = task_config('report', workdir, max_images=40, tsne=False)
    report(config, str(tmp_path))
    page = (tmp_path / 'report.html').read_text()
    assert 'Nearest neighbours' in page and 'ResNet' not in page


def test_it_is_exported(run, tmp_path):
    _, workdir = run
    formats = ('flax', 'onnx', 'stablehlo')
    export(task_config('export', workdir, formats=formats, dir=str(tmp_path)), str(tmp_path))
    encode = load_stablehlo(tmp_path / 'encoder.stablehlo')
    images = some_images(3)
    np.testing.assert_allclose(encode(images), simclr_jax.load_encoder(workdir)(images), rtol=1e-4, atol=1e-5)
