"""Small networks of every kind, and what our own network makes of images, for the tests of exports."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.models import resnet
from simclr_jax.models.building import make_network
from simclr_jax.models.network import Network, ProjectionHead
from tests.weights.random_weights import random_variables

BOTTLENECKS = 14        # a depth of one bottleneck block a stage
NORMALIZATION = {'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)}
_SMALL = {'depth': 10, 'width': 0.125}
CASES = {
    'basic': ({**_SMALL, 'norm_epsilon': 1e-2}, {'mode': 'nonlinear', 'num_layers': 3, 'out_dim': 8}),
    'bottleneck': ({**_SMALL, 'depth': BOTTLENECKS, 'max_pool': 'same'},
                   {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 12, 'out_dim': 8, 'bias': True,
                    'norm': False, 'final_norm': False, 'final_bias': True}),
    'selective kernels': ({**_SMALL, 'depth': BOTTLENECKS, 'sk_ratio': 0.1},
                          {'mode': 'linear', 'out_dim': 8}),
    'cifar': ({**_SMALL, 'stem': 'cifar', 'project_first': True}, {'mode': 'none'}),
    'as haiku': ({**_SMALL, 'depth': 18, 'conv_padding': 'same', 'max_pool': 'same', 'project_first': True},
                 {'mode': 'none'}),
    'resnet-d': ({**_SMALL, 'sk_ratio': 0.1, 'max_pool': 'same'}, {'mode': 'none'}),
}


class ViT(nn.Module):
    """A class token, learned positions, attention, two GELUs; it asks how many images there are."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(12, (11, 11), strides=11, padding='VALID')(images)
        x = x.reshape(len(x), -1, 12)
        token = self.param('token', nn.initializers.normal(0.5), (1, 1, 12))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param('positions', nn.initializers.normal(0.5), (1, *x.shape[1:]))
        for approximate in (True, False):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(12)(nn.gelu(nn.Dense(24)(nn.LayerNorm()(x)), approximate=approximate))
        return jnp.concatenate([x[:, 0], x[:, ::-1].max(1)], -1)


class CNN(nn.Module):
    """Strided, dilated and depthwise convolutions, flax's norms and pools, gates."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(8, (3, 3), strides=2)(images)
        x = nn.silu(nn.GroupNorm(4)(nn.BatchNorm(use_running_average=not train)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2), 'SAME')
        x = x + nn.Conv(8, (3, 3), feature_group_count=8, kernel_dilation=2)(x)
        x = jnp.pad(nn.avg_pool(x, (2, 2), (1, 1), 'SAME'), ((0, 0), (1, 0), (0, 1), (0, 0)))
        gate, value = jnp.split(x, 2, -1)
        x = jnp.where(gate > 0, nn.leaky_relu(value), nn.softplus(gate) * jnp.clip(value, -1, 1))
        return nn.standardize(jnp.einsum('bhwc,bhwd->bcd', x, x).reshape(x.shape[0], -1)[:, 2:9:3])


TWO_GIB = np.broadcast_to(np.float32(0), (2 ** 29,))       # and of no memory
OTHERS = {'vit': ViT, 'cnn': CNN}


def network_of_others(name):
    """(network, variables) of an encoder that is not ours, for images of 33 x 33 pixels."""
    network = Network(OTHERS[name](), ProjectionHead(mode='none'), **NORMALIZATION)
    return network, network.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), train=False)


@contextlib.contextmanager
def depth_of_bottlenecks(blocks=(1, 1, 1, 1)):
    """While it lasts there is the depth BOTTLENECKS, of so many blocks a stage."""
    resnet.DEPTHS[BOTTLENECKS] = (resnet.BottleneckBlock, blocks)
    try:
        yield
    finally:
        del resnet.DEPTHS[BOTTLENECKS]


def random_images(*shape, seed=0):
    """float32 [*shape, 3] in [0, 1]."""
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def random_network(case):
    """(network with NORMALIZATION, variables) of one of the CASES."""
    encoder, head = CASES[case]
    return make_network(encoder=encoder, head=head, **NORMALIZATION), random_variables(encoder, head)


def layers_of(network, variables, images):
    """(features, layer 1 of the head, ...)"""
    return jax.jit(lambda variables, images: network.apply(variables, images, train=False).layers)(
        variables, images)


def own_layers(images, variables, **fields):
    """(features, layer 1 of the head, ...) of our own network; fields: encoder, head, mean, std."""
    return layers_of(make_network(**fields), variables, images)


def assert_close(theirs, ours, tolerance=1e-5):
    """The largest difference is at most `tolerance` of the largest entry."""
    assert np.asarray(theirs).dtype == np.float32
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())
