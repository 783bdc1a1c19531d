"""Encoders in onnxruntime: the same features as here, for images of any number and size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

onnx = pytest.importorskip('onnx')          # both of the extra [export]
pytest.importorskip('onnxruntime')

from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.weights.write.programs import load_onnx, write_onnx
from tests.weights.tiny_encoders import (  # noqa: E402
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


@pytest.mark.parametrize('case', CASES)
def test_a_layer_is_that_of_our_own_network(case, tmp_path):
    """The last one, and once all of them."""
    images = random_images(2, 33, 40)
    with depth_of_bottlenecks():
        network, variables = random_network(case)
        ours = layers_of(network, variables, images)
        for layer in range(len(ours)) if case == 'basic' else (-1,):
            write_onnx(tmp_path / 'encoder.onnx', network, variables, layer=layer)
            assert_close(load_onnx(tmp_path / 'encoder.onnx')(images), ours[layer])


@pytest.mark.parametrize('name', OTHERS)
def test_an_encoder_that_is_not_ours_for_any_number_of_images(name, tmp_path):
    network, variables = network_of_others(name)
    write_onnx(tmp_path / 'encoder.onnx', network, variables, image_size=33)
    for count in (1, 3):
        images = random_images(count, 33, 33)
        assert_close(load_onnx(tmp_path / 'encoder.onnx')(images), layers_of(network, variables, images)[0])


def test_number_and_size_of_the_images_are_free(tmp_path):
    network, variables = random_network('as haiku')
    write_onnx(tmp_path / 'encoder.onnx', network, variables)
    encoder = load_onnx(tmp_path / 'encoder.onnx')
    large, small = random_images(3, 48, 32), random_images(1, 17, 18)
    assert_close(encoder(large), layers_of(network, variables, large)[0])
    assert_close(encoder(small), layers_of(network, variables, small)[0])
    assert_close(encoder(large[1:2]), encoder(large)[1:2])


def test_an_operation_that_onnx_has_not_is_named(tmp_path):
    class Sorted(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return jnp.sort(nn.Dense(4)(images.mean((1, 2))))

    network = Network(Sorted(), ProjectionHead(mode='none'))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    with pytest.raises(ValueError, match='uses the operation sort of JAX, .* export it as a'):
        write_onnx(tmp_path / 'encoder.onnx', network, variables, image_size=8)
    assert not list(tmp_path.iterdir())


def test_it_passes_the_checker_and_says_what_goes_in_and_out(tmp_path):
    write_onnx(tmp_path / 'encoder.onnx', *random_network('cifar'), metadata={'source': 'a test'})
    model = onnx.load(tmp_path / 'encoder.onnx')
    onnx.checker.check_model(model, full_check=True)
    sizes = {value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
             for value in (*model.graph.input, *model.graph.output)}
    assert sizes == {'images': ['batch', 'height', 'width', 3], 'features': ['batch', 64]}
    assert {entry.key: entry.value for entry in model.metadata_props} == {'source': 'a test'}
    assert 'encoder/stem_conv/kernel' in {array.name for array in model.graph.initializer}


def test_what_cannot_be_written_is_refused(tmp_path):
    network, variables = random_network('basic')
    with pytest.raises(ValueError, match='layer is 4: the head has layers 0 .features. to 3 .projection.'):
        write_onnx(tmp_path / 'encoder.onnx', network, variables, layer=4)
    with pytest.raises(ValueError, match='2.0 GiB of weights and an ONNX file holds at most 2'):
        write_onnx(tmp_path / 'encoder.onnx', network, {'params': {'encoder': TWO_GIB}})
    assert not list(tmp_path.iterdir())
