"""Encoders in TensorFlow: the same features as here, from operations of TensorFlow alone."""

import numpy as np
import pytest

tf = pytest.importorskip('tensorflow')      # the format is its own

from simclr_jax.weights.write.graph import features
from simclr_jax.weights.write.savedmodel import TensorFlowOperations, load_savedmodel, write_savedmodel
from tests.weights.random_weights import random_variables  # noqa: E402
from tests.weights.tiny_encoders import (CASES, NORMALIZATION, assert_close, depth_of_bottlenecks,  # noqa: E402
                                         own_layers, random_images)


@pytest.mark.parametrize('case', CASES)
def test_every_layer_is_that_of_our_own_network(case):
    fields, images = dict(zip(('encoder', 'head'), CASES[case])), random_images(2, 33, 40)
    normalized = tf.constant((images - np.float32(NORMALIZATION['mean'])) / np.float32(NORMALIZATION['std']))
    with depth_of_bottlenecks():
        variables = random_variables(*CASES[case])
        for layer, ours in enumerate(own_layers(images, variables, **fields, **NORMALIZATION)):
            theirs = features(TensorFlowOperations(), normalized, variables, **fields, layer=layer)
            assert_close(theirs.numpy(), ours)


def test_the_loaded_object_is_plain_tensorflow_for_any_number_and_size_of_images(tmp_path):
    encoder, _ = CASES['cifar']
    fields = {'encoder': encoder, 'head': {'mode': 'linear', 'out_dim': 8}, **NORMALIZATION}
    variables = random_variables(encoder, fields['head'])
    write_savedmodel(tmp_path / 'model', variables, **fields, layer=-1)
    loaded = tf.saved_model.load(str(tmp_path / 'model'))
    serve = loaded.signatures['serving_default']
    assert tuple(serve.inputs[0].shape) == (None, None, None, 3)
    assert tuple(serve.structured_outputs['features'].shape) == (None, 8)
    for shape in ((3, 16, 16), (1, 9, 20)):
        images = random_images(*shape)
        ours = own_layers(images, variables, **fields)[-1]
        assert_close(load_savedmodel(tmp_path / 'model')(images), ours)
        assert_close(loaded(tf.constant(images))['features'].numpy(), ours)
    names = {weight.name for weight in loaded.weights}
    assert {'encoder/stem_conv/kernel:0', 'head/norm1/var:0'} <= names
    # A program of JAX's in it would need a TensorFlow as new as that JAX.
    library = serve.graph.as_graph_def().library
    kinds = {node.op for function in library.function for node in function.node_def}
    assert 'Conv2D' in kinds and 'XlaCallModule' not in kinds


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / 'file').write_text('')
    encoder, head = CASES['cifar']
    with pytest.raises(OSError):
        write_savedmodel(tmp_path / 'file' / 'model', random_variables(encoder, head), encoder=encoder,
                         head=head)
