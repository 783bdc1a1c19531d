"""Batches of augmented images as a pure function of (seed, step); nothing of an iterator is saved.

Row r of global batch s stands at position p = s * batch_size + r of an endless stream, in which
`order` names the (epoch, index); its views follow from (seed, epoch, index) alone, and so depend on
no batch size, shard count or number of threads. Sources too large for random access keep another
order (see `tfds_source.StreamedSource`).
"""

import itertools
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from simclr_jax.data import host_augment
from simclr_jax.data.base import Source
from simclr_jax.data.order import epoch_and_index

tf.config.set_visible_devices([], 'GPU')  # They are JAX's.

_EXAMPLE = {'image': tf.TensorSpec([None, None, None, 3], tf.uint8),
            'label': tf.TensorSpec([None], tf.int32),
            'readable': tf.TensorSpec([None], tf.bool)}
Batches = Iterator[dict[str, np.ndarray]]


def train_batches(source: Source, *, seed: int, batch_size: int, view1: Mapping[str, Any],
                  view2: Mapping[str, Any], image_size: int, start_step: int = 0,
                  shard_index: int = 0, shard_count: int = 1, num_threads: int = 0) -> Batches:
    """Endless batches of two views per image, from step `start_step` on.

    Args:
        source: of `sources.load_source`.
        seed: in [0, 2**31).
        batch_size: global, over all shards; this one yields rows
            [shard_index * b, (shard_index + 1) * b) with b = batch_size // shard_count.
        view1, view2: the operations of `host_augment.augment`.
        image_size: S.
        start_step: the number of batches already taken.
        num_threads: of this pipeline; 0 leaves it to tf.data.

    Returns:
        Iterator of {'view1' and 'view2': float32 [b, S, S, 3] in [0, 1], 'label': int32 [b], -1 for
        none}.

    Raises:
        ValueError: the batch is larger than the data set or not divisible by shard_count.
    """
    def views(example):
        one, two = (host_augment.augment(example['image'], _seed(seed, example, slot),
                                         image_size=image_size, **view)
                    for slot, view in enumerate((view1, view2)))
        return {'view1': one, 'view2': two, 'label': example['label']}

    return _endless(source, views, seed=seed, batch_size=batch_size, start_step=start_step,
                    shard_index=shard_index, shard_count=shard_count, num_threads=num_threads)


def probe_batches(source: Source, *, seed: int, batch_size: int, image_size: int,
                  crop: Mapping[str, Any], flip: Mapping[str, Any], start_step: int = 0,
                  shard_index: int = 0, shard_count: int = 1, num_threads: int = 0) -> Batches:
    """Endless batches of {'image': float32 [b, S, S, 3], 'label': int32 [b]}, cropped and flipped.

    For linear evaluation and fine-tuning; arguments and errors are those of `train_batches`.
    """
    def crop_and_flip(example):
        image = host_augment.crop_and_flip(example['image'], _seed(seed, example, 0),
                                           image_size=image_size, crop=crop, flip=flip)
        return {'image': image, 'label': example['label']}

    return _endless(source, crop_and_flip, seed=seed, batch_size=batch_size, start_step=start_step,
                    shard_index=shard_index, shard_count=shard_count, num_threads=num_threads)


def eval_batches(source: Source, *, batch_size: int, image_size: int, crop_proportion: float,
                 shard_index: int = 0, shard_count: int = 1, num_threads: int = 0) -> Batches:
    """One pass over every example in order, through the central crop.

    Args:
        source, image_size, shard_index, shard_count, num_threads: as in `train_batches`.
        batch_size: local, b.
        crop_proportion: side of the crop over the image's shorter side.

    Returns:
        Iterator of {'image': float32 [b, S, S, 3], 'label': int32 [b], 'valid': bool [b]}, equally
        many for every shard. 'valid' is False for padding and for files that cannot be read.
    """
    def centre(example):
        image = host_augment.eval_crop(example['image'], image_size=image_size,
                                       proportion=crop_proportion)
        return {'image': image, 'label': example['label'], 'valid': example['readable']}

    if hasattr(source, 'ordered'):
        examples = source.ordered(shard_index=shard_index, shard_count=shard_count)
        examples = examples.map(lambda example: {**example, 'readable': True})
    else:
        rows = tf.data.Dataset.range(source.num_examples).filter(
            lambda row: row // batch_size % shard_count == shard_index)
        rows = rows.batch(batch_size).map(lambda index: (tf.zeros_like(index), index))
        examples = _fetch(source, rows)
    num_batches = -(-source.num_examples // (batch_size * shard_count))
    batches = _batched(examples.map(centre, num_parallel_calls=tf.data.AUTOTUNE), batch_size,
                       num_threads)
    return _padded(batches.as_numpy_iterator(), num_batches, batch_size, image_size)


def check_batch_size(source: Source, batch_size: int, shard_count: int = 1) -> None:
    """ValueError unless a training batch fits the data set and the shards can share it."""
    if batch_size > source.num_examples:
        raise ValueError(f'batch_size is {batch_size}, but {source.name}, split {source.split}, '
                         f'has only {source.num_examples} images: choose a smaller batch.')
    if batch_size % shard_count:
        raise ValueError(f'batch_size is {batch_size}, which {shard_count} processes cannot share '
                         'evenly: choose a multiple.')


def _endless(source: Source, function: Callable[[dict], dict], *, seed: int, batch_size: int,
             start_step: int, shard_index: int, shard_count: int, num_threads: int) -> Batches:
    """Batches of `function` of the shuffled examples."""
    check_batch_size(source, batch_size, shard_count)
    local = batch_size // shard_count
    if hasattr(source, 'stream'):
        examples = source.stream(seed=seed, start=start_step * local, shard_index=shard_index,
                                 shard_count=shard_count)
    else:
        def positions(step):
            first = step * batch_size + shard_index * local
            return epoch_and_index(seed, np.arange(first, first + local), source.num_examples)

        steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
        examples = _fetch(source, steps.map(
            lambda step: _numpy(positions, [step], [tf.TensorSpec([local], tf.int64)] * 2)))
    examples = examples.map(function, num_parallel_calls=tf.data.AUTOTUNE)
    return _batched(examples, local, num_threads).as_numpy_iterator()


def _fetch(source: Source, rows: tf.data.Dataset) -> tf.data.Dataset:
    """Examples {'image', 'label', 'readable', 'epoch', 'index'} of (epoch [n], index [n])."""
    def fetch(epoch, index):
        values = _numpy(source.fetch, [index], list(_EXAMPLE.values()))
        return {**dict(zip(_EXAMPLE, values)), 'epoch': epoch, 'index': index}

    if source.uniform:  # One gather per batch is cheap; images of several shapes go one by one.
        return rows.map(fetch).unbatch()
    rows = rows.unbatch().batch(1)
    return rows.map(fetch, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def _numpy(function: Callable, arguments: list, specs: list[tf.TensorSpec]) -> list[tf.Tensor]:
    """Calls a numpy function from the graph; its results get the static shapes of `specs`."""
    values = tf.numpy_function(function, arguments, [spec.dtype for spec in specs])
    return [tf.ensure_shape(value, spec.shape) for value, spec in zip(values, specs)]


def _seed(seed: int, example: Mapping[str, tf.Tensor], slot: int) -> tf.Tensor:
    """The seed of one view of an example, int64 [2], no two the same.

    TensorFlow's stateless generators scramble their seed: no need to do so here, at 70 us a time.
    """
    return tf.stack([(seed << 32) + example['epoch'], 2 * example['index'] + slot])


def _batched(examples: tf.data.Dataset, batch_size: int, num_threads: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    if num_threads:
        options.threading.private_threadpool_size = num_threads
    return examples.batch(batch_size).prefetch(2).with_options(options)


def _padded(batches: Batches, num_batches: int, batch_size: int, image_size: int) -> Batches:
    """Fills the last batch, and adds empty ones, up to `num_batches` of `batch_size` rows."""
    empty = {'image': np.zeros((0, image_size, image_size, 3), np.float32),
             'label': np.zeros(0, np.int32), 'valid': np.zeros(0, bool)}
    padding = {'image': 0, 'label': -1, 'valid': False}
    for batch in itertools.islice(itertools.chain(batches, itertools.repeat(empty)), num_batches):
        missing = batch_size - len(batch['label'])
        yield {key: np.concatenate([value, np.full((missing, *value.shape[1:]), padding[key],
                                                   value.dtype)]) if missing else value
               for key, value in batch.items()}
