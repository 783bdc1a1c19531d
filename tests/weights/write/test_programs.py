"""Encoders as programs for onnxruntime, TensorFlow and JAX: the same features as here, of any number of images."""

import functools
import importlib.util
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import simclr_jax
from simclr_jax.models.folding import fold
from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.weights.tree import size_step
from simclr_jax.weights.write import programs
from tests.weights.tiny_encoders import (
    CASES,
    OTHERS,
    TWO_GIB,
    assert_close,
    depth_of_bottlenecks,
    layers_of,
    network_of_others,
    random_images,
    random_network,
)


def needs(*modules):
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, modules)), reason='of an extra')


ONNX, TENSORFLOW = needs('onnx', 'onnxruntime'), needs('tensorflow')


@pytest.fixture(scope='module', autouse=True)
def few_bottlenecks():
    with depth_of_bottlenecks():
        yield


@functools.cache
def network_of(name):
    return network_of_others(name) if name in OTHERS else random_network(name)


@functools.cache
def layers(name, *size):
    """Those of our own network, of `random_images(*size)`."""
    return layers_of(*network_of(name), random_images(*size))


def written(kind, path, name, **options):
    """A case as a program, loaded: images -> features."""
    getattr(programs, f'write_{kind}')(path, *network_of(name), **options)
    return getattr(programs, f'load_{kind}')(path)


@pytest.mark.parametrize('kind, name', [
    *(pytest.param(kind, name, marks=mark) for kind, mark in (('onnx', ONNX), ('savedmodel', TENSORFLOW))
      for name in OTHERS), *(('stablehlo', name) for name in ('selective kernels', *OTHERS))])
def test_features_of_one_and_of_three_images_are_those_of_our_own_network(kind, name, tmp_path):
    encode = written(kind, tmp_path / 'program', name, image_size=33, layer=-1)
    images, ours = random_images(3, 33, 33), layers(name, 3, 33, 33)[-1]
    assert_close(encode(images), ours)
    assert_close(encode(images[1:2]), np.asarray(ours)[1:2])


@pytest.mark.parametrize('kind, name, sizes', [
    pytest.param('onnx', 'as haiku', ((3, 48, 32), (1, 17, 18)), marks=ONNX),
    pytest.param('savedmodel', 'selective kernels', ((1, 33, 50), (2, 61, 28)), marks=TENSORFLOW)])
def test_number_and_size_of_the_images_are_free(kind, name, sizes, tmp_path):
    encode = written(kind, tmp_path / 'program', name)
    for size in sizes:
        assert_close(encode(random_images(*size)), layers(name, *size)[0])


# ---- ONNX --------------------------------------------------------------------------------------


@ONNX
@pytest.mark.parametrize('case', ['basic', 'bottleneck', 'selective kernels', 'resnet-d'])
def test_a_layer_of_onnx_is_that_of_our_own_network(case, tmp_path):
    images, ours = random_images(2, 33, 40), layers(case, 2, 33, 40)
    for layer in (1, -1) if case == 'basic' else (-1,):
        assert_close(written('onnx', tmp_path / 'encoder.onnx', case, layer=layer)(images), ours[layer])


@ONNX
def test_an_operation_that_onnx_has_not_is_named(tmp_path):
    class Sorted(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return jnp.sort(nn.Dense(4)(images.mean((1, 2))))

    network = Network(Sorted(), ProjectionHead(mode='none'))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    with pytest.raises(ValueError, match='uses the operation sort of JAX, .* export it as a'):
        programs.write_onnx(tmp_path / 'encoder.onnx', network, variables, image_size=8)
    assert not list(tmp_path.iterdir())


@ONNX
def test_onnx_passes_the_checker_and_says_what_goes_in_and_out(tmp_path):
    import onnx
    programs.write_onnx(tmp_path / 'encoder.onnx', *network_of('cifar'), metadata={'source': 'a test'})
    model = onnx.load(tmp_path / 'encoder.onnx')
    onnx.checker.check_model(model, full_check=True)
    sizes = {value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
             for value in (*model.graph.input, *model.graph.output)}
    assert sizes == {'images': ['batch', 'height', 'width', 3], 'features': ['batch', 64]}
    assert {entry.key: entry.value for entry in model.metadata_props} == {'source': 'a test'}
    assert 'encoder/stem_conv/kernel' in {array.name for array in model.graph.initializer}
    images = random_images(2, 16, 16)
    assert_close(programs.load_onnx(tmp_path / 'encoder.onnx')(images), layers('cifar', 2, 16, 16)[0])


@ONNX
def test_what_cannot_be_written_as_onnx_is_refused(tmp_path):
    network, variables = network_of('basic')
    with pytest.raises(ValueError, match='layer is 4: the head has layers 0 .features. to 3 .projection.'):
        programs.write_onnx(tmp_path / 'encoder.onnx', network, variables, layer=4)
    with pytest.raises(ValueError, match='2.0 GiB of weights and an ONNX file holds at most 2'):
        programs.write_onnx(tmp_path / 'encoder.onnx', network, {'params': {'encoder': TWO_GIB}})
    assert not list(tmp_path.iterdir())


# ---- TensorFlow --------------------------------------------------------------------------------


@TENSORFLOW
def test_a_saved_model_says_what_goes_in_and_out_and_nothing_of_the_machine(tmp_path):
    import tensorflow as tf
    assert [size_step(CASES[case][0], 64) for case in ('selective kernels', 'resnet-d', 'as haiku')] == [1, 1, 32]
    network, variables = network_of('as haiku')
    programs.write_savedmodel(tmp_path / 'model', network, variables, size_step=32)
    loaded = tf.saved_model.load(str(tmp_path / 'model'))
    serve = loaded.signatures['serving_default']
    assert tuple(serve.inputs[0].shape) == (None, None, None, 3)
    assert tuple(serve.structured_outputs['features'].shape) == (None, 64)
    for size in ((3, 32, 32), (1, 64, 32)):     # SAME convolutions: of sizes that 32 divides
        features = loaded(tf.constant(random_images(*size)))['features'].numpy()
        assert_close(features, layers('as haiku', *size)[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match='32'):
        loaded(tf.constant(random_images(1, 33, 33)))
    assert not any(os.path.dirname(simclr_jax.__file__).encode() in path.read_bytes()
                   for path in (tmp_path / 'model').rglob('*') if path.is_file())
    weights = {weight.name: weight.numpy() for weight in loaded.weights}
    kernel = fold(network, variables)['params']['encoder']['stage1_block1']['conv1']['kernel']     # with its norm
    np.testing.assert_array_equal(weights['encoder/stage1_block1/conv1/kernel:0'], kernel)


@TENSORFLOW
def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        programs.write_savedmodel(tmp_path / 'file' / 'model', *network_of('cifar'), image_size=8)


# ---- StableHLO ---------------------------------------------------------------------------------


def test_one_stablehlo_file_is_for_processors_gpus_and_tpus_and_anything_else_is_refused(tmp_path):
    network, variables = network_of('cifar')
    programs.write_stablehlo(tmp_path / 'program', network, variables, image_size=16)
    data = (tmp_path / 'program').read_bytes()
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert str(exported.in_avals[0]) == 'float32[b,16,16,3]'
    assert 'HIGHEST' in exported.mlir_module()      # or GPUs and TPUs would round the products
    assert 'simclr_jax_loops' not in exported.mlir_module()     # which are compiled for one processor
    for of_this_machine in (os.path.dirname(simclr_jax.__file__), os.path.dirname(jax.__file__), '.py'):
        assert of_this_machine.encode() not in data
    for name, other in (('cut', data[:1000]), ('text', b'weights'), ('empty', b'')):
        (tmp_path / name).write_bytes(other)
        with pytest.raises(ValueError, match=f'{name} holds no StableHLO program that JAX'):
            programs.load_stablehlo(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        programs.load_stablehlo(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='a StableHLO file holds at most 2: export it as a savedmodel'):
        programs.write_stablehlo(tmp_path / 'large', network, {'params': {'encoder': TWO_GIB}}, image_size=16)
    assert not (tmp_path / 'large').exists()
