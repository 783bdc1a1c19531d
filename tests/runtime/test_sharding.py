"""One mesh, batches split over it, and processes that agree."""

import dataclasses
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from simclr_jax.runtime import sharding

TWO_PROCESSES = """
import os, signal, sys, jax, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from simclr_jax.runtime import sharding
from simclr_jax.runtime.interruption import Interruption
mesh, me = sharding.make_mesh(), jax.process_index()
assert mesh.size == 4
assert sharding.is_lead() == (me == 0)
with jax.transfer_guard('disallow'):
    rows = sharding.put_batch(mesh, np.arange(4.0) + 10 * me)
    with Interruption(mesh, every_steps=2) as interruption:
        if me == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert [interruption.arrived(step) for step in range(1, 6)] == [False, False, True, False, True]
assert rows.shape == (8,)
whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(rows)
print(np.asarray(whole.addressable_data(0)).tolist())
"""


def test_mesh_covers_all_devices_or_the_given_ones():
    assert list(sharding.make_mesh().devices) == jax.devices()
    assert list(sharding.make_mesh(jax.devices()[2:4]).devices) == jax.devices()[2:4]


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    slice_index: int


def test_a_process_is_a_block_of_the_axis_and_so_is_a_slice():
    # As jax.make_mesh orders the chips of TPU hosts: it deals them out.
    devices = [Device(number, process, process // 2)
               for number, process in enumerate([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3])]
    for given in (devices, devices[::-1]):
        axis = list(sharding.make_mesh(given).devices)
        assert [device.process_index for device in axis] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
        assert [device.slice_index for device in axis] == [0] * 8 + [1] * 8


def test_compiler_propagates_shardings_without_annotations():
    # An axis of type Explicit would refuse this product of two split arrays.
    mesh = sharding.make_mesh()
    x = sharding.put_batch(mesh, np.ones((8, 3), np.float32))
    np.testing.assert_array_equal(jax.jit(lambda x: x @ x.T)(x), np.full((8, 8), 3))


def test_put_batch_splits_rows_in_order_under_a_transfer_guard():
    mesh = sharding.make_mesh()
    batch = {'view1': np.arange(48.0, dtype=np.float32).reshape(16, 3), 'label': np.arange(16)}
    with jax.transfer_guard('disallow'):
        placed = sharding.put_batch(mesh, batch)
    for name, rows in batch.items():
        assert placed[name].sharding == sharding.batch_sharding(mesh)
        np.testing.assert_array_equal(placed[name], rows)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}


def test_replicated_puts_the_whole_array_on_every_device():
    mesh = sharding.make_mesh()
    placed = jax.device_put(np.arange(3.0), sharding.replicated(mesh))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(3,)] * 8


def test_a_split_state_is_cut_along_the_longest_axis_that_the_devices_share():
    mesh = sharding.make_mesh()
    shapes = {'kernel': (3, 3, 8, 16), 'square': (8, 8), 'rows': (65536, 128), 'odd': (3, 3, 3, 5),
              'scale': (24,), 'small': (4,), 'step': ()}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    whole = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in state.items()}
    split = jax.device_put(state, sharding.state_shardings(mesh, whole, split=True))
    assert {name: value.addressable_shards[0].data.shape for name, value in split.items()} == {
        'kernel': (3, 3, 8, 2), 'square': (1, 8), 'rows': (8192, 128), 'odd': (3, 3, 3, 5),
        'scale': (3,), 'small': (4,), 'step': ()}
    replicated = sharding.state_shardings(mesh, whole, split=False)
    assert set(replicated.values()) == {sharding.replicated(mesh)}


def test_batch_that_devices_cannot_share_is_refused_by_name():
    mesh = sharding.make_mesh()
    sharding.check_batch(24, mesh)
    with pytest.raises(ValueError, match='batch_size 12 is not divisible by the 8 devices'):
        sharding.check_batch(12, mesh)
    with pytest.raises(ValueError, match='batch_size 12 is not divisible by the 8 devices'):
        sharding.put_batch(mesh, {'image': np.zeros((12, 2))})


def test_one_process_leads():
    assert sharding.is_lead()


# To jax 0.12 a host is a slice, and another boot another host.
ANOTHER_HOST = ['unshare', '--mount', 'sh', '-c',
                'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"']


def may_be_another_host(boot):
    try:
        return not subprocess.run([*ANOTHER_HOST, boot, 'true'], stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def test_two_processes_of_two_hosts_share_one_batch_and_agree(tmp_path):
    """Of one host: tests/test_pod.py."""
    boot = tmp_path / 'boot_id'
    boot.write_text('00000000-1111-2222-3333-444444444444\n')
    if not may_be_another_host(boot):
        pytest.skip('a boot id of its own needs Linux and root')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    env = os.environ | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'PYTHONPATH': os.pathsep.join(sys.path),
    }
    processes = [
        subprocess.Popen(
            [*([*ANOTHER_HOST, boot] if index else []),
             sys.executable, '-c', TWO_PROCESSES, address, str(index)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for index in range(2)
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert '[0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]' in out
    finally:
        for process in processes:
            process.kill()
            process.wait()
