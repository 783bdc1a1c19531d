"""Broken images in the batch stream: counted, named, replaced or left out, and too many of them refused."""

import gc
import itertools
import weakref

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_jax.data import pipeline
from simclr_jax.data.loading import load_source
from simclr_jax.data.pipeline import epoch_and_index
from tests.data.streams import (
    CROP_AND_FLIP,
    IDENTITY,
    SIZE,
    VIEW,
    Files,
    assert_equal_batches,
    evaluate,
    joined,
    jpeg,
    train_steps,
)

BROKEN = {'empty': b'', 'text': b'hello', 'cut': jpeg()[:-30], 'header only': jpeg()[:200],
          'gone': FileNotFoundError('gone'), 'forbidden': PermissionError('forbidden')}


@pytest.mark.parametrize('kind, form', [*((kind, 'crops') for kind in BROKEN), ('cut', 'views'), ('gone', 'padded')])
def test_a_broken_file_is_counted_named_and_replaced_by_the_next(kind, form):
    source = Files([jpeg(10 * i) for i in range(6)])
    source.files[4], source.max_bad_share = BROKEN[kind], 0.2
    batch, = train_steps(source, 1, form=form, view=IDENTITY, pad_to=64, transfer='uint8')
    index = epoch_and_index(3, np.arange(6), 6)[1]
    assert batch['label'].tolist() == [5 if i == 4 else i for i in index]
    image = batch[{'views': 'view1', 'crops': 'crop1', 'padded': 'image'}[form]]
    np.testing.assert_allclose(image[:, 0, 0, 0], batch['label'] * 10.0, atol=2)
    if form != 'views':
        np.testing.assert_array_equal(batch['index'], index)
    assert source.skipped == ['example 4']
    evaluated = joined(evaluate(source, 1)[0])          # where nothing stands in for it
    assert evaluated['label'][evaluated['valid']].tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize('read', ['train', 'probe', 'eval'])
def test_too_many_broken_files_stop_the_run(read):
    source = Files([jpeg() for _ in range(40)])
    source.files[3] = source.files[17] = b'broken'
    options = {'batch_size': 20, 'image_size': SIZE}
    batches = {
        'train': lambda: pipeline.train_batches(source, seed=0, form='crops', view1=VIEW, view2=VIEW,
                                                **options),
        'probe': lambda: pipeline.probe_batches(source, seed=0, view=CROP_AND_FLIP, **options),
        'eval': lambda: pipeline.eval_batches(source, crop_proportion=0.875, **options)}[read]
    list(itertools.islice(batches(), 3))  # two of forty are just allowed
    assert sorted(source.skipped) == ['example 17', 'example 3']
    source.files[30] = b'broken'
    with pytest.raises(ValueError, match=r"^3 of the 40 images of 'files', split train, cannot be read "
                       r'\(example .*\): 7.5%, more than data.max_bad_share = 0.05. Repair or remove them'):
        list(itertools.islice(batches(), 6))
    with pytest.raises(ValueError, match='3 of the 40 images'):
        next(batches())


def test_a_broken_image_holds_no_memory_of_its_batch():
    class Held(FileNotFoundError):
        pass

    source, errors = Files([jpeg(10 * i) for i in range(6)]), []

    def load(index):
        if index != 4:
            return jpeg(10)
        error = Held('gone')
        errors.append(weakref.ref(error))
        raise error

    source.load, source.max_bad_share = load, 0.2
    train_steps(source, 1, form='crops', view=IDENTITY, pad_to=64, transfer='uint8')
    gc.collect()
    assert errors and source.unreadable == {4: 'gone'} and errors[0]() is None


def test_no_black_image_stands_for_a_whole_set_of_broken_files():
    source = Files([b''] * 8)
    source.max_bad_share = 1.0
    with pytest.raises(ValueError, match="No image of 'files', split train"):
        train_steps(source, 1)


def test_broken_images_of_a_stream_are_replaced_within_their_batch(tmp_path):
    """By example number; the same after a resume, and counted in evaluation too."""
    files = [jpeg(10 * i) for i in range(20)]
    files[2] = files[7] = files[8] = b''
    features = tfds.features.FeaturesDict({
        'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=20)})
    tfds.dataset_builders.store_as_tfds_dataset(
        name='broken', version='1.0.0', data_dir=tmp_path, features=features,
        split_datasets={'train': tf.data.Dataset.from_tensor_slices(
            {'image': files, 'label': np.arange(20)})})
    source = load_source('broken', 'train', data_dir=str(tmp_path))
    source.max_bad_share = 0.15
    batches = train_steps(source, 8, view=IDENTITY, batch_size=5)
    batch = joined(batches)
    np.testing.assert_allclose(255 * batch['view1'][:, 0, 0, 0], batch['label'] * 10.0, atol=2)
    assert len(source.skipped) == 3 and not set(batch['label']) & {2, 7, 8}
    again = load_source('broken', 'train', data_dir=str(tmp_path))
    again.max_bad_share = 0.15
    assert_equal_batches(train_steps(again, 3, view=IDENTITY, batch_size=5, start_step=5), batches[5:])
    evaluated = joined(evaluate(source, 1)[0])
    assert evaluated['valid'].sum() == 17 and (evaluated['label'] >= 0).sum() == 17
    source.max_bad_share = 0.1
    with pytest.raises(ValueError, match='3 of the 20 images'):
        train_steps(source, 1, batch_size=5)
