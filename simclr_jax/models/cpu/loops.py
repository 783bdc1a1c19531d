"""Operations with derivatives of their own and, where a program runs on one CPU, compiled loops of their own.

To JAX an `Operation` is one primitive, whatever stands inside: it can be differentiated any number of times,
forward and in reverse, mapped, exported and lowered for other platforms. A plain gradient of a program on one
CPU takes the loops, of `_convolution.cc` and `_norm.cc`; what has no loop takes XLA's operations. jax.random takes
that of `_threefry.cc`, see `threefry.py`.

`setup.py` builds the loops, and `_product.cc` for `product.py`, as an optional extension, for x86-64 with AVX2 or
AVX-512 and for 64-bit ARM. Without it, on other processors, over several devices and on GPUs and TPUs XLA's own
operations do the work.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from simclr_jax.models.cpu import threefry

SWITCH = 'SIMCLR_JAX_LOOPS'         # environment variable: 'off' for XLA's own everywhere
_PREFIX = 'simclr_jax_loops_v2_'    # a new number with every change of results: compiled programs are kept
_NAMES = ('convolution_forward', 'convolution_input_gradient', 'convolution_kernel_gradient', 'norm_moments',
          'norm_gradient_sums', 'keep', 'threefry')


def are_for(*arrays: jax.Array) -> bool:
    """Whether a program that is traced now may use the loops for these arrays, where it runs on a CPU.

    It may also be compiled for a TPU, or exported: an `Operation` has both forms. The loops take
    float32 of sizes that are known, and XLA does not know how to split them over devices.
    """
    return (all(array.dtype == jnp.float32 for array in arrays)
            and all(isinstance(size, int) and size > 0 for array in arrays for size in array.shape)
            and os.environ.get(SWITCH) != 'off' and jax.default_backend() == 'cpu'
            and jax.device_count() == 1 and are_built())


def loop(name: str, shape: Sequence[int], *, in_place: bool = False, **attributes) -> Callable[..., jax.Array]:
    """arrays -> one float32 array of `shape`: a function of the compiled files, by its C name.

    in_place: the result may have the memory of the first array.
    """
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(_PREFIX + name, result, vmap_method='sequential',
                            input_output_aliases={0: 0} if in_place else None)
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
        threefry.use(_PREFIX + 'threefry')
    except (AttributeError, RuntimeError, ValueError) as error:     # of another version, of us or of jaxlib
        logging.warning('The compiled loops are not used: %s. Install simclr_jax again, or set %s=off for '
                        "XLA's own operations.", error, SWITCH)
        return False
    return True


# ---- operations ----------------------------------------------------------------------------------------


class Operation:
    """What there is to know of an operation on arrays; a subclass is a frozen dataclass of its settings.

    Attributes:
        linear: groups of arguments, by index. Within one group the operation is linear in all of them
            together, with those of no group it may do anything.
    """

    linear: tuple[tuple[int, ...], ...] = ()
    compiled = None         # (*arrays) -> results, as `plain` by a compiled loop, if there is one

    def fits(self, *arrays):
        """Whether the loop is for these arrays, of float32 and of sizes that are known."""
        return True

    def plain(self, *arrays):
        """A tuple of results, by operations of XLA, which JAX can differentiate."""
        raise NotImplementedError

    def transpose(self, group, cotangents, arrays):
        """Cotangents of the arguments `group`, which are jax.ShapeDtypeStruct in `arrays`, in order."""
        raise NotImplementedError


def call(operation: Operation, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The results of the operation, by XLA alone where it has a loop that is not for these arrays."""
    is_sharded = jax.sharding.get_abstract_mesh().manual_axes       # in shard_map, whose types JAX's operations know
    if is_sharded or operation.compiled and not (are_for(*arrays) and operation.fits(*arrays)):
        return operation.plain(*arrays)
    plain = jax.make_jaxpr(operation.plain)(*arrays)
    return tuple(_primitive.bind(*arrays, operation=operation, plain=plain))


_primitive = Primitive('operation')
_primitive.multiple_results = True
_primitive.def_abstract_eval(lambda *_, operation, plain: plain.out_avals)


@functools.partial(jax.jit, static_argnums=0)
def _run(operation, *arrays):
    """Outside `jit`, and where it is turned off: without the primitive, which would come here again."""
    return lax.platform_dependent(*arrays, cpu=operation.compiled or operation.plain, default=operation.plain)


_primitive.def_impl(lambda *arrays, operation, plain: _run(operation, *arrays))


def _jvp(primals, tangents, *, operation, plain):
    results = _primitive.bind(*primals, operation=operation, plain=plain)
    found = [ad.Zero(aval.to_tangent_aval()) for aval in plain.out_avals]
    add = lambda new: [ad.add_tangents(*pair) for pair in zip(found, new)]
    for group in operation.linear:
        if not all(type(tangents[i]) is ad.Zero for i in group):
            moved = list(primals)
            for i in group:
                moved[i] = ad.instantiate_zeros(tangents[i])
            found = add(call(operation, *moved))
    rest = [i for i in range(len(primals)) if i not in sum(operation.linear, ())
            and type(tangents[i]) is not ad.Zero]
    if rest:
        def of_rest(*values):
            arrays = list(primals)
            for i, value in zip(rest, values):
                arrays[i] = value
            return operation.plain(*arrays)

        found = add(jax.jvp(of_rest, [primals[i] for i in rest], [tangents[i] for i in rest])[1])
    return results, found


def _transpose(cotangents, *arrays, operation, plain):
    unknown = [i for i, array in enumerate(arrays) if ad.is_undefined_primal(array)]
    group = next(group for group in operation.linear if set(unknown) <= set(group))
    arrays = [jax.ShapeDtypeStruct(array.aval.shape, array.aval.dtype) if i in unknown else array
              for i, array in enumerate(arrays)]
    gradients = operation.transpose(group, [ad.instantiate_zeros(g) for g in cotangents], arrays)
    return [dict(zip(group, gradients))[i] if i in unknown else None for i in range(len(arrays))]


def _batch(arrays, axes, *, operation, plain):
    mapped = [i for i, axis in enumerate(axes) if axis is not None]
    if operation.compiled is None:
        results = jax.vmap(operation.plain, in_axes=tuple(axes))(*arrays)
    else:                                               # a loop after the other: each keeps all threads busy
        def one(values):
            given = dict(zip(mapped, values))
            return call(operation, *(given.get(i, array) for i, array in enumerate(arrays)))

        results = lax.map(one, [batching.bdim_at_front(arrays[i], axes[i], None) for i in mapped])
    return tuple(results), (0,) * len(results)


def _lower_on_cpu(context, *arrays, operation, plain):
    # An exported program runs where the loops may not be.
    is_exported = context.module_context.lowering_parameters.for_export
    form = operation.plain if is_exported or operation.compiled is None else operation.compiled
    return mlir.lower_fun(form, multiple_results=True)(context, *arrays)


ad.primitive_jvps[_primitive] = _jvp
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, mlir.lower_fun(
    lambda *arrays, operation, plain: operation.plain(*arrays), multiple_results=True))
mlir.register_lowering(_primitive, _lower_on_cpu, platform='cpu')


@dataclasses.dataclass(frozen=True)
class _Kept(Operation):
    linear = ((0,),)

    def plain(self, x):
        return (x,)

    def compiled(self, x):
        return (loop('keep', x.shape, in_place=True)(x),)

    def transpose(self, group, cotangents, arrays):
        return call(self, *cotangents)


def keep(x: jax.Array) -> jax.Array:
    """x, and its cotangent, in memory.

    XLA on a CPU makes the sum that ends a block anew wherever it is read, from those of all blocks before it.
    """
    return call(_Kept(), x)[0]
