"""What the losses share: rows of unit length, the check of a temperature, and any mesh."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Rows of x at unit length; a zero row stays zero and has a finite gradient."""
    # Long rows are divided by a power of two first: exact, and neither their squares nor the third power of
    # their inverse norm, which the derivative holds, leave float32.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    power = lax.stop_gradient(lax.reduce_precision(jnp.maximum(largest, 1), exponent_bits=8, mantissa_bits=0))
    x = x / power
    squared_norm = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared_norm, epsilon / (power * power)))


def checked_temperature(loss: str, temperature: float | jax.Array) -> jax.Array:
    """The temperature as a float32 scalar. Where its value is not yet known, NaN will stand for one <= 0.

    Raises ValueError for one that is not a positive scalar; `loss` names the function in the sentence.
    """
    if np.ndim(temperature):
        raise ValueError(f'{loss} needs one temperature, got an array of shape {np.shape(temperature)}.')
    if not isinstance(temperature, Tracer) and not temperature > 0:
        raise ValueError(f'{loss} needs a positive temperature, got {temperature}.')
    temperature = jnp.asarray(temperature, jnp.float32)
    return jnp.where(temperature > 0, temperature, jnp.nan)


def on_mesh(function: Callable, mesh: Mesh | None, views: tuple[jax.Array, ...], *scalars: jax.Array):
    """function(*views, *scalars, axes), whose results are the same on every device of the mesh.

    `function` gets the rows of its device and the names of all axes of the mesh; without a mesh, or on one
    device, everything and (). The axes may be Auto or Explicit, and the views sharded in any way, or not at all.
    """
    if mesh is None or mesh.size == 1:
        typed = next(filter(_is_typed, views), None)
        # What the function makes is then of the mesh of the views: jax 0.12 wants one mesh for all.
        context = contextlib.nullcontext() if typed is None else jax.sharding.use_abstract_mesh(
            jax.typeof(typed).sharding.mesh)
        with context:
            return function(*whole(*views), *scalars, ())
    axes, rows = mesh.axis_names, P(mesh.axis_names)
    if any(map(_is_typed, views)) or jax.sharding.get_abstract_mesh().explicit_axes:
        explicit = tuple(axis for axis, kind in zip(axes, mesh.axis_types) if kind == AxisType.Explicit)
        views = tuple(jax.sharding.reshard(view, NamedSharding(mesh, P(explicit))) for view in views)
    else:       # the types of arrays hold no shardings, and those of the results should not
        mesh = Mesh(mesh.devices, axes, axis_types=(AxisType.Auto,) * len(axes))
    in_specs = (rows,) * len(views) + (P(),) * len(scalars)
    return jax.shard_map(lambda *local: function(*local, axes), mesh=mesh, in_specs=in_specs,
                         out_specs=P())(*views, *scalars)


def check_divisible(loss: str, batch: int, mesh: Mesh | None) -> None:
    """Raises ValueError for a batch that the devices of the mesh cannot share equally."""
    if mesh is not None and batch % mesh.size:
        raise ValueError(f'{loss} cannot split a batch of {batch} over {mesh.size} devices: '
                         'choose a batch size that is a multiple of the device count.')


def whole(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays without an Explicit sharding in their type, so that products of all rows are allowed."""
    return [jax.sharding.reshard(array, NamedSharding(jax.typeof(array).sharding.mesh, P()))
            if _is_typed(array) else array for array in arrays]


def _is_typed(array):
    return bool(jax.typeof(array).sharding.mesh.explicit_axes)
