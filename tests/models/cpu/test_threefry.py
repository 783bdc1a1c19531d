"""The random numbers of the compiled loop are those of JAX, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from simclr_jax.models.cpu import loops

# Random123, tests/kat_vectors, threefry2x32 of 20 rounds: counter, key, result.
KNOWN = np.array([[0x00000000, 0x00000000, 0x00000000, 0x00000000, 0x6b200159, 0x99ba4efe],
                  [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x1cb996fc, 0xbb002be7],
                  [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xc4923a9c, 0x483df7a0]], np.uint32)
ONE, MANY = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((3, 2, 2), jnp.uint32)
bits, fold_in, split = jax.random.bits, jax.random.fold_in, jax.random.split


@pytest.fixture(autouse=True)
def on_one_device(monkeypatch):
    """There are eight too many here."""
    if not loops.are_built():
        pytest.skip('the compiled loops were not built, or are not for this processor')
    monkeypatch.setattr(jax, 'device_count', lambda: 1)


@pytest.mark.parametrize('rows', [slice(0, 1), slice(None)], ids=['one', 'all'])
def test_known_answers(rows):
    count1, count2, key1, key2, *wanted = KNOWN[rows].T
    hashed = jax.jit(lambda *words: threefry2x32_p.bind(*words))(key1, key2, count1, count2)
    np.testing.assert_array_equal(hashed, wanted)


@pytest.mark.parametrize('shape, draw', [
    (ONE, lambda key: bits(key, ())), (ONE, lambda key: bits(key, (0,))), (ONE, lambda key: bits(key, (3, 5))),
    (ONE, lambda key: bits(key, (10_001,))), (ONE, lambda key: bits(key, (7,), 'uint8')),
    (ONE, lambda key: jax.random.key_data(split(key, (2, 3)))),
    (ONE, lambda key: jax.random.key_data(jax.vmap(fold_in, (None, 0))(key, jnp.arange(5)))),
    (MANY, lambda keys: jax.random.key_data(jax.vmap(jax.vmap(fold_in), (0, None))(keys, jnp.arange(2)))),
    (MANY, lambda keys: jax.vmap(jax.vmap(lambda key: bits(key, (4, 3))))(keys)),
    (MANY, lambda keys: jax.vmap(jax.vmap(lambda key: bits(split(key)[1], (2,))), 1, 1)(keys)),
], ids=['scalar', 'none', 'matrix', 'blocks', 'bytes', 'split', 'fold_in', 'of_each', 'outer', 'inner'])
def test_as_exported(shape, draw):
    """An exported program has XLA's own operations."""
    def program(words):
        return draw(jax.random.wrap_key_data(words))

    words = np.random.default_rng(0).integers(0, 2**32, shape.shape, np.uint32)
    exported = jax.export.export(jax.jit(program))(shape)
    assert 'custom_call' not in exported.mlir_module()
    assert 'custom_call' in jax.jit(program).lower(words).as_text()
    np.testing.assert_array_equal(jax.jit(program)(words), exported.call(words))
