"""What the step-by-step tests of MoCo and BYOL share: a small encoder, its images, and numpy in float64."""

import flax.linen as nn
import jax
import numpy as np

from simclr_jax.models.norm import BatchNorm

SIZE = 2  # images of 2 x 2 pixels


class Encoder(nn.Module):
    """tanh(BatchNorm(Dense(pixels))): smooth, and small enough for finite differences."""

    norm_groups: int = 1
    norm_strided: bool = False

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(4, use_bias=False, name='dense')(images.reshape(len(images), -1))
        return nn.tanh(BatchNorm(use_running_average=not train, groups=self.norm_groups,
                                 strided=self.norm_strided, name='norm')(x))


def make_batch(seed, n):
    rng = np.random.default_rng(seed)
    view1, view2 = rng.random((2, n, SIZE, SIZE, 3), np.float32)
    return {'view1': view1, 'view2': view2, 'label': np.full(n, -1, np.int32)}


def finite_differences(function, params, step=1e-5):
    leaves, tree = jax.tree.flatten(params)
    gradients = []
    for leaf in leaves:
        gradient = np.zeros_like(leaf)
        for index in np.ndindex(*leaf.shape):
            centre = leaf[index]
            leaf[index] = centre + step
            above = function(params)
            leaf[index] = centre - step
            gradient[index] = (above - function(params)) / (2 * step)
            leaf[index] = centre
        gradients.append(gradient)
    return jax.tree.unflatten(tree, gradients)


def float64(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def assert_trees_close(got, expected, rtol=1e-3, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, expected)
