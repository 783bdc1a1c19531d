"""Files of PyTorch as others write them, and files that mean harm."""

import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import pytest

from tests.weights.torch_setup import torch  # isort: skip
import safetensors.torch

from simclr_jax.models.building import make_network
from simclr_jax.weights.read.torch import read_torch
from simclr_jax.weights.torch_names import encoder_to_torch, head_to_torch
from simclr_jax.weights.write.torch import write_torch
from tests.weights.random_weights import assert_same_arrays, random_imported

ENCODER = {'depth': 10, 'width': 0.125}
MOCO_HEAD = {'norm': False, 'final_norm': False, 'bias': True, 'final_bias': True, 'out_dim': 6}
HEADS = {1: {'mode': 'linear', **MOCO_HEAD},
         2: {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 64, **MOCO_HEAD}}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def tensors(arrays, prefix=''):
    return {prefix + name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


@pytest.fixture(scope='module')
def plain():
    return random_imported(ENCODER, classes=3)


@pytest.fixture
def state(plain):
    """Its state dict, as torchvision would save it."""
    return tensors(encoder_to_torch(plain.encoder, plain.variables, plain.classifier))


@pytest.mark.parametrize('wrap', [
    lambda state: state,
    lambda state: {'state_dict': state, 'epoch': 90, 'arch': 'resnet10'},
    lambda state: {'model': state, 'args': {'lr': 0.1}},
    lambda state: {'state_dict': {f'module.{name}': tensor for name, tensor in state.items()}},
    lambda state: {name: tensor for name, tensor in state.items() if 'num_batches' not in name},
    lambda state: {'student': {}, 'teacher': {f'module.{name}': tensor for name, tensor in state.items()}},
], ids=['plain', 'state_dict', 'model', 'module', 'without counters', 'dino'])
@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_a_resnet_of_others_is_read_with_torchvisions_conventions(wrap, name, plain, state, tmp_path):
    held = wrap(state)
    if name.endswith('.safetensors'):
        held = held.get('state_dict') or held.get('model') or held.get('teacher') or held
        safetensors.torch.save_file(held, tmp_path / name)
    else:
        torch.save(held, tmp_path / name)
    read = read_torch(tmp_path / name)
    assert_same_arrays(read.variables['params'], plain.variables['params'])
    assert_same_arrays(read.variables['batch_stats'], plain.variables['batch_stats'])
    assert_same_arrays(read.classifier, plain.classifier)
    assert (read.mean, read.std) == IMAGENET and (read.image_size, read.crop_proportion) == (224, 0.875)
    assert read.encoder['max_pool'] == 'torch' and read.encoder['norm_epsilon'] == 1e-5
    assert {'mean', 'max_pool', 'crop_proportion'} <= set(read.card['assumed'])


def test_a_cifar_stem_means_small_images_and_no_crop(tmp_path):
    small = random_imported({**ENCODER, 'stem': 'cifar'})
    torch.save(tensors(encoder_to_torch(small.encoder, small.variables)), tmp_path / 'w.pt')
    read = read_torch(tmp_path / 'w.pt')
    assert (read.image_size, read.crop_proportion, read.classifier) == (32, 1.0, None)


TWO_LAYERS = {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 64, **MOCO_HEAD}
WITHOUT_BIAS = {**TWO_LAYERS, 'bias': False, 'final_bias': False}
CHILDREN = {'conv1': 0, 'bn1': 1, 'layer1': 4, 'layer2': 5, 'layer3': 6, 'layer4': 7}
BATCH_NORM = {'1.running_mean': np.ones(64, 'f'), '1.running_var': np.ones(64, 'f')}


def children(state):
    """Names of nn.Sequential(*list(resnet.children())[:-1])."""
    return {'.'.join([str(CHILDREN[name.split('.')[0]]), *name.split('.')[1:]]): array
            for name, array in state.items()}


# Of each program: how it names what it saves, given (encoder, head), the head that is read, what is left.
PROGRAMS = {
    'solo-learn': (lambda encoder, head: {                          # solo/methods/base.py, simclr.py
        **tensors(encoder, 'backbone.'), **tensors(head, 'projector.'),
        **tensors({'weight': np.ones((3, 64), 'f'), 'bias': np.ones(3, 'f')}, 'classifier.')},
        TWO_LAYERS, ['classifier.*']),
    'solo-learn, byol': (lambda encoder, head: {
        **tensors(encoder, 'backbone.'), **tensors(encoder, 'momentum_backbone.'),
        **tensors({**head, **BATCH_NORM}, 'projector.')}, None, ['momentum_backbone.*', 'projector.*']),
    'sthalles': (lambda encoder, head: {                            # models/resnet_simclr.py
        **tensors(encoder, 'backbone.'), **tensors(head, 'backbone.fc.')}, TWO_LAYERS, []),
    'spijkervet': (lambda encoder, head: {                          # simclr/simclr.py
        **tensors(encoder, 'encoder.'), **tensors(head, 'projector.')}, WITHOUT_BIAS, []),
    'mmpretrain': (lambda encoder, head: {
        **tensors(encoder, 'backbone.'), **tensors({**head, **BATCH_NORM}, 'neck.fc.'),
        'data_preprocessor.mean': torch.tensor([51., 102., 153.]).reshape(3, 1, 1),
        'data_preprocessor.std': torch.tensor([51., 51., 25.5]).reshape(3, 1, 1)},
        None, ['data_preprocessor.*', 'neck.*']),
    'lightly': (lambda encoder, head: {
        **tensors(children(encoder), 'backbone.'), **tensors(head, 'projection_head.layers.')},
        None, ['projection_head.*']),
    'moco alone': (lambda encoder, head: {
        **tensors(encoder, 'encoder_q.'), **tensors(head, 'encoder_q.fc.')}, TWO_LAYERS, []),
    'moco v3': (lambda encoder, head: {
        **tensors(encoder, 'module.base_encoder.'), **tensors(encoder, 'module.momentum_encoder.'),
        **tensors({**head, **BATCH_NORM}, 'module.base_encoder.fc.'), **tensors(head, 'module.predictor.')},
        None, ['module.base_encoder.fc.*', 'module.momentum_encoder.*', 'module.predictor.*']),
    'dino': (lambda encoder, head: {'student': tensors(head, 'module.head.mlp.'), 'teacher': {
        **tensors(encoder, 'module.backbone.'), **tensors(head, 'module.head.mlp.')}},
        None, ['module.head.*']),
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_what_other_programs_save_is_read_under_their_names(program, tmp_path):
    save, head, ignored = PROGRAMS[program]
    saved = random_imported(ENCODER, head or TWO_LAYERS)
    torch.save(save(encoder_to_torch(ENCODER, saved.variables), head_to_torch(saved.head, saved.variables)),
               tmp_path / 'w.ckpt')
    read = read_torch(tmp_path / 'w.ckpt')
    assert_same_arrays(read.variables['params']['encoder'], saved.variables['params']['encoder'])
    assert_same_arrays(read.variables['batch_stats']['encoder'], saved.variables['batch_stats']['encoder'])
    assert read.head == (head or {'mode': 'none'}) and read.classifier is None
    if head:
        assert_same_arrays(read.variables['params']['head'], saved.variables['params']['head'])
    assert read.card['ignored'] == ignored
    theirs = ((0.2, 0.4, 0.6), (0.2, 0.2, 0.1)) if program == 'mmpretrain' else IMAGENET
    np.testing.assert_allclose((read.mean, read.std), theirs, rtol=1e-6)
    assert ('mean' in read.card['assumed']) == (program != 'mmpretrain')


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32_and_said(dtype, name, plain, state, tmp_path):
    halved = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor
              for key, tensor in state.items()}
    (safetensors.torch.save_file if name.endswith('safetensors') else torch.save)(halved, tmp_path / name)
    read = read_torch(tmp_path / name)
    assert read.card['stored_as'] == [str(dtype).removeprefix('torch.')]
    kernel = plain.variables['params']['encoder']['stem_conv']['kernel']
    np.testing.assert_array_equal(read.variables['params']['encoder']['stem_conv']['kernel'],
                                  torch.from_numpy(kernel).to(dtype).float().numpy())


def test_a_convolution_that_pads_in_another_way_is_refused(tmp_path):
    small = random_imported({**ENCODER, 'stem': 'cifar'})
    torch.save({**tensors(encoder_to_torch(small.encoder, small.variables), 'backbone.'),
                'classifier.bias': torch.zeros(3)}, tmp_path / 'w.ckpt')
    with pytest.raises(ValueError, match='is of solo-learn, .* pads by two'):
        read_torch(tmp_path / 'w.ckpt')


@pytest.mark.parametrize('version', [1, 2])
def test_of_moco_the_query_encoder_and_its_head_are_taken(version, tmp_path):
    query, key = (random_imported(ENCODER, HEADS[version], seed=seed) for seed in (0, 1))
    state = {'module.queue': torch.zeros(6, 16), 'module.queue_ptr': torch.zeros(1, dtype=torch.int64)}
    for name, network in (('q', query), ('k', key)):
        state |= tensors(encoder_to_torch(ENCODER, network.variables), f'module.encoder_{name}.')
        head = head_to_torch(network.head, network.variables)
        if version == 1:
            head = {name.removeprefix('0.'): array for name, array in head.items()}
        assert set(head) == ({'weight', 'bias'} if version == 1 else
                             {'0.weight', '0.bias', '2.weight', '2.bias'})     # moco/builder.py
        state |= tensors(head, f'module.encoder_{name}.fc.')
    torch.save({'epoch': 200, 'arch': 'resnet50', 'state_dict': state, 'optimizer': {'state': {}}},
               tmp_path / 'moco.pth.tar')
    read = read_torch(tmp_path / 'moco.pth.tar')
    assert_same_arrays(read.variables['params'], query.variables['params'])
    assert read.head == HEADS[version] and read.classifier is None
    assert read.source == f'MoCo v{version} ResNet-10 0.125x'
    assert read.card['ignored'] == ['module.encoder_k.*', 'module.queue', 'module.queue_ptr']

    ours, theirs = (make_network(encoder=ENCODER, head=head) for head in (HEADS[version], read.head))
    assert ours == theirs
    del state['module.encoder_q.fc.bias' if version == 1 else 'module.encoder_q.fc.2.bias']
    state['module.extra'] = state['module.queue']
    for message in (r'unexpected: module\.extra', r'missing: module\.encoder_q\.fc\.(2|0)\.bias'):
        torch.save(state, tmp_path / 'moco.pth.tar')
        with pytest.raises(ValueError, match=message):
            read_torch(tmp_path / 'moco.pth.tar')
        state.pop('module.extra', None)


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('new', [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(new, state, tmp_path):
    state['conv1.weight'] = Harm(tmp_path / 'harm')
    torch.save(state, tmp_path / 'w.pth', _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r'more than tensors \(posix\.system\) and is refused: nothing'):
        read_torch(tmp_path / 'w.pth')
    (tmp_path / 'raw.pth').write_bytes(pickle.dumps(Harm(tmp_path / 'harm')))
    with pytest.raises(ValueError, match='raw.pth'):
        read_torch(tmp_path / 'raw.pth')
    assert not (tmp_path / 'harm').exists()


def take(state):
    """All that is in the state, which is empty then."""
    return {name: state.pop(name) for name in list(state)}


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
@pytest.mark.parametrize('change, message', [
    (lambda state: {'bn1.bias': state['bn1.bias'].double()}, 'not float32: bn1.bias (F64|float64)'),
    (lambda state: {'bn1.bias': state['bn1.bias'].long()}, 'not float32: bn1.bias (I64|int64)'),
    (lambda state: {'bn1.bias': state['bn1.bias'] * float('nan')}, 'not finite: bn1.bias'),
    (lambda state: {'fc.weight': state['fc.weight'] / 0}, 'not finite: fc.weight'),
    (lambda state: {'fc.weight': state['fc.weight'][:, :9]},
     r'another shape: fc\.weight \[3, 9\] instead of \[3, 64\]'),
    (lambda state: {'fc.bias': state.pop('fc.bias')} and {}, 'missing: fc.bias'),
    (lambda state: {'fc.1.weight': torch.ones(3)}, 'unexpected: fc.1.weight'),
    (lambda state: {'extra': torch.ones(3)}, 'unexpected: extra'),
    (lambda state: renamed(state, 'backbone.'), r"several ResNets, under '' and 'backbone\.'"),
    (lambda state: renamed(take(state), 'resnet.'), r'has its ResNet under resnet\., a name that is not'),
    (lambda state: renamed(take(state), 'encoder.') | {'extra.a': torch.ones(3)}, r'unexpected: extra\.a'),
])
def test_what_does_not_fit_is_named(name, change, message, state, tmp_path):
    changed = change(state)
    held = {key: tensor.clone() for key, tensor in {**state, **changed}.items()}
    (safetensors.torch.save_file if name.endswith('safetensors') else torch.save)(held, tmp_path / name)
    with pytest.raises(ValueError, match=f'{name} .*{message}'):
        read_torch(tmp_path / name)


def test_what_is_no_dict_of_tensors_is_refused(state, tmp_path):
    sparse, empty = torch.zeros(3, 3).to_sparse(), torch.zeros(3, device='meta')
    for held, message in (([1, 2], 'holds no state dict, but list'), ({}, 'holds no state dict'),
                          ({**state, 'epoch': 3}, r'no tensors: epoch \(int\)'),
                          ({**state, 3: state['fc.bias']}, r'no tensors: 3 \(Tensor\)'),
                          ({**state, 'conv1.weight': sparse}, 'no tensors: conv1.weight'),
                          ({**state, 'conv1.weight': empty}, 'no tensors: conv1.weight')):
        torch.save(held, tmp_path / 'w.pth')
        with pytest.raises(ValueError, match=message):
            read_torch(tmp_path / 'w.pth')


def test_a_resnet_d_of_unknown_origin_is_refused(tmp_path):
    selective = random_imported({**ENCODER, 'sk_ratio': 0.0625})
    torch.save(tensors(encoder_to_torch(selective.encoder, selective.variables)), tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='is a ResNet-D and does not say whose'):
        read_torch(tmp_path / 'w.pth')


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_what_is_no_whole_file_is_refused(name, state, tmp_path):
    path = tmp_path / name
    (safetensors.torch.save_file if name.endswith('safetensors') else torch.save)(state, path)
    whole = path.read_bytes()
    for content in (whole[:len(whole) // 2], whole[:7], bytes(100), b'{"not": "weights"}', os.urandom(300)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f'^{path} is not a complete '):
            read_torch(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'nonsense')
    with pytest.raises(ValueError, match=f'^{path} is not a complete '):
        read_torch(path)


def nothing(path):
    """Leaves nothing there."""


@pytest.mark.parametrize('make, error, message', [
    (nothing, FileNotFoundError, 'does not exist'),
    (lambda path: path.symlink_to(path), ValueError, 'cannot be opened: Too many levels of symbolic links'),
    (pathlib.Path.mkdir, ValueError, 'is not a file'),
    (os.mkfifo, ValueError, 'is not a file'),
    (pathlib.Path.touch, ValueError, 'is empty'),
])
@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_a_path_without_a_file_is_refused(make, error, message, name, tmp_path):
    make(tmp_path / name)
    with pytest.raises(error, match=f'^{tmp_path / name} {message}'):
        read_torch(tmp_path / name)


def test_without_torch_the_sentence_says_so_and_safetensors_are_read(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / 'w.pth')
    safetensors.torch.save_file(state, tmp_path / 'w.safetensors')
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert read_torch(tmp_path / 'w.safetensors').classifier is not None
    with pytest.raises(ValueError, match='torch is not installed'):
        read_torch(tmp_path / 'w.pth')


def test_an_encoder_that_is_not_finite_is_not_exported(plain, tmp_path):
    broken = random_imported(ENCODER)
    broken.variables['params']['encoder']['stem_conv']['kernel'][0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match='not finite: params/encoder/stem_conv/kernel'):
        write_torch(tmp_path, broken)
    assert not list(tmp_path.iterdir())
    write_torch(tmp_path, plain)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['encoder.safetensors', 'torch_model.py']
