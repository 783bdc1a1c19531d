"""What the step is for an H100 that is not there. Needs jax's CUDA plugin (extra plan-gpu, 182 MB)."""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from simclr_jax.evaluate.health import effective_rank
from simclr_jax.inspect import devices as targets, hlo, plan
from simclr_jax.inspect.chips import GPUS
from simclr_jax.models.building import auto_dtype, make_network
from simclr_jax.models.folding import folded
from simclr_jax.models.network import init_variables
from simclr_jax.runtime import sharding
from simclr_jax.training.steps import make_encode

if not importlib.util.find_spec('jax_plugins') or not importlib.util.find_spec('jax_plugins.xla_cuda12'):
    pytest.skip("jax's CUDA plugin is not installed: pip install 'simclr_jax[plan-gpu]'", allow_module_level=True)


def compile_step(topology, path='configs/imagenet.py', argument='', **overrides):
    """(the plan's report of a step, the text of its program)."""
    config, texts = runpy.run_path(path)['get_config'](argument), []
    config.update(overrides)
    mesh = sharding.make_mesh(targets.slice_devices(topology))
    return plan.inspect_step(config, mesh, targets.chip_of(mesh.devices.flat[0]), keep=texts.append), texts[0]


@pytest.fixture(scope='module')
def resnet50():
    return compile_step('h100:1', batch_size=256)


def convolutions(text):
    program, _ = hlo.parse(text)
    return [instruction for instructions in program.values() for instruction in instructions.values()
            if instruction.op == 'custom-call' and '__cudnn$conv' in instruction.rest]


def test_every_convolution_is_cudnn_in_bfloat16_with_channels_last(resnet50):
    found = convolutions(resnet50[1])
    # 53 of ResNet-50, their input and kernel gradients; the images have none.
    assert len(found) == 3 * 53 - 1
    assert all(convolution.shape.startswith('(bf16[') for convolution in found)
    assert all('dim_labels=b01f_' in convolution.rest or 'dim_labels=f01b_' in convolution.rest
               for convolution in found)


def test_nothing_is_scattered_or_sorted(resnet50):
    program, _ = hlo.parse(resnet50[1])
    operations = {instruction.op for instructions in program.values() for instruction in instructions.values()}
    assert not operations & {'scatter', 'sort', 'select-and-scatter'}


def test_no_activation_is_transposed(resnet50):
    """Images are, and parameters and their gradients, 8 MiB a piece at most."""
    program, _ = hlo.parse(resnet50[1])
    moved = [hlo.shape_bytes(instruction.shape) for instructions in program.values()
             for instruction in instructions.values()
             if instruction.op in ('transpose', 'copy') and '224,224' not in instruction.shape]
    assert max(moved) <= 9 * 512 * 512 * 4


def test_the_state_is_given_away_and_the_memory_bounded(resnet50):
    memory = resnet50[0]['memory']
    assert memory['outputs'] < 1 << 20
    assert memory['temporaries'] < 20 << 30
    assert 1e12 < resnet50[0]['flops']
    assert resnet50[0]['bytes_accessed'] < 206e9


def test_the_optimiser_takes_few_kernels(resnet50):
    """1,599 before, 680 of them the optimiser's."""
    assert resnet50[0]['kernels'] < 919 + 150


def compile_for_h100(function, *arguments):
    """The program of a function, all of whose arguments lie on one H100."""
    where = sharding.replicated(sharding.make_mesh(targets.slice_devices('h100:1')))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments)
    return jax.jit(function).lower(*placed).compile().as_text()


def test_the_rank_of_health_takes_no_svd():
    text = compile_for_h100(effective_rank, jax.ShapeDtypeStruct((512, 2048), jnp.float32))
    called = set(re.findall(r'custom_call_target="(cusolver[^"]+)"', text))
    assert called and not [name for name in called if 'svd' in name]


def test_a_frozen_encoder_has_its_offsets_and_rectifiers_in_cudnn():
    network = make_network(encoder={'depth': 50, 'dtype': 'bfloat16'}, head={})
    variables = jax.eval_shape(lambda: init_variables(network, jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    arguments = variables, jax.ShapeDtypeStruct((64, 224, 224, 3), jnp.float32)
    with_norms, without = (compile_for_h100(encode, *arguments) for encode in (
        make_encode(network), folded(network, make_encode(network))))
    assert hlo.kernels(without).bytes < 0.6 * hlo.kernels(with_norms).bytes
    assert without.count('custom_call_target="__cudnn$convBiasActivationForward"') == 53


def test_the_same_step_is_planned_for_gpus_and_for_tpus(tmp_path):
    if not importlib.util.find_spec('libtpu'):
        pytest.skip("libtpu is not installed: pip install 'simclr_jax[tpu]'")
    steps, environment = [], {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    for topology in ('h100:8', 'v5e:2x4'):      # libtpu ends a process that has the tests' XLA_FLAGS
        done = subprocess.run(
            [sys.executable, '-m', 'simclr_jax.main', '--config=configs/cifar10.py', '--config.task=plan',
             '--config.batch_size=1024', f'--config.plan.topology={topology}', '--config.plan.search=False',
             f'--workdir={tmp_path}'], capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        steps.append(json.loads((tmp_path / 'plan.json').read_text())['step'])
    gpus, tpus = steps
    assert gpus['flops'] == pytest.approx(tpus['flops'], rel=0.01)
    # Either compiler may make an all-reduce of an all-gather.
    sent = [sum(value['bytes'] for value in step['collectives'].values()) for step in steps]
    assert sent[0] == pytest.approx(sent[1], rel=0.01)


@pytest.mark.parametrize('recipe, memory', re.findall(
    r'(?:(:batch=\d+)`? \(|\()([\d.]+) GiB', ' '.join(pathlib.Path('configs/folder.py').read_text().split())))
def test_folder_py_needs_the_memory_that_it_says(recipe, memory):
    report, _ = compile_step('rtx3090:1', 'configs/folder.py', recipe.lstrip(':'))
    assert report['memory']['total'] / 2 ** 30 == pytest.approx(float(memory), abs=0.5)
    assert report['memory']['total'] < 0.9 * GPUS['rtx3090'].chip.memory     # the share that launch/gpu.sh sets


@pytest.mark.parametrize('name', GPUS)
def test_every_gpu_of_the_table_is_one_to_compile_for(name):
    devices = targets.slice_devices(f'{name}:2x2')
    assert len(devices) == 4 and {device.device_kind for device in devices} == {GPUS[name].device_kind}
    assert [device.process_index for device in devices] == [0, 0, 1, 1]
    assert auto_dtype(devices[0]) == ('float32' if GPUS[name].capability < (8, 0) else 'bfloat16')
    chip = targets.chip_of(devices[0])
    assert chip.memory == int(0.75 * GPUS[name].chip.memory)


def test_products_that_xla_has_no_tiles_for_are_those_of_cublas():
    """65 tokens an image: rows of a product that Triton's default tiles do not fit."""
    report, text = compile_step('h100:1', 'configs/moco_v3_vit.py', 'data=cifar10', batch_size=64,
                                encoder={'arguments': {'depth': 1}})
    assert report['products'] == 'cuBLAS' and report['kernels'] > 0
    assert '__cublas$' in text and '__triton_gemm' not in text


def test_two_hosts_join_in_one_collective_of_which_each_gpu_sends_its_share():
    report, _ = compile_step('h100:2x2', 'configs/smoke.py', 'smoke', batch_size=256)
    assert report['networks']['within'] == {} and set(report['networks']['between']) == {'all-reduce', 'all-gather'}
    assert report['networks']['between'] == report['collectives']
    assert report['sent']['between'] == pytest.approx(report['sent']['within'] / 2)
