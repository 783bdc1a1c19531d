"""Encoders as serialized programs: the same features as here, for any number of images."""

import os

import jax
import numpy as np
import pytest

import simclr_jax
from simclr_jax.weights.write.programs import load_stablehlo, write_stablehlo
from tests.weights.tiny_encoders import (
    OTHERS,
    TWO_GIB,
    assert_close,
    depth_of_bottlenecks,
    layers_of,
    network_of_others,
    random_images,
    random_network,
)


@pytest.mark.parametrize('name', ['selective kernels', *OTHERS])
def test_features_of_one_and_of_three_images_are_those_of_our_own_network(name, tmp_path):
    images = random_images(3, 33, 33)
    with depth_of_bottlenecks():
        network, variables = network_of_others(name) if name in OTHERS else random_network(name)
        write_stablehlo(tmp_path / 'program', network, variables, image_size=33, layer=-1)
        ours = layers_of(network, variables, images)[-1]
    encode = load_stablehlo(tmp_path / 'program')
    assert_close(encode(images), ours)
    assert_close(encode(images[1:2]), np.asarray(ours)[1:2])


def test_one_file_is_for_processors_gpus_and_tpus(tmp_path):
    write_stablehlo(tmp_path / 'program', *random_network('cifar'), image_size=16)
    exported = jax.export.deserialize(bytearray((tmp_path / 'program').read_bytes()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert str(exported.in_avals[0]) == 'float32[b,16,16,3]'
    assert 'HIGHEST' in exported.mlir_module()      # or GPUs and TPUs would round the products
    assert 'simclr_jax_loops' not in exported.mlir_module()     # which are compiled for one processor


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(tmp_path):
    write_stablehlo(tmp_path / 'program', *random_network('cifar'), image_size=16)
    data = (tmp_path / 'program').read_bytes()
    for module in (simclr_jax, jax):
        assert os.path.dirname(module.__file__).encode() not in data
    assert b'.py' not in data


def test_what_is_no_program_is_refused(tmp_path):
    network, variables = random_network('cifar')
    write_stablehlo(tmp_path / 'program', network, variables, image_size=16)
    whole = (tmp_path / 'program').read_bytes()
    for name, data in (('cut', whole[:1000]), ('text', b'weights'), ('empty', b'')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f'{name} holds no StableHLO program that JAX'):
            load_stablehlo(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_stablehlo(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='a StableHLO file holds at most 2: export it as a savedmodel'):
        write_stablehlo(tmp_path / 'large', network, {'params': {'encoder': TWO_GIB}}, image_size=16)
    assert not (tmp_path / 'large').exists()
