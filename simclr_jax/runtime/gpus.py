"""GPUs: whether this machine's can be used, how programs are compiled for them, and what a run says of its own.

The launch scripts ask before they train:

    python -m simclr_jax.runtime.gpus

prints their numbers, as CUDA_VISIBLE_DEVICES takes them, or one sentence that says why there are none, and
ends with status 1. Without it jax would train on the CPU with no more than a warning.
"""

import ctypes
import importlib.util
import os
import sys
from typing import Any

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
        raise OSError("jax is installed without GPU support: pip install 'simclr_jax[gpu]'.")
    try:
        ctypes.CDLL('libcuda.so.1')
    except OSError:
        raise OSError("there is no NVIDIA driver here (libcuda.so.1 does not load): install the driver, or in "
                      'a container start it with its GPUs (docker run --gpus all).') from None
    import jax
    try:
        found = [device.local_hardware_id for device in jax.devices('gpu')]
    except RuntimeError as error:
        raise OSError(f'jax finds no GPU: {str(error).splitlines()[0]}') from error
    return visible or ','.join(map(str, found))


def compiler_options(platform: str, *, deterministic: bool) -> dict[str, bool] | None:
    """XLA's for a training step on a platform of jax; None for none.

    For a GPU XLA would keep float32 between bfloat16 operations where it may: more memory, more to move. And it
    would take kernels of cuDNN and cuBLAS whose sums run in any order (openxla.org/xla/determinism).
    """
    if platform != 'gpu':
        return None
    return {'xla_allow_excess_precision': False, 'xla_gpu_exclude_nondeterministic_ops': deterministic}


def notes(device: Any, *, deterministic: bool, keeps_programs: bool, dtype: str, best_dtype: str
          ) -> list[str]:
    """What a run on this jax device should say once: none of anything but a GPU.

    keeps_programs: whether jax's compile cache is on. XLA chooses among kernels by timing them, and the compiled
        program holds its choice.
    dtype, best_dtype: of the activations, and what `auto` would make them here.
    """
    if device.platform != 'gpu':
        return []
    found = []
    if not deterministic:
        found.append('deterministic is False: on a GPU a run that is resumed, or made twice, differs in its last '
                     'digits.')
    elif not keeps_programs:
        found.append('Compiled programs are not kept: a run that is resumed chooses its GPU kernels by timing again, '
                     'and can then differ in its last digits.')
    if dtype == 'bfloat16' != best_dtype:
        found.append(f'encoder.dtype is bfloat16, in which {device.device_kind} (compute capability '
                     f'{device.compute_capability}; 8.0 or more is needed) does not compute: XLA turns it into float32 '
                     'and back. Set encoder.dtype to float32, or to auto.')
    return found


if __name__ == '__main__':
    try:
        print(gpus())
    except OSError as reason:
        sys.exit(f'error: {reason} launch/local.sh trains on a CPU.')
