"""BatchNorm folded into the kernels of a frozen ResNet: the same features, and nothing else touched."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.building import make_network
from simclr_jax.models.folding import fold, folded
from simclr_jax.models.network import init_variables, outputs
from tests.weights.random_weights import random_variables
from tests.weights.tiny_encoders import BOTTLENECKS, depth_of_bottlenecks

HEAD = {'num_layers': 2, 'out_dim': 8}
KINDS = {'basic': {'depth': 10, 'stem': 'cifar'}, 'imagenet stem': {'depth': 18, 'project_first': True},
         'bottleneck': {'depth': BOTTLENECKS, 'stem': 'cifar', 'norm_epsilon': 1e-3},
         'selective kernels': {'depth': BOTTLENECKS, 'sk_ratio': 0.0625}}


@pytest.fixture(scope='module', autouse=True)
def few_bottlenecks():
    with depth_of_bottlenecks():
        yield


def make(fields):
    """A network with norms as after training: any scale, offset and statistics."""
    fields = {'width': 1 / 16, **fields}
    return (make_network(encoder=fields, head=HEAD, mean=(0.5,) * 3, std=(0.2,) * 3), random_variables(fields, HEAD))


def run(network, variables, images):
    return jax.jit(lambda variables, images: outputs(network, variables, images).layers)(variables, images)


def run_folded(network, variables, images):
    encode = folded(network, lambda variables, images: outputs(network, variables, images).layers)
    return jax.jit(encode)(fold(network, variables), images)


def images(size=32):
    return np.random.default_rng(1).random((3, size, size, 3), np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_features_and_layers_of_the_head_are_equal(kind):
    network, variables = make(KINDS[kind])
    for ours, expected in zip(run_folded(network, variables, images()), run(network, variables, images()), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_no_norm_of_the_encoder_is_left_and_the_given_variables_stay():
    network, variables = make(KINDS['basic'])
    before = jax.tree.map(np.copy, variables)
    changed = fold(network, variables)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    encode = folded(network, lambda variables, images: network.apply(variables, images, train=False, method='encode'))
    program = jax.make_jaxpr(encode)(changed, images())
    assert ' rsqrt ' not in str(program)
    jax.tree.map(np.testing.assert_array_equal, changed['params']['head'], variables['params']['head'])


def test_bfloat16_is_no_further_from_float32_than_with_its_norms():
    network, variables = make(KINDS['bottleneck'])
    exact = np.asarray(run(network, variables, images())[0])
    half = network.clone(encoder=network.encoder.clone(dtype=jnp.bfloat16))
    with_norms, without = (np.abs(each(half, variables, images())[0] - exact).mean() for each in (run, run_folded))
    assert without < 1.5 * with_norms


class Foreign(nn.Module):
    """flax's own BatchNorm."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), name='conv')(images)
        return nn.BatchNorm(use_running_average=not train, name='norm')(x).mean((1, 2))


def test_another_encoder_stays_as_it_is():
    network = make_network(encoder={}, head=HEAD, module=Foreign())
    variables = init_variables(network, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert all(map(lambda a, b: a is b, *map(jax.tree.leaves, (fold(network, variables), variables))))
    function = lambda: None
    assert folded(network, function) is function
