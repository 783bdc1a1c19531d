"""This project's own file: what is written comes back, and damaged or foreign headers are refused."""

import json
import os
import resource

import flax
import numpy as np
import pytest
import safetensors.numpy

from simclr_jax.models.building import make_network
from simclr_jax.weights.tensors import is_flax_file, read_flax, write_flax
from tests.weights.random_weights import assert_same_arrays, random_imported

ENCODER = {'depth': 10, 'width': 0.125, 'sk_ratio': 0.0625, 'norm_epsilon': 1e-3, 'norm_momentum': 0.99,
           'max_pool': 'same', 'dtype': 'bfloat16'}
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'out_dim': 8}


@pytest.fixture(scope='module')
def imported():
    return random_imported(ENCODER, HEAD, classes=3, card={'recipe': {'seed': 1}, 'none': None})


@pytest.fixture
def path(imported, tmp_path):
    write_flax(tmp_path / 'w.safetensors', imported)
    return tmp_path / 'w.safetensors'


def test_everything_comes_back_bit_for_bit(imported, path):
    read = read_flax(path)
    assert is_flax_file(path)
    assert_same_arrays(read.variables, imported.variables)
    assert_same_arrays(read.classifier, imported.classifier)
    # Defaults are written out: the network is the same although more fields are named.
    assert make_network(encoder=read.encoder, head=read.head) == make_network(encoder=ENCODER, head=HEAD)
    assert read.head['norm_epsilon'] == 1e-3
    for name in ('mean', 'std', 'image_size', 'crop_proportion', 'source', 'card'):
        assert getattr(read, name) == getattr(imported, name)


def test_without_head_and_classifier(tmp_path):
    bare = random_imported({'depth': 10, 'width': 0.125})
    write_flax(tmp_path / 'w', bare)
    read = read_flax(tmp_path / 'w')
    assert_same_arrays(read.variables, bare.variables)
    assert read.classifier is None and read.head['mode'] == 'none'


def test_two_libraries_read_it_without_this_project(imported, path):
    arrays = safetensors.numpy.load_file(path)
    tree = flax.traverse_util.unflatten_dict(arrays, sep='/')
    assert_same_arrays({name: tree[name] for name in ('params', 'batch_stats')}, imported.variables)


@pytest.mark.parametrize('spoil, message', [
    (lambda tree: tree['params']['encoder'].pop('stem_conv1'), 'missing: params/encoder/stem_conv1/kernel'),
    (lambda tree: tree['params'].update(probe={'bias': np.ones(3)}), 'unexpected: params/probe/bias'),
    (lambda tree: tree['params']['head']['dense1'].update(kernel=np.ones((2, 2), np.float32)),
     r'another shape: params/head/dense1/kernel \[2, 2\] instead of \[64, 64\]'),
    (lambda tree: tree['params']['head']['dense1'].update(kernel=np.ones((64, 64))),
     'not float32: params/head/dense1/kernel float64'),
    (lambda tree: tree['batch_stats']['encoder']['stem_norm1'].update(var=np.full(4, -1, np.float32)),
     'negative variances: batch_stats/encoder/stem_norm1/var'),
])
def test_variables_that_do_not_fit_are_not_written(spoil, message, tmp_path):
    broken = random_imported(ENCODER, HEAD)
    spoil(broken.variables)
    with pytest.raises(ValueError, match=message):
        write_flax(tmp_path / 'w', broken)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(imported, path):
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match='too large'):
            write_flax(path, imported)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def with_header(path, text):
    """The same file with another header."""
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata={'simclr_jax': text})


@pytest.mark.parametrize('change, message', [
    ({'format': 3}, 'has format 3, this version reads format 1 and 2'),
    ({'resize': 'area'}, "resize = 'area'"), ({'antialias': 1}, 'antialias = 1'),
    ({'resize_to': 8}, 'resize_to = 8'),
    ({'layout': 'torch'}, "layout = 'torch', which is not valid"),
    ({'mean': [1, 2]}, r'mean = \[1, 2\]'), ({'std': [1, 0, 1]}, r'std = \[1, 0, 1\]'),
    ({'image_size': 224.5}, 'image_size = 224.5'), ({'crop_proportion': 0}, 'crop_proportion = 0'),
    ({'source': 3}, 'source = 3'), ({'card': []}, r'card = \[\]'), ({'encoder': 50}, 'encoder = 50'),
    ({'encoder': {'depth': 10, 'squeeze': 1}}, 'encoder.squeeze is unknown to this version'),
    ({'encoder': {'depth': '10'}}, "encoder.depth is '10' and should be int"),
    ({'encoder': {'width': 1.0}}, 'encoder.depth is missing'),
    ({'head': {'num_layers': True}}, 'head.num_layers is True and should be int'),
    ({'head': {'num_layers': 10 ** 9}}, 'head.num_layers is 1000000000'),
    ({'encoder': {'depth': 11}}, 'encoder.depth is 11: it takes 10, 18, 34, 50, 101, 152, 200.$'),
    ({'encoder': {'depth': 18}}, 'missing: params/encoder/.* unexpected: .*'),
])
def test_a_header_that_makes_no_sense_is_refused_by_field(change, message, path):
    with safetensors.safe_open(path, 'numpy') as file:
        header = json.loads(file.metadata()['simclr_jax'])
    with_header(path, json.dumps({**header, **change}))
    with pytest.raises(ValueError, match=f'{path}.*{message}'):
        read_flax(path)


@pytest.mark.parametrize('text', ['', '[', '[]', '{"mean": NaN}', '[' * 100000])
def test_a_header_that_is_no_json_object_is_refused(text, path):
    with_header(path, text)
    assert not is_flax_file(path)
    with pytest.raises(ValueError, match=f'^{path}: its header is not '):
        read_flax(path)


def test_other_files_are_not_this_projects(tmp_path):
    safetensors.numpy.save_file({'a': np.ones(2, np.float32)}, tmp_path / 'other')
    (tmp_path / 'text').write_text('{}')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for name in ('other', 'text', 'loop', 'absent', '.'):
        assert not is_flax_file(tmp_path / name)
    with pytest.raises(ValueError, match='other has format None'):
        read_flax(tmp_path / 'other')
    with pytest.raises(FileNotFoundError, match='absent does not exist'):
        read_flax(tmp_path / 'absent')
