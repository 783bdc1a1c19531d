"""Encoders with random weights, of which no entry is special: no zero gamma, no unit variance."""

import math

import flax
import numpy as np

from simclr_jax.weights.tree import Imported, expected, feature_width


def random_variables(encoder, head, seed=0):
    """{'params', 'batch_stats'} of numpy float32 arrays."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        kind = path.rsplit('/', 1)[1]
        if kind == 'kernel':        # keeps the size of its input, so that features are of order one
            return rng.normal(0, math.sqrt(2 / math.prod(shape[:-1])), shape)
        low, high = (0.5, 1.5) if kind in ('scale', 'var') else (-0.3, 0.3)
        return rng.uniform(low, high, shape)

    flat = {path: draw(path, shape).astype(np.float32) for path, shape in expected(encoder, head).items()}
    return {'batch_stats': {}, **flax.traverse_util.unflatten_dict(flat, sep='/')}


def random_imported(encoder, head=None, classes=0, seed=0, **fields):
    """An `Imported` of random weights with a recipe of its own."""
    head = head or {'mode': 'none'}
    rng = np.random.default_rng(seed + 1)
    classifier = {'kernel': rng.normal(size=(feature_width(encoder), classes)).astype(np.float32),
                  'bias': rng.normal(size=classes).astype(np.float32)} if classes else None
    return Imported(**{
        'encoder': encoder, 'head': head, 'variables': random_variables(encoder, head, seed),
        'mean': (0.1, 0.2, 0.3), 'std': (0.9, 0.8, 0.7), 'image_size': 96, 'crop_proportion': 0.75,
        'source': 'random', 'classifier': classifier, 'card': {'step': 7}, **fields})


def assert_same_arrays(left, right):
    """Two trees hold the same names and, bit for bit, the same float32 arrays."""
    left, right = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (left, right))
    assert set(left) == set(right)
    for name, array in left.items():
        assert right[name].dtype == array.dtype == np.float32
        np.testing.assert_array_equal(right[name], array, err_msg=name)
