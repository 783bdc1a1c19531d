"""The batch stream: a pure function of (seed, step), in one order for any split of the work."""

import dataclasses
import io
import itertools
import threading
import time

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclr_jax.data import pipeline
from simclr_jax.data.decode import read_image
from simclr_jax.data.loading import load_source
from simclr_jax.data.pipeline import epoch_and_index
from simclr_jax.data.source import ArraySource
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import Flip
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

COUNT = 22
KINDS = ['arrays', 'folder', 'tfds', 'streamed']
RANDOM_ACCESS = ['arrays', 'folder', 'tfds']


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """The same 22 images behind every kind of source; label i is in pixel (0, 0), channel 0."""
    path = tmp_path_factory.mktemp('data')
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    labels = np.arange(COUNT)
    images[:, 0, 0, 0] = labels
    np.savez(path / 'a.npz', images=images, labels=labels)
    for label, image in zip(labels, images):
        (path / 'folder' / f'{label:02}').mkdir(parents=True)
        Image.fromarray(image).save(path / 'folder' / f'{label:02}' / 'image.png')
    tfds.dataset_builders.store_as_tfds_dataset(
        name='tiny', version='1.0.0', data_dir=path,
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(SIZE, SIZE, 3)),
            'label': tfds.features.ClassLabel(num_classes=COUNT)}),
        split_datasets={'train': tf.data.Dataset.from_tensor_slices(
            {'image': images, 'label': labels})},
        download_config=tfds.download.DownloadConfig(num_shards=4))
    names = {'arrays': f'arrays:{path}/a.npz', 'folder': f'folder:{path}/folder',
             'tfds': 'tiny', 'streamed': 'tiny'}
    return {kind: load_source(name, 'train', data_dir=str(path),
                              in_memory_bytes=0 if kind == 'streamed' else 1 << 20)
            for kind, name in names.items()}


def _image(source, index):
    return source.images[index] if source.uniform else read_image(io.BytesIO(source.load(index)))


def test_fixture_covers_both_ways_of_reading(sources):
    assert [isinstance(sources[kind], ArraySource) for kind in KINDS] == [True, False, True, False]


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_row_r_of_step_s_is_the_example_at_position_s_times_batch_plus_r(sources, kind):
    """Across an epoch boundary; where no operation runs, a view is the image itself."""
    source = sources[kind]
    index = epoch_and_index(3, np.arange(48), COUNT)[1]
    batch = joined(train_steps(source, 8, view=IDENTITY))
    np.testing.assert_allclose(batch['view1'], np.stack([_image(source, i) for i in index]) / 255, atol=1e-6)
    np.testing.assert_array_equal(batch['label'], source.labels[index])
    np.testing.assert_array_equal(batch['index'], index)


@pytest.mark.parametrize('kind', KINDS)
def test_starting_at_a_step_equals_the_straight_run_bit_for_bit(sources, kind):
    straight = train_steps(sources[kind], 12)
    assert_equal_batches(train_steps(sources[kind], 3, start_step=9), straight[9:])


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_shards_hold_the_rows_of_the_global_batch_in_order(sources, kind):
    whole = train_steps(sources[kind], 5)
    shards = [train_steps(sources[kind], 5, shard_index=k, shard_count=2) for k in range(2)]
    assert_equal_batches([joined(parts) for parts in zip(*shards)], whole)


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_batch_size_and_threads_do_not_change_the_stream(sources, kind):
    assert_equal_batches([joined(train_steps(sources[kind], 6, batch_size=4))],
                  [joined(train_steps(sources[kind], 2, batch_size=12, num_threads=1))])


@pytest.mark.parametrize('kind', KINDS)
def test_views_are_floats_of_their_size_and_differ_from_each_other_between_epochs_and_by_seed(sources, kind):
    batch = joined(train_steps(sources[kind], 22, image_size=10))  # Six epochs.
    assert batch['label'].shape == (132,) and batch['label'].dtype == np.int32
    for view in (batch['view1'], batch['view2']):
        assert view.shape == (132, 10, 10, 3) and view.dtype == np.float32
        assert 0 <= view.min() < view.max() <= 1
    of_one_image = np.concatenate([batch[view][batch['label'] == 5] for view in ('view1', 'view2')])
    assert len(of_one_image) == 12
    assert len(np.unique(of_one_image.reshape(12, -1), axis=0)) == 12
    other = joined(train_steps(sources[kind], 22, seed=4))
    assert (batch['label'] != other['label']).any()


def test_every_epoch_of_a_stream_shows_every_image_once_in_a_new_order(sources):
    labels = joined(train_steps(sources['streamed'], 6, view=IDENTITY, batch_size=11))['label']
    epochs = labels.reshape(3, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(COUNT), (3, 1)))
    assert len(np.unique(epochs, axis=0)) == 3


def test_shards_of_a_stream_share_the_images_evenly_and_keep_their_views(sources):
    source = sources['streamed']
    shards = [joined(train_steps(source, 7, batch_size=9, shard_index=k, shard_count=3))
              for k in range(3)]  # 21 images of each: three passes over 7 of the 22.
    seen = [set(shard['label']) for shard in shards]
    assert [len(labels) for labels in seen] == [7] * 3 and len(set.union(*seen)) == 21
    whole = joined(train_steps(source, 2, batch_size=11))
    for shard in shards:
        for row, label in enumerate(shard['label'][:7]):  # The first epoch.
            position = list(whole['label']).index(label)
            np.testing.assert_array_equal(shard['view1'][row], whole['view1'][position])


def test_probe_batches_are_the_crops_and_flips_of_the_same_order(sources):
    batches = pipeline.probe_batches(sources['arrays'], seed=3, batch_size=6, start_step=2,
                                     image_size=SIZE, view=CROP_AND_FLIP)
    for probe, batch in zip(batches, train_steps(sources['arrays'], 3, view=CROP_AND_FLIP, start_step=2)):
        np.testing.assert_array_equal(probe['label'], batch['label'])
        np.testing.assert_allclose(probe['image'], batch['view1'], atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shard_count', [1, 7])
def test_evaluation_sees_every_example_once_and_marks_the_padding(sources, kind, shard_count):
    shards = evaluate(sources[kind], shard_count)
    assert {len(batches) for batches in shards} == {-(-COUNT // (4 * shard_count))}
    batch = joined(list(itertools.chain(*shards)))
    images, labels = batch['image'][batch['valid']], batch['label'][batch['valid']]
    assert sorted(labels) == list(range(COUNT))
    np.testing.assert_array_equal(np.rint(images[:, 0, 0, 0] * 255), labels)


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_evaluation_shards_side_by_side_are_in_the_order_of_the_data(sources, kind):
    batch = joined([joined(parts) for parts in zip(*evaluate(sources[kind], 2))])
    np.testing.assert_array_equal(batch['label'][batch['valid']], sources[kind].labels)


def test_more_shards_than_images_leave_some_with_padding_alone(sources):
    batch, = pipeline.eval_batches(sources['streamed'], batch_size=4, image_size=SIZE,
                                   crop_proportion=1.0, shard_index=29, shard_count=30)
    assert batch['image'].shape == (4, SIZE, SIZE, 3) and not batch['valid'].any()


def test_images_of_any_size_and_shape_fit(tmp_path):
    for i, size in enumerate([(1, 1), (300, 7), (5, 200), (64, 64)]):
        Image.new('RGB', size).save(tmp_path / f'{i}.png')
    source = load_source(f'folder:{tmp_path}', 'train')
    assert train_steps(source, 1, batch_size=4)[0]['view1'].shape == (4, SIZE, SIZE, 3)
    assert joined(evaluate(source, 1)[0])['valid'].all()


@pytest.mark.parametrize('options, message', [
    ({'batch_size': 23}, 'batch_size is 23, but .* only 22 images'),
    ({'batch_size': 10, 'shard_count': 4}, 'batch_size is 10, which 4 processes cannot share')])
def test_batch_sizes_that_will_not_do_are_refused_at_once(sources, options, message):
    with pytest.raises(ValueError, match=message):
        train_steps(sources['arrays'], 0, **options)


# ---- forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_crops_are_the_boxes_of_the_image_rounded(sources, kind):
    """The index names the example whose numbers were drawn; what follows a crop is left to the device."""
    view = dataclasses.replace(VIEW, flip=Flip(1.0))
    batch = joined(train_steps(sources[kind], 6, view=view, form='crops', image_size=5))
    assert batch['crop1'].dtype == np.uint8 and batch['crop1'].shape == (36, 5, 5, 3)
    assert batch['epoch'].dtype == batch['index'].dtype == batch['label'].dtype == np.int32
    assert set(batch['epoch']) == {0, 1}
    originals = {label: image for image, label in zip(sources['arrays'].images, sources['arrays'].labels)}
    for row in range(36):
        image = originals[batch['label'][row]]
        for slot in range(2):
            draws = Draws(3, int(batch['epoch'][row]), int(batch['index'][row]), slot)
            top, left, height, width = draws.box(SIZE, SIZE, VIEW.crop)
            expected = tf.image.resize(image[top:top + height, left:left + width], [5, 5], 'bicubic')
            np.testing.assert_array_equal(batch[f'crop{slot + 1}'][row], np.rint(expected).clip(0, 255))


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """JPEGs and PNGs of many sizes: 60x80, and some larger than what they are padded to."""
    path, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (60, 80), (40, 400), (300, 200), (1, 1), (64, 64), (7, 90)]
    for i, (height, width) in enumerate(sizes):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((width, height), Image.BICUBIC).save(path / f'{i}.{"png" if i == 2 else "jpg"}')
    return load_source(f'folder:{path}', 'train')


def tensorflows(image):
    return np.rint(tf.image.resize(image, [24, 24], 'bicubic')).clip(0, 255)


def pillows(image):
    return np.asarray(Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR))


@pytest.mark.parametrize('resized, changes', [
    (tensorflows, {}), (pillows, {'resize': 'bilinear', 'antialias': True})])
def test_padded_images_hold_the_crops_that_the_host_would_make(photographs, resized, changes):
    options = {'batch_size': 8, 'image_size': 24, 'view': VIEW.replace(crop=changes)}
    crops = joined(train_steps(photographs, 5, form='crops', **options))
    padded = joined(train_steps(photographs, 5, form='padded', pad_to=100, **options))
    assert padded['image'].shape == (40, 100, 100, 3) and padded['image'].dtype == np.uint8
    side_by_side = 0
    for row, image in enumerate(padded['image']):
        for slot in (1, 2):
            top, left, height, width = box = padded[f'box{slot}'][row]
            assert box.dtype == np.int32 and box.min() >= 0 and max(top + height, left + width) <= 100
            difference = resized(image[top:top + height, left:left + width]).astype(int) - crops[f'crop{slot}'][row]
            assert np.abs(difference).max() <= (resized is pillows)         # which rounds rows and then columns
        side_by_side += (padded['box1'][row] == (0, 0, 24, 24)).all() and (
            padded['box2'][row] == (0, 24, 24, 24)).all()
        boxes = np.stack([padded['box1'][row], padded['box2'][row]])
        bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(0)
        assert not image[bottom:].any() and not image[:, right:].any()
    assert 0 < side_by_side < 20  # the two large ones, in five epochs
    for key in ('label', 'epoch', 'index'):
        np.testing.assert_array_equal(padded[key], crops[key])


@pytest.mark.parametrize('form', ['views', 'crops', 'padded'])
def test_no_form_depends_on_threads_shards_or_batches(photographs, form):
    options = {'form': form, 'image_size': 16, 'pad_to': 64, 'transfer': 'uint8'}
    whole = joined(train_steps(photographs, 3, batch_size=8, num_threads=1, **options))
    shards = [train_steps(photographs, 6, batch_size=4, shard_index=k, shard_count=2, num_threads=5,
                          **options) for k in range(2)]
    assert_equal_batches([joined([joined(parts) for parts in zip(*shards)])], [whole])
    assert_equal_batches(train_steps(photographs, 1, batch_size=8, start_step=2, **options),
                  [{key: value[16:] for key, value in whole.items()}])


@pytest.mark.parametrize('transfer, tolerance', [('uint8', 0.5 / 255 + 1e-7), ('bfloat16', 2 ** -9)])
def test_views_cross_in_fewer_bits(photographs, transfer, tolerance):
    floats, = train_steps(photographs, 1, image_size=24)
    fewer, = train_steps(photographs, 1, image_size=24, transfer=transfer)
    assert fewer['view1'].dtype == {'uint8': np.uint8, 'bfloat16': ml_dtypes.bfloat16}[transfer]
    values = fewer['view1'].astype(np.float32) / (255 if transfer == 'uint8' else 1)
    np.testing.assert_allclose(values, floats['view1'], atol=tolerance)


@pytest.mark.parametrize('options, message', [
    ({'form': 'tiles'}, "form of a batch is 'views', 'crops' or 'padded'; got 'tiles'"),
    ({'form': 'padded', 'pad_to': 15}, 'data.pad_to is 15; it must be at least 16, twice the image size'),
    ({'transfer': 'float16'}, "data.transfer is 'float16'; it takes 'uint8', 'bfloat16', 'float32'")])
def test_arguments_that_will_not_do_are_refused_at_once(sources, options, message):
    with pytest.raises(ValueError, match=message):
        train_steps(sources['arrays'], 0, **options)


# ---- threads -----------------------------------------------------------------------------------


def test_batches_in_the_making_are_bounded_and_their_threads_end():
    class Counted(Files):
        loads = 0

        def load(self, index):
            self.loads += 1
            return super().load(index)

    source, before = Counted([jpeg() for _ in range(60)]), threading.active_count()
    batches = pipeline.train_batches(source, seed=0, batch_size=5, form='crops', view1=VIEW, view2=VIEW,
                                     image_size=SIZE, num_threads=3)
    next(batches)
    time.sleep(0.3)
    assert source.loads <= 15 and threading.active_count() <= before + 3
    batches.close()
    time.sleep(0.3)
    assert threading.active_count() == before
