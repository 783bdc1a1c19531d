"""What the tests of the methods share: a small network with the published heads, its images, and both in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.config import base_config, use_method
from simclr_jax.methods import make_method
from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.models.norm import BatchNorm
from tests.objectives.test_info_nce import differences

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


def make_network(name, width=24, groups=1, num_classes=0):
    """(network, method block): the published heads of `name` on the encoder above, `width` and 3 wide.

    With 24 no row is without a positive unit.
    """
    config = base_config()
    use_method(config, name, hidden_width=width, out_dim=3)
    head, predictor = (ProjectionHead(**fields.to_dict(), norm_groups=groups)
                       for fields in (config.head, config.predictor))
    return Network(encoder=Encoder(norm_groups=groups), num_classes=num_classes, head=head,
                   predictor=None if predictor.mode == 'none' else predictor), config.method.to_dict()


def start(name, network=None, width=24, groups=1, num_classes=0, **settings):
    """(method, params, batch_stats, method_state) of `name`, on the network above or another."""
    made, fields = make_network(name, width, groups, num_classes)
    method = make_method(network=network or made, num_train_steps=5, **fields | settings)
    return method, *jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


# The network in numpy. `groups`: the rows that BatchNorm normalises together; to `stats` go its moments [2, C].

def normalised(x, params, groups=(slice(None),), stats=None):
    moments = [(x[rows].mean(0), x[rows].var(0)) for rows in groups]
    if stats is not None:
        stats.append(np.mean(moments, axis=0))
    y = np.empty_like(x)
    for rows, (mean, var) in zip(groups, moments):
        y[rows] = (x[rows] - mean) / np.sqrt(var + 1e-5)
    return y * params['scale'] + params.get('bias', 0)


def features(params, images, *norm):
    x = np.float64(images).reshape(len(images), -1) @ params['encoder']['dense']['kernel']
    return np.tanh(normalised(x, params['encoder']['norm'], *norm))


def mlp(params, x, *norm):
    """A head of any method: dense, norm and ReLU for each of its layers that has them."""
    count = sum(name.startswith('dense') for name in params)
    for layer in range(1, count + 1):
        x = x @ params[f'dense{layer}']['kernel'] + params[f'dense{layer}'].get('bias', 0)
        if f'norm{layer}' in params:
            x = normalised(x, params[f'norm{layer}'], *norm)
        x = x if layer == count else np.maximum(x, 0)
    return x


def project(params, images, *norm):
    return mlp(params['head'], features(params, images, *norm), *norm)


def predict(params, images, *norm):
    """The projection where there is no predictor."""
    z = project(params, images, *norm)
    return mlp(params['predictor'], z, *norm) if 'predictor' in params else z


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cosine(a, b):
    return (unit(a) * unit(b)).sum(1)


def make_batch(seed, n):
    rng = np.random.default_rng(seed)
    view1, view2 = rng.random((2, n, SIZE, SIZE, 3), np.float32)
    return {'view1': view1, 'view2': view2, 'label': np.full(n, -1, np.int32)}


def finite_differences(function, params, step=1e-5):
    leaves, tree = jax.tree.flatten(params)
    gradients = differences(lambda *leaves: function(jax.tree.unflatten(tree, leaves)), *leaves, step=step)
    return jax.tree.unflatten(tree, gradients)


def lars(velocity, gradient, weights, decay):
    """The new velocity, at a trust coefficient of 0.1: BYOL's utils/optimizers.py and moco-v3's moco/optimizer.py."""
    def one(v, g, w):
        if w.ndim > 1:
            g = g + decay * w
            g = g * 0.1 * np.linalg.norm(w) / np.linalg.norm(g)
        return 0.9 * v + g

    return jax.tree.map(one, velocity, gradient, weights)


def float64(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def assert_trees_close(got, expected, rtol=1e-3, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, expected)
