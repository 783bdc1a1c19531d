"""Whether this machine's GPUs can be used: the launch scripts ask before they train.

    python -m simclr_jax.runtime.gpus

prints their numbers, as CUDA_VISIBLE_DEVICES takes them, or one sentence that says why there are none, and
ends with status 1. Without it jax would train on the CPU with no more than a warning.
"""

import ctypes
import importlib.util
import os
import sys

_PLUGINS = ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13')


def gpus() -> str:
    """The numbers of the GPUs that jax finds, as in '0,1'; OSError says what is missing."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    platforms = os.environ.get('JAX_PLATFORMS', '')
    if visible is not None and not visible.strip():
        raise OSError('CUDA_VISIBLE_DEVICES is empty, which hides all GPUs: unset it, or name some (0,1).')
    if platforms and not {'cuda', 'gpu'} & set(platforms.split(',')):
        raise OSError(f'JAX_PLATFORMS is {platforms!r}, which leaves out GPUs: unset it.')
    if not importlib.util.find_spec('jax_plugins') or not any(map(importlib.util.find_spec, _PLUGINS)):
        raise OSError("jax is installed without its part for GPUs: pip install 'simclr_jax[gpu]'.")
    if not _loads('libcuda.so.1'):
        raise OSError("there is no NVIDIA driver here (libcuda.so.1 does not load): install the driver, or in "
                      'a container start it with its GPUs (docker run --gpus all).')
    import jax
    try:
        found = [device.local_hardware_id for device in jax.devices('gpu')]
    except RuntimeError as error:
        raise OSError(f'jax finds no GPU: {str(error).splitlines()[0]}') from error
    return visible or ','.join(map(str, found))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == '__main__':
    try:
        print(gpus())
    except OSError as reason:
        sys.exit(f'error: {reason} launch/local.sh trains on a CPU.')
