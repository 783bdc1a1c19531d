import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.models.building import make_network
from simclr_jax.models.network import forward_train


@pytest.fixture(scope='module')
def network():
    encoder = {'depth': 10, 'width': 0.0625, 'stem': 'cifar', 'dtype': 'float32'}
    return make_network(encoder=encoder, head={'num_layers': 2, 'out_dim': 8}, num_classes=3)


def make_batch(labels):
    rng = np.random.default_rng(0)
    view1, view2 = rng.random((2, len(labels), 8, 8, 3), np.float32)
    return {'view1': view1, 'view2': view2, 'label': np.array(labels, np.int32)}


@pytest.fixture(scope='module')
def setting(network):
    method = make_method('simclr', network=network, num_train_steps=1, temperature=0.2)
    params, batch_stats, method_state = jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return method, params, batch_stats, method_state


def numpy_nt_xent(z1, z2, temperature):
    """The paper's Algorithm 1, its double loop written out."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = len(z)
    losses = []
    for i in range(total):
        j = (i + total // 2) % total
        candidates = [np.exp(z[i] @ z[k] / temperature) for k in range(total) if k != i]
        losses.append(-np.log(np.exp(z[i] @ z[j] / temperature) / sum(candidates)))
    return np.mean(losses)


def test_the_loss_is_algorithm_1_over_both_views_in_one_batch(network, setting):
    method, params, batch_stats, method_state = setting
    batch = make_batch([0, 1, 2, 1, -1, 0])
    value, aux = jax.jit(method.loss)(params, batch_stats, method_state, batch, jax.random.key(0))
    # The order of the 2N rows changes nothing in the network: here the views are concatenated.
    images = jnp.concatenate([batch['view1'], batch['view2']])
    output, _ = jax.jit(forward_train, static_argnums=0)(network, params, batch_stats, images)
    expected = numpy_nt_xent(*np.split(np.asarray(output.projection), 2), temperature=0.2)
    np.testing.assert_allclose(aux.metrics['contrastive_loss'], expected, rtol=1e-5)
    np.testing.assert_allclose(value, expected + aux.metrics['probe_loss'], rtol=1e-5)


def test_loss_weight_scales_nt_xent_and_not_the_probe(network, setting):
    _, params, batch_stats, method_state = setting
    batch = make_batch([0, 1, 2, 1])
    doubled = make_method('simclr', network=network, num_train_steps=1, temperature=0.2, loss_weight=2.0)
    value, aux = jax.jit(doubled.loss)(params, batch_stats, method_state, batch, jax.random.key(0))
    expected = 2 * aux.metrics['contrastive_loss'] + aux.metrics['probe_loss']
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_labels_never_reach_the_encoder(setting):
    method, params, batch_stats, method_state = setting
    gradient = jax.jit(jax.grad(
        lambda p, batch: method.loss(p, batch_stats, method_state, batch, jax.random.key(0))[0]))
    some, others = gradient(params, make_batch([0, 1, 2, 1])), gradient(params, make_batch([2, 0, 0, 2]))
    for name in ('encoder', 'head'):
        jax.tree.map(np.testing.assert_array_equal, some[name], others[name])
    assert not np.array_equal(some['probe']['kernel'], others['probe']['kernel'])


def test_simclr_keeps_no_state_of_its_own(setting):
    method, params, batch_stats, method_state = setting
    assert method_state == () == method.after_update(method_state, params, None, 0)


def test_a_predictor_is_refused():
    heads = {'mode': 'nonlinear', 'num_layers': 2, 'out_dim': 8}
    network = make_network(encoder={'depth': 10}, head=heads, predictor=heads)
    with pytest.raises(ValueError, match="'simclr' has no predictor: set predictor.mode to 'none'"):
        make_method('simclr', network=network, num_train_steps=1, temperature=0.2)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="'simlcr'.*simclr"):
        make_method('simlcr')
