"""Names and shapes against the classes of timm and torchvision themselves, and what is no encoder of ours."""

import numpy as np
import pytest

from tests.weights.torch_setup import torch  # isort: skip
import timm
import torchvision

from simclr_jax.weights.torch_names import encoder_fields, encoder_from_torch, encoder_to_torch
from simclr_jax.weights.tree import expected
from tests.weights.random_weights import assert_same_arrays, random_variables

NO_HEAD = {'mode': 'none'}
TINY = {'depth': 10, 'width': 0.125, 'stem': 'imagenet', 'sk_ratio': 0.0, 'project_first': False}


def without_memory(build):
    """{name: array of its shape} of a torch model that is never allocated, without fc."""
    with torch.device('meta'):
        state = build().state_dict()
    return {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in state.items()
            if not name.startswith('fc.')}


def unallocated(encoder):
    """Variables of the right shapes that take no memory."""
    tree = {}
    for path, shape in expected(encoder, NO_HEAD).items():
        *parents, leaf = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = np.broadcast_to(np.float32(0), shape)
    return tree


def shapes(arrays):
    return {name: array.shape for name, array in arrays.items()}


@pytest.mark.parametrize('depth', [18, 50])
def test_names_and_shapes_are_torchvisions(depth):
    theirs = without_memory(getattr(torchvision.models, f'resnet{depth}'))
    ours = encoder_to_torch({'depth': depth}, unallocated({'depth': depth}))
    assert shapes(ours) == shapes(theirs)
    assert {name for name, array in ours.items() if array.dtype == np.int64} == {
        name for name in theirs if name.endswith('num_batches_tracked')}


@pytest.mark.parametrize('name, fields', [
    *((f'resnet{depth}', {'depth': depth}) for depth in (18, 34, 50, 101, 152, 200)),
    ('resnet18d', {'depth': 18, 'sk_ratio': 0.0625})])
def test_the_architecture_is_read_off_timms_names(name, fields):
    arrays = without_memory(lambda: timm.create_model(name))
    assert encoder_fields(arrays, 'f') == {**TINY, 'width': 1.0, **fields}


@pytest.mark.parametrize('fields', [
    {}, {'width': 0.25}, {'width': 3 / 64}, {'stem': 'cifar', 'project_first': True}, {'sk_ratio': 0.0625},
    {'depth': 50, 'sk_ratio': 0.75}, {'depth': 50, 'sk_ratio': 0.0625, 'stem': 'cifar'}])
def test_there_and_back_is_the_same_architecture_and_the_same_bits(fields):
    fields = {**TINY, **fields}
    variables = random_variables(fields, NO_HEAD)
    arrays = encoder_to_torch(fields, variables)
    assert encoder_fields(arrays, 'f') == fields
    assert_same_arrays(encoder_from_torch(arrays, {}, encoder=fields, head=NO_HEAD, file='f')[0], variables)


@pytest.mark.parametrize('name, message', [
    ('resnet26', 'f has stages of 2, 2, 2, 2 bottleneck blocks: no ResNet of depth 10, 18, '),
    ('skresnet18', 'f is not a ResNet of timm, torchvision or MoCo: it has no conv1.weight and layer1.0.conv1'),
    ('vit_tiny_patch16_224', 'f is not a ResNet.*cls_token, pos_embed'),
    ('resnet50d', 'only a part .* stem: True, averaging shortcuts: True, selective kernels: False'),
    ('resnet50c', 'only a part .* stem: True, averaging shortcuts: False'),
])
def test_another_network_is_refused_by_what_tells_it_apart(name, message):
    with pytest.raises(ValueError, match=message):
        encoder_fields(without_memory(lambda: timm.create_model(name)), 'f')


@pytest.mark.parametrize('name, message', [
    ('wide_resnet50_2', r'of another shape: layer1\.0\.conv1\.weight \[128, 64, 1, 1\] .* and 172 more'),
    ('resnext50_32x4d', r'layer1\.0\.conv2\.weight \[128, 4, 3, 3\] instead of \[64, 64, 3, 3\]'),
    ('seresnet50', r'unexpected: layer1\.0\.se\.'),
    ('resnet10t', r'conv1\.0\.weight \[24, 3, 3, 3\] instead of \[32, 3, 3, 3\]'),
])
def test_what_resembles_a_resnet_is_refused_by_shapes_in_torchs_order(name, message):
    arrays = without_memory(lambda: timm.create_model(name))
    with pytest.raises(ValueError, match=message):
        encoder_from_torch(arrays, {}, encoder=encoder_fields(arrays, 'f'), head=NO_HEAD, file='f')


def spoilt(name, value):
    """The arrays of a tiny network with selective kernels, one of them exchanged or, None, gone."""
    fields = {**TINY, 'depth': 50, 'sk_ratio': 0.0625}
    arrays = encoder_to_torch(fields, random_variables(fields, NO_HEAD))
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    return fields, arrays


@pytest.mark.parametrize('name, value, message', [
    ('layer2.1.bn9.weight', np.ones(3, np.float32), 'unexpected: p.layer2.1.bn9.weight'),
    ('layer3.4.conv2.paths.1.bn.weight', None, r'missing: p.layer3.4.conv2.paths.\[01\].bn.weight'),
    ('conv1.3.weight', np.float32(1), r'conv1.3.weight \[\] instead of'),
    ('bn1.running_var', -np.ones(8, np.float32), 'negative variances: p.bn1.running_var'),
    ('bn1.running_mean', np.full(8, np.nan, np.float32), 'not finite: p.bn1.running_mean'),
    ('bn1.weight', np.ones(8, np.float64), 'not float32: p.bn1.weight float64'),
])
def test_one_wrong_array_is_named_as_in_the_file(name, value, message):
    fields, arrays = spoilt(name, value)
    with pytest.raises(ValueError, match=f'^f does not fit the network: .*{message}'):
        encoder_from_torch(arrays, {}, encoder=fields, head=NO_HEAD, file='f', prefix='p.')
