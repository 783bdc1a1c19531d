"""The target network: what it is made of, how it follows, and where the rest of the program finds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods.target import moving_average, target_network, target_params
from simclr_jax.models.network import make_network
from simclr_jax.training.state import TrainState


def make_tree(seed, *names):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {name: {'dense': {'kernel': draw(3, 2), 'bias': draw(2)}} for name in names}


def test_a_target_is_the_network_without_predictor_and_probe():
    heads = {'mode': 'nonlinear', 'num_layers': 1, 'out_dim': 4}
    network = make_network(encoder={'depth': 10, 'width': 0.0625}, head=heads, predictor=heads, num_classes=3,
                           mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    target = target_network(network)
    assert (target.encoder, target.head) == (network.encoder, network.head)
    assert (target.mean, target.std) == (network.mean, network.std)
    images = jnp.zeros((1, 8, 8, 3))
    online, followed = (jax.eval_shape(lambda key: one.init(key, images, train=False), jax.random.key(0))
                        for one in (network, target))
    assert set(online['params']) == {'encoder', 'head', 'predictor', 'probe'}
    assert jax.tree.structure(followed['params']) == jax.tree.structure(target_params(online['params']))
    assert set(followed['params']) == {'encoder', 'head'}


@pytest.mark.parametrize('momentum', [0, 0.25, 0.999, 1])
def test_the_moving_average_is_its_formula_over_many_steps(momentum):
    step = jax.jit(moving_average)
    target = make_tree(0, 'encoder', 'head')
    expected = jax.tree.map(np.float64, target)
    for seed in range(1, 8):
        online = make_tree(seed, 'encoder', 'head', 'predictor', 'probe')
        target = step(target, online, momentum)
        expected = {name: jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * np.float64(new),
                                       expected[name], online[name]) for name in expected}
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), target, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(target)} == {jnp.dtype('float32')}


def make_state(method_state):
    return TrainState(step=0, params='online', batch_stats='statistics', opt_state=(),
                      method_state=method_state)


@pytest.mark.parametrize('method_state', [(), {'target': {'params': 'other', 'batch_stats': 'others'}}])
def test_the_online_variables_are_those_of_the_state(method_state):
    expected = {'params': 'online', 'batch_stats': 'statistics'}
    assert make_state(method_state).variables() == expected
    assert make_state(method_state).variables('online') == expected


def test_the_target_variables_are_those_of_the_method():
    target = {'params': 'other', 'batch_stats': 'others'}
    assert make_state({'target': target, 'queue': 'keys'}).variables('target') == target


def test_a_method_without_target_says_so():
    with pytest.raises(ValueError, match="eval.encoder is 'target': this method has no target network"):
        make_state(()).variables('target')


def test_another_network_is_refused_by_name():
    with pytest.raises(ValueError, match="eval.encoder is 'teacher': it takes 'online' or 'target'"):
        make_state({'target': {}}).variables('teacher')
