"""The order of examples: a fresh permutation per epoch, a function of position alone."""

import numpy as np
import pytest

from simclr_jax.data.order import epoch_and_index


def test_equals_plain_permutations_one_after_another():
    epochs = [np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(7)
              for epoch in range(4)]
    epoch, index = epoch_and_index(5, np.arange(28), 7)
    np.testing.assert_array_equal(index, np.concatenate(epochs))
    np.testing.assert_array_equal(epoch, np.repeat(np.arange(4), 7))


def test_every_epoch_shows_every_example_once_and_in_another_order():
    index = epoch_and_index(0, np.arange(300), 100)[1].reshape(3, 100)
    np.testing.assert_array_equal(np.sort(index), np.tile(np.arange(100), (3, 1)))
    assert len(np.unique(index, axis=0)) == 3


@pytest.mark.parametrize('batch_size', [1, 3, 10, 17])
def test_batches_of_any_size_cut_the_same_sequence(batch_size):
    whole = epoch_and_index(2, np.arange(60), 10)
    parts = [epoch_and_index(2, np.arange(start, min(start + batch_size, 60)), 10)
             for start in range(0, 60, batch_size)]
    for column, expected in zip(zip(*parts), whole):
        np.testing.assert_array_equal(np.concatenate(column), expected)


def test_positions_may_come_in_any_order_and_lie_far_out():
    positions = np.array([10**12 + 3, 5, 10**12, 4])
    epoch, index = epoch_and_index(1, positions, 10)
    assert epoch.tolist() == [10**11, 0, 10**11, 0] and epoch.dtype == index.dtype == np.int64
    alone = [epoch_and_index(1, positions[[i]], 10)[1][0] for i in range(4)]
    assert index.tolist() == alone


def test_seeds_give_different_orders():
    orders = {tuple(epoch_and_index(seed, np.arange(50), 50)[1]) for seed in range(4)}
    assert len(orders) == 4
