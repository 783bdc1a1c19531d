"""Devices to compile for that nobody here owns: TPU slices by libtpu, GPUs by jax's CUDA plugin."""

import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from simclr_jax.config import ConfigDict
from simclr_jax.inspect.chips import CHIPS, GPUS, Chip, gpu_target

_EXAMPLE_NAMES = ('v4:4x4x2, v5e:4x8, v5p:4x4x4, v6e:8x8 or v3:4x8 (chips along each axis), 2xv5e:4x8 (two '
                  f'slices); for GPUs {", ".join(GPUS)}, as in h100:8 or h100:2x8 (hosts x GPUs of a host)')
# Of a GPU's memory, what jax takes as its pool unless this variable says otherwise.
_POOL_VARIABLE, _POOL_SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION', 0.75


def prepare(config: ConfigDict) -> None:
    """Must come before jax looks for devices: to plan for a slice, no device of this machine is touched."""
    if not config.plan.topology:
        return
    jax.config.update('jax_platforms', 'cpu')
    # libtpu would ask a metadata server for the TPU that it is on, complain of what it does not find,
    # and refuse to be loaded by two processes, which share no TPU here.
    for name, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_WORKER_HOSTNAMES', 'localhost'),
                        ('TPU_ACCELERATOR_TYPE', 'v4-8'), ('TPU_STDERR_LOG_LEVEL', '3'),
                        ('TPU_MIN_LOG_LEVEL', '3'), ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')):
        os.environ.setdefault(name, value)


def slice_devices(topology: str) -> list:
    """The devices of 'v4:4x4x2', a TPU slice, of '2xv4:4x4x2', two, or of 'h100:2x8', hosts x GPUs, to compile for.

    Raises:
        ValueError: the compiler is not installed, or there are no such devices.
    """
    name, _, shape = topology.partition(':')
    unknown = ValueError(f'plan.topology is {topology!r}, which no compiler here knows; such names are '
                         f'{_EXAMPLE_NAMES}.')
    try:
        if name in GPUS:
            return _gpus(name, shape, unknown)
        return _tpus(topology, unknown)
    except jax.errors.JaxRuntimeError as error:
        if 'lockfile' in str(error):
            raise ValueError('libtpu is in use by another process of this machine: wait for it, or remove '
                             '/tmp/libtpu_lockfile if there is none.') from error
        raise unknown from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):           # the package that it lies in is missing
        return False


def _tpus(topology: str, unknown: ValueError) -> list:
    match = re.fullmatch(r'(?:([1-9]\d*)x)?(v\w+)(:\w+)', topology)
    if not _is_installed('libtpu'):
        raise ValueError("plan.topology needs libtpu, which compiles for TPUs without having one: pip "
                         "install 'simclr_jax[tpu]', or leave plan.topology empty for the devices at hand.")
    if not match:
        raise unknown
    slices, name, shape = match.groups()
    # Cloud TPU v4 joins the two cores of a chip into one device; libtpu's description does not by itself.
    options: dict[str, Any] = {'chip_config_name': 'megacore'} if name == 'v4' else {}
    if int(slices or 1) > 1:
        options['num_slices'] = int(slices)
    return list(topologies.get_topology_desc(platform='tpu', topology_name=f'{name}{shape}', **options).devices)


def _gpus(name: str, shape: str, unknown: ValueError) -> list:
    if not re.fullmatch(r'([1-9]\d*x)?[1-9]\d*', shape):
        raise unknown
    if not _is_installed('jax_plugins.xla_cuda12'):
        raise ValueError("plan.topology needs jax's CUDA plugin, which compiles for GPUs without having one: "
                         "pip install 'simclr_jax[plan-gpu]', or leave plan.topology empty for the devices "
                         'at hand.')
    hosts, _, gpus = shape.rpartition('x')
    return list(topologies.get_topology_desc(
        platform='cuda', topology_name='', topology=f'1x{hosts or 1}x{gpus}',
        target_config=gpu_target(name)).devices)


def chip_of(device, memory_gib: float = 0.0) -> Chip:
    """The figures of a device at hand or described, with its own word for the memory where it gives one.

    Of a GPU that is described the memory is jax's pool: the share of it that
    XLA_PYTHON_CLIENT_MEM_FRACTION says, three quarters by default.
    """
    chip = CHIPS.get(device.device_kind, Chip())
    if memory_gib:
        return chip._replace(memory=round(memory_gib * 2**30))
    try:
        limit = (device.memory_stats() or {}).get('bytes_limit')
    except jax.errors.JaxRuntimeError:              # a description has no memory to look into
        limit = None
    if limit is None and device.platform == 'gpu' and chip.memory:
        limit = int(chip.memory * float(os.environ.get(_POOL_VARIABLE, _POOL_SHARE)))
    return chip._replace(memory=limit or chip.memory)
