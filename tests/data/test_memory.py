"""Rows of a data set in memory: the order of the stream, the shards' shares, and what does not fit."""

import numpy as np
import pytest

from simclr_jax.data import order
from simclr_jax.data.source import ArraySource
from simclr_jax.data.order import epoch_and_index


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), np.uint8)
    return ArraySource('ten', 'train', images, np.arange(10, dtype=np.int32), tuple('abcdefghij'))


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_training_rows_follow_the_order_of_the_stream(source):
    batches = take(order.train_rows(source, seed=3, batch_size=4), 5)
    epoch, index = epoch_and_index(3, np.arange(20), 10)
    np.testing.assert_array_equal(np.concatenate([batch['index'] for batch in batches]), index)
    np.testing.assert_array_equal(np.concatenate([batch['epoch'] for batch in batches]), epoch)
    np.testing.assert_array_equal(np.concatenate([batch['label'] for batch in batches]), index)
    np.testing.assert_array_equal(np.concatenate([batch['image'] for batch in batches]), source.images[index])


def test_shards_share_each_batch_and_a_start_skips(source):
    whole = take(order.train_rows(source, seed=3, batch_size=4), 5)
    parts = [take(order.train_rows(source, seed=3, batch_size=4, start_step=2, shard_index=shard,
                                       shard_count=2), 3) for shard in range(2)]
    for expected, *shares in zip(whole[2:], *parts):
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), expected[name])


def test_evaluation_counts_each_example_once_and_equally_many_batches_per_shard(source):
    shards = [list(order.eval_rows(source, batch_size=3, shard_index=shard, shard_count=2))
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
        next(order.train_rows(source, seed=0, batch_size=batch_size, shard_count=shards))
