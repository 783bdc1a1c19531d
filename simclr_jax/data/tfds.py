"""TensorFlow Datasets: small sets are read into memory, large ones streamed from their files."""

import difflib
import hashlib
import math
import os
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_jax import storage
from simclr_jax.data.decode import DEFAULT, Rules, of_array, resolved
from simclr_jax.data.items import first_feature
from simclr_jax.data.source import ArraySource, Source

tf.config.set_visible_devices([], 'GPU')  # They are JAX's.

_PARALLEL_FILES = 16
_SAMPLED = 64   # images of 16 bits, for the range of their values
_SHUFFLE_BYTES = 256 << 20  # Of encoded examples, the shuffle buffer of a stream.


def load(name: str, split: str, *, data_dir: str | None, download: bool, in_memory_bytes: int,
         rules: Rules = DEFAULT) -> Source:
    """A TFDS split: an `ArraySource` if its images share one shape and fit, else streamed."""
    remote = data_dir if data_dir and storage.is_remote(data_dir) else ''
    builder = _builder(name, data_dir, download)
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(f"TFDS data set '{name}' has no split '{split}'; it has "
                         f'{", ".join(builder.info.splits)}.') from error
    source = StreamedSource(name, split, builder, num_examples, rules, remote)
    shape = source.image_shape
    if None in shape or num_examples * math.prod(shape[:2]) * 3 > in_memory_bytes:
        return source
    images = np.empty((num_examples, *shape), source.image_dtype)
    labels, row = np.empty(num_examples, np.int32), 0
    try:
        for batch in source.ordered(shard_index=0, shard_count=1).batch(1024).as_numpy_iterator():
            rows = slice(row, row := row + len(batch['label']))
            images[rows], labels[rows] = batch['image'], batch['label']
    except tf.errors.InvalidArgumentError:  # A stream counts and names what it cannot decode.
        return source
    result = ArraySource(name, split, of_array(images, source.rules), labels, source.class_names)
    result.read_like(source)
    return result


def splits(name: str, *, data_dir: str | None) -> tuple[str, ...]:
    """The splits of a prepared TFDS data set."""
    return tuple(_builder(name, data_dir, download=False).info.splits)


class StreamedSource(Source):
    """A TFDS split read from its TFRecord files in a shuffled order.

    What it guarantees: every shard passes once per epoch over its own N // shard_count examples,
    in an order that depends on (seed, epoch, shard_index, shard_count) alone: files shuffled, then
    interleaved, then examples through a shuffle buffer. Resuming skips encoded examples. It is not
    the uniform permutation of random-access sources, and another shard count gives another order;
    the views of an example in an epoch are the same in all of them. Where an image cannot be decoded, the
    next readable one of its batch takes its place.
    """

    def __init__(self, name: str, split: str, builder: Any, num_examples: int,
                 rules: Rules = DEFAULT, remote: str = ''):
        self._remote = remote       # the data directory, whose files are copied here when they are first read
        features = builder.info.features
        image = first_feature(features, tfds.features.Image, prefer='image')
        if image is None:
            raise ValueError(f"TFDS data set '{name}' has no image among its features: "
                             f'{", ".join(features)}.')
        label = first_feature(features, tfds.features.ClassLabel, prefer='label')
        super().__init__(name, split, num_examples,
                         tuple(features[label].names) if label else None)
        if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise ValueError(f"TFDS data set '{name}' was prepared as "
                             f'{builder.info.file_format.value}: prepare it with '
                             '--file_format=tfrecord.')
        dtype = np.dtype(features[image].np_dtype)
        if dtype not in (np.uint8, np.uint16):
            raise ValueError(f"The images of TFDS data set '{name}' are {dtype}: only uint8 and uint16 can "
                             'be read.')
        self.image_shape, self.image_dtype = features[image].shape, dtype
        self._image, self._label, self._builder = image, label, builder
        wanted = {key: True for key in (image, label) if key}
        self._features: Any = tfds.decode.PartialDecoding(wanted).extract_features(features)
        if dtype != np.uint8:
            some = self.ordered(shard_index=0, shard_count=1, is_decoded=False).take(_SAMPLED)
            rules, self.notes = resolved(rules, (bytes(example['image']) for example in some.as_numpy_iterator()))
        self.rules = resolved(rules, [])[0]

    def stream(self, *, seed: int, start: int, shard_index: int, shard_count: int
               ) -> tf.data.Dataset:
        """The endless shuffled stream of one shard from its position `start`.

        Elements: image, the bytes of a file, label int32, epoch int64 and index int64, the number of the
        example in the split.
        """
        first_epoch, skip = divmod(start, self.num_examples // shard_count)     # a remainder is left out
        files = self._files(shard_index, shard_count, even=True)
        whole = self._builder.info.splits.values()  # TFDS counts no bytes of a slice.
        bytes_each = sum(s.num_bytes for s in whole) / sum(s.num_examples for s in whole)
        buffer = min(self.num_examples, max(1024, int(_SHUFFLE_BYTES / max(bytes_each, 1))))

        def examples_of(epoch):
            tf.random.set_seed(1)  # Of this graph alone: a user's global seed must not change the order.
            shuffle = tf.random.experimental.stateless_shuffle      # pyright: ignore
            file_order = shuffle(
                tf.range(len(files[0])), seed=tf.stack([tf.constant(seed, tf.int64), epoch]))
            shuffled = [tf.gather(column, file_order) for column in files]
            records = tf.data.Dataset.from_tensor_slices(tuple(shuffled)).interleave(
                self._read_records, cycle_length=min(_PARALLEL_FILES, len(files[0])),
                num_parallel_calls=tf.data.AUTOTUNE)
            records = records.shuffle(
                buffer, seed=seed * 1_000_003 + epoch, reshuffle_each_iteration=False)
            records = records.skip(tf.where(epoch == first_epoch, np.int64(skip), np.int64(0)))
            return records.map(lambda index, record: (epoch, index, record))

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        return epochs.flat_map(examples_of).map(self._example, num_parallel_calls=tf.data.AUTOTUNE)

    def ordered(self, *, shard_index: int, shard_count: int, is_decoded: bool = True) -> tf.data.Dataset:
        """One pass over this shard's part of all examples, in the order of the files.

        Elements as in `stream`, of epoch 0; decoded, image is [H, W, C] as stored, and an image that cannot
        be decoded is a tf.errors.InvalidArgumentError, after which the next one follows.
        """
        files = self._files(shard_index, shard_count, even=False)
        records = tf.data.Dataset.from_tensor_slices(files).flat_map(self._read_records)
        return records.map(lambda index, record: self._example(np.int64(0), index, record, is_decoded),
                           num_parallel_calls=tf.data.AUTOTUNE)

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with the version of the data set and with the names and sizes of its files."""
        del with_times      # files of a version do not change
        digest = hashlib.sha256(str(self._builder.info.full_name).encode())
        for file in self._builder.info.splits[self.split].file_instructions:
            path = str(file.filename)
            name = os.path.basename(path)
            size = storage.size(f'{self._remote}{path.removeprefix(_mirror(self._remote))}' if self._remote else path)
            digest.update(f'{name}\0{size}\0{file.skip}\0{file.take}\0'.encode())
        return digest.hexdigest()

    def _files(self, shard_index: int, shard_count: int, *, even: bool
               ) -> tuple[np.ndarray, ...]:
        """(path, records to skip, records to take, number of the first taken) of a shard's files.

        An even shard has N // shard_count examples, any other may have one more.
        """
        size, extra = divmod(self.num_examples, shard_count)
        extra = 0 if even else extra
        first = shard_index * size + min(shard_index, extra)
        last = first + size + (shard_index < extra)
        rows, number = [], 0
        for file in self._builder.info.splits[self.split].file_instructions:
            low, high = max(first, number), min(last, number + file.take)
            if low < high:
                rows.append((str(file.filename), file.skip + low - number, high - low, low))
            number += file.take
        paths = np.array([row[0] for row in rows], str)
        return paths, *np.array([row[1:] for row in rows], np.int64).reshape(-1, 3).T

    def _read_records(self, *row: tf.Tensor) -> tf.data.Dataset:
        """(number of the example in the split, serialized example) for a row of `_files`."""
        path, skip, take, number = row
        if self._remote:
            path = tf.numpy_function(self._copied, [path], tf.string)
        records = tf.data.TFRecordDataset(path, buffer_size=1 << 20)
        return records.skip(skip).take(take).enumerate(number)

    def _copied(self, path: bytes) -> bytes:
        """A file of the mirror, brought there at first; the files of a shard are this host's alone."""
        here = path.decode()
        there = f'{self._remote}{here.removeprefix(_mirror(self._remote))}'
        if not os.path.exists(here) or os.path.getsize(here) != storage.size(there):
            storage.write_atomically(here, storage.read_bytes(there))
        return path

    def _example(self, epoch: Any, index: tf.Tensor, record: tf.Tensor, is_decoded: bool = False) -> dict:
        decoders = None if is_decoded else {self._image: tfds.decode.SkipDecoding()}
        example = self._features.deserialize_example(record, decoders=decoders)
        label = tf.cast(example[self._label], tf.int32) if self._label else tf.constant(-1)
        return {'image': example[self._image], 'label': label, 'epoch': epoch, 'index': index}


def _mirror(data_dir: str) -> str:
    """The local directory that holds copies of the files of a remote data directory."""
    return os.path.join(storage.user_cache('tfds'), data_dir.replace('://', '/'))


def _mirrored(name: str, data_dir: str) -> str:
    """The mirror of a remote data directory, with all that TFDS reads of a data set but its records."""
    root, here = f'{data_dir}/{name.partition(":")[0].partition("/")[0]}', _mirror(data_dir)
    for file in storage.walk_sizes(root) if storage.is_dir(root) else ():
        if '.tfrecord' not in file:
            copy = f'{here}{root.removeprefix(data_dir)}/{file}'
            storage.write_atomically(copy, storage.read_bytes(f'{root}/{file}'))
    return here


def _builder(name: str, data_dir: str | None, download: bool) -> Any:
    remote = data_dir if data_dir and storage.is_remote(data_dir) else ''
    if remote:
        data_dir, download = _mirrored(name, remote), False
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        start = name.split('/')[0].split(':')[0]
        longer = [other for other in sorted(known) if other.startswith(start)]
        close = difflib.get_close_matches(start, ['shapes'])      # the one of ours that has no path after it
        close = list(dict.fromkeys(close + longer + difflib.get_close_matches(start, known)))[:3]
        raise ValueError(
            f"There is no data source '{name}': give shapes, folder:PATH, arrays:PATH.npz, hf:NAME, "
            'wds:PATTERN, package.module:Name or the name of a TFDS data set.'
            f'{" Did you mean " + " or ".join(close) + "?" if close else ""}'
            f'{f" The directory of this name is folder:{name}." if os.path.isdir(name) else ""}'
        ) from error
    except AssertionError as error:  # How TFDS says that there is no such version.
        raise ValueError(str(error)) from error
    if not builder.is_prepared():
        if not download:
            raise FileNotFoundError(
                f"TFDS data set '{name}' is not prepared in '{remote or builder.data_dir}': run `tfds build "
                f'{name}{f" --data_dir={data_dir}" if data_dir and not remote else ""}`, '
                + (f'and copy it to {remote}.' if remote else 'or pass --config.data.download=true.'))
        builder.download_and_prepare()
    return builder
