"""The order of examples, a function of position alone; rows of a data set in memory; memory used again."""

import numpy as np
import pytest

from simclr_jax.data.batches import eval_rows, train_rows
from simclr_jax.data.pipeline import Memory, epoch_and_index
from simclr_jax.data.source import ArraySource


def test_equals_plain_permutations_one_after_another():
    epochs = [np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(7)
              for epoch in range(4)]
    epoch, index = epoch_and_index(5, np.arange(28), 7)
    np.testing.assert_array_equal(index, np.concatenate(epochs))
    np.testing.assert_array_equal(epoch, np.repeat(np.arange(4), 7))


def test_positions_may_come_in_any_order_and_lie_far_out():
    positions = np.array([10**12 + 3, 5, 10**12, 4])
    epoch, index = epoch_and_index(1, positions, 10)
    assert epoch.tolist() == [10**11, 0, 10**11, 0] and epoch.dtype == index.dtype == np.int64
    alone = [epoch_and_index(1, positions[[i]], 10)[1][0] for i in range(4)]
    assert index.tolist() == alone


# ---- rows of a data set in memory -------------------------------------------------------------


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), np.uint8)
    return ArraySource('ten', 'train', images, np.arange(10, dtype=np.int32), tuple('abcdefghij'))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_training_rows_follow_the_order_of_the_stream(source):
    batches = take(train_rows(source, seed=3, batch_size=4), 5)
    epoch, index = epoch_and_index(3, np.arange(20), 10)
    np.testing.assert_array_equal(np.concatenate([batch['index'] for batch in batches]), index)
    np.testing.assert_array_equal(np.concatenate([batch['epoch'] for batch in batches]), epoch)
    np.testing.assert_array_equal(np.concatenate([batch['label'] for batch in batches]), index)
    np.testing.assert_array_equal(np.concatenate([batch['image'] for batch in batches]), source.images[index])


def test_shards_share_each_batch_and_a_start_skips(source):
    whole = take(train_rows(source, seed=3, batch_size=4), 5)
    parts = [take(train_rows(source, seed=3, batch_size=4, start_step=2, shard_index=shard, shard_count=2), 3)
             for shard in range(2)]
    for expected, *shares in zip(whole[2:], *parts):
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), expected[name])


def test_evaluation_counts_each_example_once_and_equally_many_batches_per_shard(source):
    shards = [list(eval_rows(source, batch_size=3, shard_index=shard, shard_count=2))
              for shard in range(2)]
    assert [len(batches) for batches in shards] == [2, 2]
    rows = [batch for pair in zip(*shards) for batch in pair]
    assert all(batch['image'].shape == (3, 4, 6, 3) for batch in rows)
    valid = np.concatenate([batch['valid'] for batch in rows])
    labels = np.concatenate([batch['label'] for batch in rows])
    np.testing.assert_array_equal(labels[valid], np.arange(10))
    np.testing.assert_array_equal(labels[~valid], [-1, -1])


@pytest.mark.parametrize('batch_size, shards, sentence', [
    (11, 1, 'has only 10 images: choose a smaller batch'), (9, 2, '2 processes cannot share')])
def test_a_batch_that_does_not_fit_is_refused(batch_size, shards, sentence, source):
    with pytest.raises(ValueError, match=sentence):
        next(train_rows(source, seed=0, batch_size=batch_size, shard_count=shards))


# ---- memory that is used again ----------------------------------------------------------------


def test_memory_serves_again_only_when_no_part_of_an_array_is_left():
    memory = Memory()
    array = memory.array((4, 8), np.float32)
    address, row = array.ctypes.data, array[1]
    assert address % 64 == 0
    array.fill(3)
    del array
    memory.array((4, 8), np.float32).fill(7)
    part = row.reshape(2, 4).view(np.uint32).T[:1]
    del row
    memory.array((4, 8), np.float32).fill(9)
    assert (part.view(np.float32) == 3).all()
    del part
    assert memory.array((4, 8), np.float32).ctypes.data == address
