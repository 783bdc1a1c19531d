"""Small networks of every kind, and what our own network makes of images, for the tests of exports."""

import contextlib

import jax
import numpy as np

from simclr_jax.models import resnet
from simclr_jax.models.network import make_network

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


@contextlib.contextmanager
def depth_of_bottlenecks():
    """While it lasts there is the depth BOTTLENECKS."""
    resnet.DEPTHS[BOTTLENECKS] = (resnet.BottleneckBlock, (1, 1, 1, 1))
    try:
        yield
    finally:
        del resnet.DEPTHS[BOTTLENECKS]


def random_images(*shape, seed=0):
    """float32 [*shape, 3] in [0, 1]."""
    return np.random.default_rng(seed).random((*shape, 3), np.float32)


def own_layers(images, variables, **fields):
    """(features, layer 1 of the head, ...) of our own network; fields: encoder, head, mean, std."""
    network = make_network(**fields)
    return jax.jit(lambda variables, images: network.apply(variables, images, train=False).layers)(
        variables, images)


def assert_close(theirs, ours, tolerance=1e-5):
    """The largest difference is at most `tolerance` of the largest entry."""
    assert np.asarray(theirs).dtype == np.float32
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * np.abs(ours).max())
