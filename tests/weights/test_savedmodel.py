"""Encoders in TensorFlow: the same features as here, from a program that TensorFlow runs by itself."""

import numpy as np
import pytest

tf = pytest.importorskip('tensorflow')      # the format is its own

from simclr_jax.weights.write.savedmodel import load_savedmodel, write_savedmodel
from tests.weights.tiny_encoders import (OTHERS, assert_close, depth_of_bottlenecks, layers_of,  # noqa: E402
                                         network_of_others, random_images, random_network)


@pytest.mark.parametrize('name', ['selective kernels', *OTHERS])
def test_features_of_any_encoder_are_those_of_our_own_network(name, tmp_path):
    with depth_of_bottlenecks():
        network, variables = network_of_others(name) if name in OTHERS else random_network(name)
        write_savedmodel(tmp_path / 'model', network, variables, image_size=33, layer=-1)
        for count in (2, 1):
            images = random_images(count, 33, 33)
            ours = layers_of(network, variables, images)[-1]
            assert_close(load_savedmodel(tmp_path / 'model')(images), ours)


def test_the_loaded_object_takes_images_of_any_number_and_of_sizes_that_32_divides(tmp_path):
    network, variables = random_network('cifar')
    write_savedmodel(tmp_path / 'model', network, variables)
    loaded = tf.saved_model.load(str(tmp_path / 'model'))
    serve = loaded.signatures['serving_default']
    assert tuple(serve.inputs[0].shape) == (None, None, None, 3)
    assert tuple(serve.structured_outputs['features'].shape) == (None, 64)
    for shape in ((3, 32, 32), (1, 32, 64)):
        images = random_images(*shape)
        ours = layers_of(network, variables, images)[0]
        assert_close(loaded(tf.constant(images))['features'].numpy(), ours)
    with pytest.raises(tf.errors.InvalidArgumentError, match='32'):
        loaded(tf.constant(random_images(1, 33, 33)))
    weights = {weight.name: weight.numpy() for weight in loaded.weights}
    kernel = variables['params']['encoder']['stem_conv']['kernel']
    np.testing.assert_array_equal(weights['encoder/stem_conv/kernel:0'], kernel)


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        write_savedmodel(tmp_path / 'file' / 'model', *random_network('cifar'), image_size=8)
