"""One device and eight (simulated) compute the same training run."""

import functools

import jax
import numpy as np
import pytest

from simclr_jax import optim, schedules, sharding, steps
from simclr_jax.data.shapes import make_shapes
from simclr_jax.methods import make_method
from simclr_jax.models.network import make_network


@functools.cache
def train(num_devices, num_steps=10, batch_size=64):
    """Losses and the last params of a run on the first `num_devices` devices."""
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    network = make_network(
        encoder={'depth': 10, 'width': 0.0625, 'stem': 'cifar', 'dtype': 'float32'},
        head={'num_layers': 2, 'out_dim': 8}, num_classes=10)
    method = make_method('simclr', network=network, mesh=mesh, temperature=0.5)
    optimizer = optim.make_optimizer('lars', weight_decay=1e-4)
    schedule = schedules.make_schedule('warmup_cosine', peak=0.05, warmup_steps=2, total_steps=num_steps)
    everywhere = sharding.replicated(mesh)
    state = jax.jit(steps.make_init_state(method, optimizer, seed=0, image_size=16),
                    out_shardings=everywhere)()
    step = jax.jit(steps.make_train_step(method, optimizer, schedule), donate_argnums=0,
                   out_shardings=everywhere)
    images, labels = make_shapes('train', 16, num_steps * batch_size)
    losses = []
    for number in range(num_steps):
        rows = slice(number * batch_size, (number + 1) * batch_size)
        noise = np.random.default_rng(number).normal(size=(2, batch_size, 16, 16, 3)).astype(np.float32)
        view1, view2 = images[rows] / np.float32(255) + 0.1 * noise
        batch = {'view1': view1, 'view2': view2, 'label': labels[rows]}
        state, metrics = step(state, sharding.put_batch(mesh, batch))
        losses.append(float(metrics['loss']))
    return losses, jax.device_get(state.params), jax.device_get(state.batch_stats)


def test_eight_devices_give_the_loss_curve_of_one():
    one, eight = train(1)[0], train(8)[0]
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert abs(one[-1] - one[0]) > 1e-3                 # the run went somewhere


@pytest.mark.parametrize('part', [1, 2], ids=['params', 'batch_stats'])
def test_eight_devices_give_the_parameters_of_one(part):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5),
                 train(8)[part], train(1)[part])
