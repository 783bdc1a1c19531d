"""Operations with derivatives of their own and, where a program runs on one CPU, compiled loops of their own.

To JAX an `Operation` is one primitive, whatever stands inside: it can be differentiated any number of times,
forward and in reverse, mapped, exported and lowered for other platforms. A plain gradient of a program on one
CPU takes the loops; what has no loop takes XLA's operations.
"""

import functools

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Operation:
    """What there is to know of an operation on arrays; a subclass is a frozen dataclass of its settings.

    Attributes:
        linear: groups of arguments, by index. Within one group the operation is linear in all of them
            together, with those of no group it may do anything.
    """

    linear: tuple[tuple[int, ...], ...] = ()
    compiled = None         # (*arrays) -> results, as `plain` by a compiled loop, if there is one

    def plain(self, *arrays):
        """A tuple of results, by operations of XLA, which JAX can differentiate."""
        raise NotImplementedError

    def transpose(self, group, cotangents, arrays):
        """Cotangents of the arguments `group`, which are jax.ShapeDtypeStruct in `arrays`, in order."""
        raise NotImplementedError


def call(operation: Operation, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The results of the operation."""
    if jax.sharding.get_abstract_mesh().manual_axes:    # in shard_map, whose types JAX's operations know
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
