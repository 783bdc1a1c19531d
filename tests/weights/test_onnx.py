"""Encoders in onnxruntime: the same features as here, for images of any number and size."""

import jax
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')          # both of the extra [export]
pytest.importorskip('onnxruntime')

from simclr_jax.weights.write import onnx as onnx_file
from simclr_jax.weights.write.onnx import load_onnx, write_onnx
from tests.weights.random_weights import random_variables  # noqa: E402
from tests.weights.tiny_encoders import (CASES, NORMALIZATION, assert_close, depth_of_bottlenecks,  # noqa: E402
                                         own_layers, random_images)


def fields_of(case):
    encoder, head = CASES[case]
    return {'encoder': encoder, 'head': head, **NORMALIZATION}


@pytest.mark.parametrize('case', CASES)
def test_every_layer_is_that_of_our_own_network(case, tmp_path):
    fields, images = fields_of(case), random_images(2, 33, 40)
    with depth_of_bottlenecks():
        variables = random_variables(*CASES[case])
        layers = own_layers(images, variables, **fields)
        for layer, ours in enumerate(layers):
            write_onnx(tmp_path / 'encoder.onnx', variables, **fields, layer=layer)
            assert_close(load_onnx(tmp_path / 'encoder.onnx')(images), ours)


def test_number_and_size_of_the_images_are_free(tmp_path):
    fields, variables = fields_of('basic'), random_variables(*CASES['basic'])
    write_onnx(tmp_path / 'encoder.onnx', variables, **fields)
    encoder = load_onnx(tmp_path / 'encoder.onnx')
    large, small = random_images(3, 48, 32), random_images(1, 17, 17)
    assert_close(encoder(large), own_layers(large, variables, **fields)[0])
    assert_close(encoder(small), own_layers(small, variables, **fields)[0])
    assert_close(encoder(large[1:2]), encoder(large)[1:2])


def test_it_passes_the_checker_and_says_what_goes_in_and_out(tmp_path):
    write_onnx(tmp_path / 'encoder.onnx', random_variables(*CASES['cifar']), **fields_of('cifar'),
               facts={'source': 'a test'})
    model = onnx.load(tmp_path / 'encoder.onnx')
    onnx.checker.check_model(model, full_check=True)
    sizes = {value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
             for value in (*model.graph.input, *model.graph.output)}
    assert sizes == {'images': ['batch', 'height', 'width', 3], 'features': ['batch', 64]}
    assert {fact.key: fact.value for fact in model.metadata_props} == {'source': 'a test'}
    assert 'encoder/stem_conv/kernel' in {array.name for array in model.graph.initializer}


def test_without_mean_and_std_the_images_go_in_as_they_are(tmp_path):
    variables, images = random_variables(*CASES['cifar']), random_images(1, 16, 16)
    fields = fields_of('cifar')
    write_onnx(tmp_path / 'inside.onnx', variables, **fields)
    write_onnx(tmp_path / 'outside.onnx', variables, encoder=fields['encoder'], head=fields['head'])
    normalized = (images - np.float32(fields['mean'])) / np.float32(fields['std'])
    inside, outside = (load_onnx(tmp_path / f'{name}.onnx') for name in ('inside', 'outside'))
    assert_close(outside(normalized), inside(images))


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    fields, variables = fields_of('basic'), random_variables(*CASES['basic'])
    with pytest.raises(ValueError, match='layer is 4: the head has layers 0 .features. to 3 .projection.'):
        write_onnx(tmp_path / 'encoder.onnx', variables, **fields, layer=4)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables['params']['encoder']))
    monkeypatch.setattr(onnx_file, '_MOST_BYTES', size // 2)
    with pytest.raises(ValueError, match='GiB of weights and an ONNX file holds at most 2'):
        write_onnx(tmp_path / 'encoder.onnx', variables, **fields)
    assert not list(tmp_path.iterdir())
