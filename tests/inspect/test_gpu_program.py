"""What the step is for an H100 that is not there. Needs jax's CUDA plugin (extra plan-gpu, 182 MB)."""

import importlib.util
import runpy

import pytest

from simclr_jax.inspect import devices as targets, hlo, plan
from simclr_jax.inspect.chips import GPUS
from simclr_jax.runtime import sharding

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


def test_the_state_is_given_away_and_the_memory_bounded(resnet50):
    memory = resnet50[0]['memory']
    assert memory['outputs'] < 1 << 20
    assert memory['temporaries'] < 20 << 30
    assert 1e12 < resnet50[0]['flops'] and resnet50[0]['kernels'] < 2000
    assert resnet50[0]['bytes_accessed'] < 212e9


@pytest.mark.parametrize('name', GPUS)
def test_every_gpu_of_the_table_is_one_to_compile_for(name):
    devices = targets.slice_devices(f'{name}:2x2')
    assert len(devices) == 4 and {device.device_kind for device in devices} == {GPUS[name].device_kind}
    assert [device.process_index for device in devices] == [0, 0, 1, 1]
    chip = targets.chip_of(devices[0])
    assert chip.memory == int(0.75 * GPUS[name].chip.memory)


def test_two_hosts_join_in_one_collective_of_which_each_gpu_sends_its_share():
    report, _ = compile_step('h100:2x2', 'configs/smoke.py', 'smoke', batch_size=256)
    assert report['networks']['within'] == {} and set(report['networks']['between']) == {'all-reduce', 'all-gather'}
    assert report['networks']['between'] == report['collectives']
    assert report['sent']['between'] == pytest.approx(report['sent']['within'] / 2)
