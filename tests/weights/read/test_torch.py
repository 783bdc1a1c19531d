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

from simclr_jax.models.network import make_network
from simclr_jax.weights.read.torch import read_torch, write_torch
from simclr_jax.weights.torch_names import encoder_to_torch, head_to_torch
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
], ids=['plain', 'state_dict', 'model', 'module', 'without counters'])
@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
def test_a_resnet_of_others_is_read_with_torchvisions_conventions(wrap, name, plain, state, tmp_path):
    held = wrap(state)
    if name.endswith('.safetensors'):
        held = held.get('state_dict') or held.get('model') or held
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
    assert read_torch(tmp_path / 'w.pt', image_size=64).image_size == 64


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


def renamed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors'])
@pytest.mark.parametrize('change, message', [
    (lambda state: {'conv1.weight': state['conv1.weight'].half()}, 'not float32: conv1.weight (F16|float16)'),
    (lambda state: {'fc.bias': state['fc.bias'].bfloat16()}, 'not float32: fc.bias (BF16|bfloat16)'),
    (lambda state: {'bn1.bias': state['bn1.bias'].double()}, 'not float32: bn1.bias (F64|float64)'),
    (lambda state: {'bn1.bias': state['bn1.bias'].long()}, 'not float32: bn1.bias (I64|int64)'),
    (lambda state: {'bn1.bias': state['bn1.bias'] * float('nan')}, 'not finite: bn1.bias'),
    (lambda state: {'fc.weight': state['fc.weight'] / 0}, 'not finite: fc.weight'),
    (lambda state: {'fc.weight': state['fc.weight'][:, :9]}, 'fc.weight and fc.bias are no classifier of 64'),
    (lambda state: {'fc.bias': state.pop('fc.bias')} and {}, 'missing: fc.bias'),
    (lambda state: {'fc.1.weight': torch.ones(3)}, 'unexpected: fc.1.weight'),
    (lambda state: {'extra': torch.ones(3)}, 'unexpected: extra'),
    (lambda state: renamed(state, 'backbone.'), 'names of solo-learn, Lightly'),
    (lambda state: renamed(state, 'module.base_encoder.'), 'names of MoCo v3'),
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
        with pytest.raises(ValueError, match=f'^{path} is no whole '):
            read_torch(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'nonsense')
    with pytest.raises(ValueError, match=f'^{path} is no whole '):
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
