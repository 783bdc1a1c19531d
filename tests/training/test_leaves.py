"""Norms and gradients in the form for GPUs are those of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.training.leaves import Grouped, OneByOne, leaves_for

SHAPES = [(3, 3, 64, 64), (3, 3, 64, 64), (64,), (64,), (3,), (), (4099, 2), (1, 1, 128, 96), (8192,)]


def arrays():
    rng = np.random.default_rng(0)
    return [(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3)).astype(np.float32) for shape in SHAPES]


@pytest.mark.parametrize('leaves', [OneByOne(), Grouped()])
def test_norms_equal_float64(leaves):
    got, whole = jax.jit(lambda arrays: (leaves.norms(arrays), leaves.norm({'a': arrays})))(arrays())
    expected = [np.sqrt(np.square(np.float64(array)).sum()) for array in arrays()]
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-6)
    np.testing.assert_allclose(whole, np.linalg.norm(expected), rtol=1e-6)
    assert leaves.norms([]) == []


@pytest.mark.parametrize('leaves', [OneByOne(), Grouped()])
def test_gradients_keep_their_place_and_their_bits(leaves):
    tree = {'a': arrays(), 'b': {'c': jnp.arange(64.0)}}
    jax.tree.map(np.testing.assert_array_equal, jax.jit(leaves.arranged)(tree), tree)


def test_gpus_that_hold_all_parameters_have_the_form_of_their_own():
    assert type(leaves_for('gpu', split=False)) is Grouped
    for platform, split in (('gpu', True), ('cpu', False), ('tpu', False)):
        assert type(leaves_for(platform, split=split)) is OneByOne
