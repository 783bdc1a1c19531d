"""Encoders in TensorFlow: the same features as here, from a program that TensorFlow runs by itself."""

import os

import numpy as np
import pytest

import simclr_jax

tf = pytest.importorskip('tensorflow')      # the format is its own

from simclr_jax.models.folding import fold
from simclr_jax.weights.tree import size_step
from simclr_jax.weights.write.programs import load_savedmodel, write_savedmodel
from tests.weights.tiny_encoders import (  # noqa: E402
    CASES,
    OTHERS,
    assert_close,
    depth_of_bottlenecks,
    layers_of,
    network_of_others,
    random_images,
    random_network,
)


@pytest.mark.parametrize('name', OTHERS)
def test_features_of_any_encoder_are_those_of_our_own_network(name, tmp_path):
    network, variables = network_of_others(name)
    write_savedmodel(tmp_path / 'model', network, variables, image_size=33, layer=-1)
    encode = load_savedmodel(tmp_path / 'model')
    images = random_images(2, 33, 33)
    ours = layers_of(network, variables, images)[-1]
    assert_close(encode(images), ours)
    assert_close(encode(images[:1]), ours[:1])


@pytest.mark.parametrize('case, step', [('selective kernels', 1), ('resnet-d', 1), ('as haiku', 32)])
def test_the_loaded_object_takes_images_of_any_number_and_size(case, step, tmp_path):
    """SAME convolutions: of sizes that 32 divides."""
    assert size_step(CASES[case][0], 64) == step
    sizes = ((3, 32, 32), (1, 64, 32)) if step == 32 else ((1, 33, 50), (2, 61, 28))
    with depth_of_bottlenecks():
        network, variables = random_network(case)
        write_savedmodel(tmp_path / 'model', network, variables, size_step=step)
        ours = [layers_of(network, variables, random_images(*size))[0] for size in sizes]
    loaded = tf.saved_model.load(str(tmp_path / 'model'))
    serve = loaded.signatures['serving_default']
    assert tuple(serve.inputs[0].shape) == (None, None, None, 3)
    assert tuple(serve.structured_outputs['features'].shape) == (None, ours[0].shape[1])
    for size, features in zip(sizes, ours):
        assert_close(loaded(tf.constant(random_images(*size)))['features'].numpy(), features)
    if step == 32:
        with pytest.raises(tf.errors.InvalidArgumentError, match='32'):
            loaded(tf.constant(random_images(1, 33, 33)))
    assert not any(os.path.dirname(simclr_jax.__file__).encode() in path.read_bytes()
                   for path in (tmp_path / 'model').rglob('*') if path.is_file())
    weights = {weight.name: weight.numpy() for weight in loaded.weights}
    kernel = fold(network, variables)['params']['encoder']['stage1_block1']['conv1']['kernel']     # with its norm
    np.testing.assert_array_equal(weights['encoder/stage1_block1/conv1/kernel:0'], kernel)


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        write_savedmodel(tmp_path / 'file' / 'model', *random_network('cifar'), image_size=8)
