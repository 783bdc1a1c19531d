"""The online probe is stable whatever the method's optimiser and features are, and touches nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.models.building import make_network
from simclr_jax.training import optimizers, steps
from tests.encoders import OneBlock

IMAGES = np.random.default_rng(0).random((2, 32, 16, 16, 3), np.float32)
LABELS = np.arange(32, dtype=np.int32) % 4


def train(num_steps, optimizer='lars', rate=1.0, labels=LABELS, std=1.0, **settings):
    """Metrics of each step, and the last state; a small `std` of the pixels makes large features."""
    network = make_network(encoder={}, module=OneBlock(width=8),
                           head={'mode': 'linear', 'out_dim': 8}, num_classes=4, std=(std,) * 3)
    method = make_method('simclr', network=network, num_train_steps=9, temperature=0.5)
    optimizer = optimizers.make_optimizer(optimizer, **settings)
    state = jax.jit(steps.make_init_state(method, optimizer, seed=0, image_size=16))()
    step = jax.jit(steps.make_train_step(method, optimizer, lambda step: jnp.float32(rate), seed=0))
    rows = []
    for _ in range(num_steps):
        state, metrics = step(state, {'view1': IMAGES[0], 'view2': IMAGES[1], 'label': labels})
        rows.append(jax.device_get(metrics))
    return rows, state


@pytest.mark.parametrize('optimizer, settings', [
    ('lars', {'momentum': 0.9}), ('lars', {'momentum': 0.9, 'exclude': (), 'std': 1e-3}),
    ('sgd', {'momentum': 0.9, 'std': 1e-3}), ('adamw', {'weight_decay': 10.0})],
    ids=['lars', 'lars of all', 'sgd', 'adamw'])
def test_its_loss_never_rises_while_the_encoder_stands_still(optimizer, settings):
    """A rate of 0 for the encoder: were it the probe's, the probe would stand still too."""
    rows, _ = train(30, optimizer, rate=0.0, **settings)
    losses = [row['probe_loss'] for row in rows]
    assert all(after <= before + 1e-5 for before, after in zip(losses, losses[1:]))
    assert losses[-1] < 0.9 * losses[0]


def test_a_rate_of_the_method_that_is_large_does_not_reach_it():
    rows, _ = train(20, 'lars', rate=100.0, momentum=0.9)
    assert max(row['probe_loss'] for row in rows) < 3


def test_loss_gradient_norm_and_encoder_are_those_of_the_method_alone():
    with_labels, state = train(3, rate=0.5)
    without, other = train(3, rate=0.5, labels=np.full(32, -1, np.int32))
    for row, bare in zip(with_labels, without):
        assert row['loss'] == row['contrastive_loss'] == bare['loss'] and row['probe_loss'] > 0
        assert row['gradient_norm'] == bare['gradient_norm']
    for part in ('encoder', 'head'):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], other.params[part])
    assert (state.params['probe']['kernel'] != other.params['probe']['kernel']).any()
