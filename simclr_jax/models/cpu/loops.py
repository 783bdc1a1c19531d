"""The compiled loops of `_convolution.cc` and `_norm.cc`, which XLA calls where it trains on one CPU, and of
`_product.cc`, for `product.py`.

`setup.py` builds them as an optional extension, for x86-64 with AVX2 or AVX-512 and for 64-bit ARM. Without
it, on other processors, over several devices and on GPUs and TPUs XLA's own operations do the work.
"""

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import logging

SWITCH = 'SIMCLR_JAX_LOOPS'         # environment variable: 'off' for XLA's own everywhere
_PREFIX = 'simclr_jax_loops_v2_'    # a new number with every change of results: compiled programs are kept
_NAMES = ('convolution_forward', 'convolution_input_gradient', 'convolution_kernel_gradient', 'norm_moments',
          'norm_gradient_sums')


def are_for(*arrays: jax.Array) -> bool:
    """Whether a program that is traced now may use the loops for these arrays, where it runs on a CPU.

    It may also be compiled for a TPU, or exported: an `operation.Operation` has both forms. The loops take
    float32 of sizes that are known, and XLA does not know how to split them over devices.
    """
    return (all(array.dtype == jnp.float32 for array in arrays)
            and all(isinstance(size, int) and size > 0 for array in arrays for size in array.shape)
            and os.environ.get(SWITCH) != 'off' and jax.default_backend() == 'cpu'
            and jax.device_count() == 1 and are_built())


def loop(name: str, shape: Sequence[int], **attributes) -> Callable[..., jax.Array]:
    """arrays -> one float32 array of `shape`: a function of the compiled files, by its C name."""
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(_PREFIX + name, result, vmap_method='sequential')
    return functools.partial(call, **attributes)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled files, or None where they were not built or have nothing for this processor."""
    spec = importlib.util.find_spec('simclr_jax.models.cpu._loops')
    try:
        found = ctypes.CDLL(spec.origin) if spec else None
    except OSError:                 # built for another system
        return None
    return found if found and found.convolution_is_supported() else None


@functools.cache
def are_built() -> bool:
    """Whether the loops are there and made for this processor; if so, XLA knows them from now on."""
    compiled = library()
    if compiled is None:
        return False
    try:
        for name in _NAMES:
            handler = jax.ffi.pycapsule(getattr(compiled, name))
            jax.ffi.register_ffi_target(_PREFIX + name, handler, platform='cpu')
    except (AttributeError, RuntimeError, ValueError) as error:     # of another version, of us or of jaxlib
        logging.warning('The compiled loops are not used: %s. Install simclr_jax again, or set %s=off for '
                        "XLA's own operations.", error, SWITCH)
        return False
    return True
