"""Where arrays live: one mesh over all devices, and the only file that names its axis."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

_AXIS = 'data'


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, 'data', for `mesh=` of the losses and for shardings of your own.

    The devices of a process stand together, and processes in their order: process p holds the p-th part of
    the rows of a batch. A slice, or a host of GPUs, is then a block of the axis, and the network between
    slices its outer part: XLA for TPUs sums within each slice first, and sends between slices no more than
    each device's share.

    Args:
        devices: by default all devices of all processes, of one slice or several.

    Returns:
        The mesh; its axis is Auto, so that the compiler propagates shardings.

    Raises:
        ValueError: no devices.

    >>> import jax, simclr_jax
    >>> mesh = simclr_jax.make_mesh(jax.devices()[:1])
    >>> mesh.axis_names, mesh.size
    (('data',), 1)
    """
    devices = jax.devices() if devices is None else devices
    if not len(devices):
        raise ValueError('make_mesh needs at least one device, got none.')
    # jax.make_mesh deals the chips of a TPU host out over the axis, which would deal out its rows too, and
    # refuses several slices. XLA's programs for v4:4x4x2 and v5e:4x8 are the same in either order.
    devices = sorted(devices, key=lambda device: device.process_index)
    # Auto: the compiler propagates shardings. The default, Explicit, puts them into array types.
    return Mesh(np.asarray(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of an array is split over the devices."""
    return NamedSharding(mesh, P(_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, state, *, split: bool):
    """The sharding of every leaf of `state`, a tree of arrays or jax.ShapeDtypeStruct.

    split=False: every device holds everything. True: each array is cut along its longest axis that
    the devices can share; the compiler gathers the parameters where they are used and leaves each
    device its share of the gradients (ZeRO, Rajbhandari et al. 2020). The numbers stay the same.
    """
    def one(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not split or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, _AXIS))

    return jax.tree.map(one, state)


def check_batch(batch_size: int, mesh: Mesh, *, field: str = 'batch_size') -> None:
    """ValueError, with `field`, for a global batch that the devices cannot share."""
    if batch_size % mesh.size:
        raise ValueError(
            f'{field} {batch_size} is not divisible by the {mesh.size} devices: '
            f'choose a multiple of {mesh.size}.')


def put_batch(mesh: Mesh, batch):
    """A tree of this process's numpy rows [b, ...] as global arrays [b * processes, ...].

    Raises:
        ValueError: the global batch is not divisible by the number of devices.
    """
    for rows in jax.tree.leaves(batch):
        check_batch(rows.shape[0] * jax.process_count(), mesh)
    # This is the one transfer a training loop wants, so it passes a guard set around the loop.
    with jax.transfer_guard_host_to_device('allow'):
        return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def put_replicated(mesh: Mesh, tree):
    """A tree of numpy arrays, the same in every process, as global arrays that every device holds whole."""
    with jax.transfer_guard_host_to_device('allow'):
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(replicated(mesh), np.asarray(array)), tree)


def shard() -> dict[str, int]:
    """Which rows of a batch are this process's, as keywords of `data.pipeline`."""
    return {'shard_index': jax.process_index(), 'shard_count': jax.process_count()}


def is_lead() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0
