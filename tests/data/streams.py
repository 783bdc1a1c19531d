"""What the tests of the batch stream share: views, files in memory, and ways to read some batches."""

import dataclasses
import io
import itertools

import numpy as np
from PIL import Image

from simclr_jax.data import pipeline
from simclr_jax.data.source import Source
from simclr_jax.views.fields import Crop, Flip, Noise, View

SIZE = 8
IDENTITY = View()
CROP_AND_FLIP = View(crop=Crop(1.0, 'uniform', (0.3, 1.0), (0.75, 1.3333)), flip=Flip(0.5))
VIEW = dataclasses.replace(CROP_AND_FLIP, noise=Noise(0.8, std=0.1))


def train_steps(source, steps, view=VIEW, **options):
    options = {'seed': 3, 'batch_size': 6, 'image_size': SIZE, 'form': 'views', 'transfer': 'float32',
               **options}
    batches = pipeline.train_batches(source, view1=view, view2=view, **options)
    return list(itertools.islice(batches, steps))


def assert_equal_batches(one, two):
    assert len(one) == len(two)
    for batch, other in zip(one, two):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def joined(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def evaluate(source, shard_count, batch_size=4):
    shards = [list(pipeline.eval_batches(
        source, batch_size=batch_size, image_size=SIZE, crop_proportion=1.0, shard_index=k,
        shard_count=shard_count)) for k in range(shard_count)]
    for batch in itertools.chain(*shards):
        assert batch['image'].shape == (batch_size, SIZE, SIZE, 3)
        assert batch['image'].dtype == np.float32
        assert (batch['label'][~batch['valid']] == -1).all()
    return shards


class Files(Source):
    """Encoded files in memory."""

    def __init__(self, files):
        super().__init__('files', 'train', len(files), None)
        self.files, self.labels = files, np.arange(len(files), dtype=np.int32)

    def load(self, index):
        if isinstance(self.files[index], Exception):
            raise self.files[index]
        return self.files[index]


def encoded(image, kind='PNG', **options):
    """The bytes of a file of an image, an array or Pillow's."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(value=128):
    return encoded(Image.new('RGB', (30, 20), (value, value, value)), 'JPEG', quality=95)
