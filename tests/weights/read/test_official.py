"""Official checkpoints give the features of the official model, computed in plain TensorFlow operations."""

import functools
import os
import re
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf

from simclr_jax.models.building import make_network
from simclr_jax.models.resnet import DEPTHS
from simclr_jax.weights.read.official import encoder_names, infer_encoder, is_official, read_official
from tests.weights import official_model as official
from tests.weights.tiny_encoders import BOTTLENECKS, depth_of_bottlenecks

MODELS = {      # SimCLR's two generations, both stems, both blocks, with and without SK
    'v1': dict(depth=18, channels=4, num_proj_layers=2, num_classes=3),
    'v2 SK': dict(depth=BOTTLENECKS, channels=4, sk_ratio=0.0625, num_proj_layers=3),
    'CIFAR': dict(depth=BOTTLENECKS, channels=4, cifar_stem=True, num_proj_layers=1),
    'CIFAR SK': dict(depth=10, channels=8, cifar_stem=True, sk_ratio=0.0625, num_classes=3),
}
# Odd heights and even widths in most stages: strides and pools pad them differently.
IMAGES = np.random.default_rng(1).uniform(size=(2, 39, 58, 3)).astype(np.float32)


@pytest.fixture(scope='module', autouse=True)
def few_bottlenecks():
    with depth_of_bottlenecks(official.SIZES[BOTTLENECKS]):
        yield


@functools.cache
def model(name):
    return official.OfficialModel(**MODELS[name])


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize('name', MODELS)
def test_every_layer_equals_the_official_models(tmp_path, name):
    hiddens, logits = model(name)(IMAGES)
    official.write_tf2(model(name), tmp_path / 'ckpt-31279')
    imported = read_official(tmp_path / 'ckpt-31279')
    network = make_network(encoder=imported.encoder, head=imported.head, mean=imported.mean, std=imported.std)
    layers = jax.jit(lambda tree, images: network.apply(tree, images, train=False).layers)(
        imported.variables, IMAGES)
    assert len(layers) == 1 + MODELS[name].get('num_proj_layers', 3)
    for ours, theirs in zip(layers, hiddens, strict=True):
        assert_close(ours, theirs)
    if logits is None:
        assert imported.classifier is None
    else:
        assert_close(layers[0] @ imported.classifier['kernel'] + imported.classifier['bias'], logits)
    assert imported.card == {'layout': 'TF2 objects', 'step': 31279, 'not_read': ['optimizer']}


@pytest.mark.parametrize('name', ['v1', 'v2 SK', 'CIFAR'])
def test_tf1_names_give_the_same_encoder(tmp_path, name):
    official.write_tf1(official.tf1_variables(model(name)), tmp_path / 'model.ckpt-250228')
    official.write_tf2(model(name), tmp_path / 'ckpt-1')
    old, new = read_official(tmp_path / 'model.ckpt-250228.index'), read_official(f'{tmp_path}/ckpt-1')
    assert (old.encoder, old.head, old.source) == (new.encoder, new.head, new.source)
    jax.tree.map(np.testing.assert_array_equal, (old.variables, old.classifier),
                 (new.variables, new.classifier))
    assert old.card == {'layout': 'TF1 names', 'step': 250228,
                        'not_read': ['moving average of the weights', 'optimizer']}


def test_a_saved_model_is_read_though_its_keys_are_places_in_a_list(tmp_path):
    official.write_saved_model(model('CIFAR SK'), tmp_path / 'saved')
    keys = tf.train.load_checkpoint(str(tmp_path / 'saved/variables/variables')).get_variable_to_shape_map()
    assert 'trainable_variables_list/0/.ATTRIBUTES/VARIABLE_VALUE' in keys
    official.write_tf2(model('CIFAR SK'), tmp_path / 'ckpt-1')
    saved, plain = read_official(tmp_path / 'saved'), read_official(tmp_path / 'ckpt-1')
    jax.tree.map(np.testing.assert_array_equal, (saved.variables, saved.classifier),
                 (plain.variables, plain.classifier))


def test_preprocessing_and_conventions_are_those_of_the_official_code(tmp_path):
    for name, size, proportion in (('v1', 224, 0.875), ('CIFAR SK', 32, 1.0)):
        prefix = official.write_tf2(model(name), tmp_path / 'ckpt')
        imported = read_official(prefix)
        assert (imported.image_size, imported.crop_proportion) == (size, proportion)
        assert (imported.mean, imported.std) == ((0, 0, 0), (1, 1, 1))
        assert imported.encoder['max_pool'] == 'same' and imported.encoder['conv_padding'] == 'symmetric'
    assert imported.source == 'official SimCLR ResNet-10 (0.125x, SK)'


@pytest.mark.parametrize('depth, width, sk_ratio', [
    (18, 1, 0), (34, 2, 0), (50, 1, 0.0625), (50, 4, 0), (101, 2, 0.0625), (152, 3, 0.0625), (152, 2, 0.1),
    (200, 1, 0)])
@pytest.mark.parametrize('tf1', [True, False])
def test_the_network_is_told_from_its_variables(depth, width, sk_ratio, tf1):
    def shape(path):
        stage = re.search(r'stage(\d)', path)
        features = 64 * width * 2 ** (int(stage[1]) - 1) if stage else 64 * width
        return (7, 7, 3, max(int(features * sk_ratio), 32) if 'squeeze_conv' in path else features)

    names = encoder_names(*DEPTHS[depth], 'imagenet', sk_ratio > 0, tf1)
    arrays = {name: np.broadcast_to(np.float32(0), shape(path)) for path, name in names.items()}
    inferred, _ = infer_encoder(arrays, tf1, 'a file')
    assert (inferred['depth'], inferred['width'], inferred['stem']) == (depth, width, 'imagenet')
    assert inferred['sk_ratio'] == pytest.approx(sk_ratio, rel=0.02)
    assert inferred['project_first'] == (depth < 50)


def test_a_directory_means_its_latest_checkpoint(tmp_path):
    small = model('CIFAR SK')
    for step in (1, 2):
        official.write_tf2(small, tmp_path / f'ckpt-{step}')
    with pytest.raises(ValueError, match='several checkpoints.*ckpt-1.index, ckpt-2.index'):
        read_official(tmp_path)
    (tmp_path / 'checkpoint').write_text('model_checkpoint_path: "ckpt-2"')
    os.remove(tmp_path / 'ckpt-1.index')
    assert is_official(tmp_path) and read_official(tmp_path).card['step'] == 31279
    os.remove(tmp_path / 'ckpt-2.index')
    with pytest.raises(ValueError, match='checkpoint does not name a checkpoint that is there'):
        read_official(tmp_path)


@pytest.fixture(scope='module')
def tf1():
    return official.tf1_variables(official.OfficialModel(10, 4, num_classes=3))


NORM = 'base_model/batch_normalization_3'


@pytest.mark.parametrize('change, message', [
    ({f'{NORM}/gamma': None}, f'missing: {NORM}/gamma'),
    ({'base_model/conv2d_4/kernel': None}, 'missing: base_model/conv2d_4/kernel'),
    ({'head_contrastive/nl_1/dense/kernel': None}, 'missing: head_contrastive/nl_1/dense/kernel'),
    ({'head_supervised/linear_layer/dense/bias': None}, 'missing: head_supervised/linear_layer/dense/bias'),
    ({'base_model/dense/kernel': np.zeros((2, 2), 'f')}, 'unexpected: base_model/dense/kernel'),
    ({'queue': np.zeros(2, 'f')}, 'unexpected: queue'),
    ({'head_contrastive/nl_2/batch_normalization/beta': np.zeros(6, 'f')}, 'unexpected: .*nl_2.*beta'),
    ({f'{NORM}/beta': np.zeros(5, 'f')}, rf'another shape: {NORM}/beta \[5\] instead of \[4\]'),
    ({f'{NORM}/gamma': np.ones(4)}, f'not float32: {NORM}/gamma float64'),
    ({f'{NORM}/beta': np.full(4, np.nan, 'f')}, f'not finite: {NORM}/beta'),
    ({'head_supervised/linear_layer/dense/bias': np.full(3, np.nan, 'f')}, 'not finite: head_super.*/bias'),
    ({f'{NORM}/moving_variance': np.full(4, -1, 'f')}, f'negative variances: {NORM}/moving_variance'),
    ({'base_model/conv2d_3/bias': np.zeros(4, 'f')}, 'squeeze-and-excitation.*base_model/conv2d_3/bias'),
    ({'base_model/conv2d_13/kernel': np.zeros((1, 1, 4, 4), 'f')}, 'holds 14 convolutions'),
    ({'base_model/conv2d_14/kernel': np.zeros((1, 1, 4, 4), 'f')}, 'ResNet-10 with selective kernels'),
])
def test_whatever_does_not_fit_is_refused_by_name(tmp_path, tf1, change, message):
    changed = {name: array for name, array in (tf1 | change).items() if array is not None}
    official.write_tf1(changed, tmp_path / 'model.ckpt')
    with pytest.raises(ValueError, match=f'model.ckpt.*{message}'):
        read_official(tmp_path / 'model.ckpt')


def test_what_the_official_model_does_not_have_is_refused(tmp_path):
    odd = official.OfficialModel(10, 4)
    odd.resnet_model.block_groups[1].layers[0].se_layer = official.Conv2D(official.Weights(0), 1, 8, 2)
    with pytest.raises(ValueError, match='squeeze-and-excitation layers .*block_groups/1/layers/0/se_layer'):
        read_official(official.write_tf2(odd, tmp_path / 'ckpt'))
    other = official.OfficialModel(10, 4)
    other.resnet_model.extra = tf.Variable(1.0)
    with pytest.raises(ValueError, match='unexpected: model/resnet_model/extra'):
        read_official(official.write_tf2(other, tmp_path / 'ckpt'))
    foreign = tf.train.Checkpoint(weight=tf.Variable([1.0])).write(str(tmp_path / 'foreign'))
    with pytest.raises(ValueError, match='foreign is a TensorFlow checkpoint, but not.*simclr.*weight'):
        read_official(foreign)


def test_a_classifier_on_the_projection_is_left_out_and_said_so(tmp_path, tf1):
    changed = tf1 | {'head_supervised/linear_layer/dense/kernel': np.ones((6, 3), np.float32)}
    official.write_tf1(changed, tmp_path / 'model.ckpt')
    imported = read_official(tmp_path / 'model.ckpt')
    assert imported.classifier is None
    assert imported.card['supervised_head'] == 'reads 6 values, not the 32 features: not imported'


def test_a_file_without_a_head_is_an_encoder(tmp_path, tf1):
    official.write_tf1({name: array for name, array in tf1.items() if name.startswith('base_model/')},
                       tmp_path / 'model.ckpt')
    imported = read_official(tmp_path / 'model.ckpt')
    assert imported.head == {'mode': 'none'} and set(imported.variables['params']) == {'encoder'}


def test_damaged_files_and_wrong_paths_end_in_a_sentence(tmp_path, tf1, monkeypatch):
    official.write_tf1(tf1, tmp_path / 'model.ckpt')
    data, index = tmp_path / 'model.ckpt.data-00000-of-00001', tmp_path / 'model.ckpt.index'
    whole = data.read_bytes()
    data.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match='model.ckpt, variable .* cannot be read: it is damaged'):
        read_official(tmp_path / 'model.ckpt')
    data.write_bytes(whole)
    with monkeypatch.context() as patch, pytest.raises(ImportError, match='not installed: pip install') as raised:
        patch.setitem(sys.modules, 'tensorflow', None)
        read_official(tmp_path / 'model.ckpt')
    assert isinstance(raised.value, ValueError)         # by the command: one sentence
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(ValueError, match='model.ckpt cannot be read: it is damaged'):
        read_official(tmp_path / 'model.ckpt')
    with pytest.raises(FileNotFoundError, match='no TensorFlow checkpoint .*absent'):
        read_official(tmp_path / 'absent')
    os.mkdir(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='empty holds no TensorFlow checkpoint'):
        read_official(tmp_path / 'empty')
    os.symlink(tmp_path / 'loop', tmp_path / 'loop')
    with pytest.raises(FileNotFoundError, match='no TensorFlow checkpoint .*loop'):
        read_official(tmp_path / 'loop')
    assert not is_official(tmp_path / 'loop') and not is_official(tmp_path / 'absent')
