"""The batch stream: a pure function of (seed, step), in one order for any split of the work."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclr_jax.data import pipeline
from simclr_jax.data.arrays import ArraySource
from simclr_jax.data.order import epoch_and_index
from simclr_jax.data.sources import load_source

SIZE, COUNT = 8, 22
IDENTITY = {op: {'probability': 0.0} for op in (
    'crop', 'flip', 'rotate', 'jitter', 'grey', 'sobel', 'noise', 'blur', 'solarize', 'cutout')}
CROP = {'probability': 1.0, 'law': 'uniform', 'area': (0.3, 1.0), 'aspect': (0.75, 1.3333)}
FLIP = {'probability': 0.5}
VIEW = {**IDENTITY, 'crop': CROP, 'flip': FLIP, 'noise': {'probability': 0.8, 'std': 0.1}}
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


def _train(source, steps, view=VIEW, **options):
    options = {'seed': 3, 'batch_size': 6, 'image_size': SIZE, **options}
    batches = pipeline.train_batches(source, view1=view, view2=view, **options)
    return list(itertools.islice(batches, steps))


def _assert_equal(one, two):
    assert len(one) == len(two)
    for batch, other in zip(one, two):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def _joined(batches):
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_fixture_covers_both_ways_of_reading(sources):
    assert [isinstance(sources[kind], ArraySource) for kind in KINDS] == [True, False, True, False]


@pytest.mark.parametrize('kind', KINDS)
def test_shapes_types_and_ranges(sources, kind):
    batch, = _train(sources[kind], 1, image_size=10)
    for view in ('view1', 'view2'):
        assert batch[view].shape == (6, 10, 10, 3) and batch[view].dtype == np.float32
        assert 0 <= batch[view].min() < batch[view].max() <= 1
    assert batch['label'].shape == (6,) and batch['label'].dtype == np.int32


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_row_r_of_step_s_is_the_example_at_position_s_times_batch_plus_r(sources, kind):
    """Across an epoch boundary; where no operation runs, a view is the image itself."""
    source = sources[kind]
    index = epoch_and_index(3, np.arange(48), COUNT)[1]
    rows = [source.fetch(index[[i]]) for i in range(48)]
    batch = _joined(_train(source, 8, view=IDENTITY))
    images = np.concatenate([row[0] for row in rows]).astype(np.float32) / 255
    np.testing.assert_allclose(batch['view1'], images, atol=1e-6)
    np.testing.assert_array_equal(batch['label'], np.concatenate([row[1] for row in rows]))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('start', [1, 9])
def test_starting_at_a_step_equals_the_straight_run_bit_for_bit(sources, kind, start):
    straight = _train(sources[kind], start + 3)
    _assert_equal(_train(sources[kind], 3, start_step=start), straight[start:])


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_shards_hold_the_rows_of_the_global_batch_in_order(sources, kind):
    whole = _train(sources[kind], 5)
    shards = [_train(sources[kind], 5, shard_index=k, shard_count=2) for k in range(2)]
    _assert_equal([_joined(parts) for parts in zip(*shards)], whole)


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_batch_size_and_threads_do_not_change_the_stream(sources, kind):
    _assert_equal([_joined(_train(sources[kind], 6, batch_size=4))],
                  [_joined(_train(sources[kind], 2, batch_size=12, num_threads=1))])


@pytest.mark.parametrize('kind', KINDS)
def test_views_differ_from_each_other_between_epochs_and_by_seed(sources, kind):
    batch = _joined(_train(sources[kind], 22))  # Six epochs.
    of_one_image = np.concatenate([batch[view][batch['label'] == 5] for view in ('view1', 'view2')])
    assert len(of_one_image) == 12
    assert len(np.unique(of_one_image.reshape(12, -1), axis=0)) == 12
    other = _joined(_train(sources[kind], 22, seed=4))
    assert (batch['label'] != other['label']).any()


@pytest.mark.parametrize('kind', KINDS)
def test_every_epoch_shows_every_image_once_in_a_new_order(sources, kind):
    labels = _joined(_train(sources[kind], 6, view=IDENTITY, batch_size=11))['label']
    epochs = labels.reshape(3, COUNT)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(COUNT), (3, 1)))
    assert len(np.unique(epochs, axis=0)) == 3


def test_shards_of_a_stream_share_the_images_evenly_and_keep_their_views(sources):
    source = sources['streamed']
    shards = [_joined(_train(source, 7, batch_size=9, shard_index=k, shard_count=3))
              for k in range(3)]  # 21 images of each: three passes over 7 of the 22.
    seen = [set(shard['label']) for shard in shards]
    assert [len(labels) for labels in seen] == [7] * 3 and len(set.union(*seen)) == 21
    whole = _joined(_train(source, 2, batch_size=11))
    for shard in shards:
        for row, label in enumerate(shard['label'][:7]):  # The first epoch.
            position = list(whole['label']).index(label)
            np.testing.assert_array_equal(shard['view1'][row], whole['view1'][position])


def test_probe_batches_are_the_crops_and_flips_of_the_same_order(sources):
    view = {**IDENTITY, 'crop': CROP, 'flip': FLIP}
    batches = pipeline.probe_batches(sources['arrays'], seed=3, batch_size=6, start_step=2,
                                     image_size=SIZE, crop=CROP, flip=FLIP)
    for probe, batch in zip(batches, _train(sources['arrays'], 3, view=view, start_step=2)):
        np.testing.assert_array_equal(probe['label'], batch['label'])
        np.testing.assert_allclose(probe['image'], batch['view1'], atol=1e-6)


def _evaluate(source, shard_count, batch_size=4):
    shards = [list(pipeline.eval_batches(
        source, batch_size=batch_size, image_size=SIZE, crop_proportion=1.0, shard_index=k,
        shard_count=shard_count)) for k in range(shard_count)]
    for batch in itertools.chain(*shards):
        assert batch['image'].shape == (batch_size, SIZE, SIZE, 3)
        assert batch['image'].dtype == np.float32
        assert (batch['label'][~batch['valid']] == -1).all()
    return shards


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shard_count', [1, 7])
def test_evaluation_sees_every_example_once_and_marks_the_padding(sources, kind, shard_count):
    shards = _evaluate(sources[kind], shard_count)
    assert {len(batches) for batches in shards} == {-(-COUNT // (4 * shard_count))}
    batch = _joined(list(itertools.chain(*shards)))
    images, labels = batch['image'][batch['valid']], batch['label'][batch['valid']]
    assert sorted(labels) == list(range(COUNT))
    np.testing.assert_array_equal(np.rint(images[:, 0, 0, 0] * 255), labels)


@pytest.mark.parametrize('kind', RANDOM_ACCESS)
def test_evaluation_shards_side_by_side_are_in_the_order_of_the_data(sources, kind):
    batch = _joined([_joined(parts) for parts in zip(*_evaluate(sources[kind], 2))])
    np.testing.assert_array_equal(batch['label'][batch['valid']], sources[kind].labels)


def test_more_shards_than_images_leave_some_with_padding_alone(sources):
    batch, = pipeline.eval_batches(sources['streamed'], batch_size=4, image_size=SIZE,
                                   crop_proportion=1.0, shard_index=29, shard_count=30)
    assert batch['image'].shape == (4, SIZE, SIZE, 3) and not batch['valid'].any()


def test_unreadable_images_are_replaced_in_training_and_dropped_in_evaluation(tmp_path):
    for i in range(6):
        Image.new('RGB', (20 + i, 30 - i), (40 * i, 0, 0)).save(tmp_path / f'{i}.png')
    for i in (2, 5):
        (tmp_path / f'{i}.png').write_bytes(b'broken')
    source = load_source(f'folder:{tmp_path}', 'train')
    batch, = _train(source, 1, view=IDENTITY)
    index = epoch_and_index(3, np.arange(6), 6)[1]
    stand_in = {0: 0, 1: 1, 2: 3, 3: 3, 4: 4, 5: 0}
    np.testing.assert_array_equal(np.rint(batch['view1'][:, 0, 0, 0] * 255 / 40),
                                  [stand_in[i] for i in index])
    assert sorted(source.skipped) == ['2.png', '5.png']
    assert batch['label'].tolist() == [-1] * 6  # No folders, no labels.

    evaluated = _joined(_evaluate(source, 1)[0])
    values = np.rint(evaluated['image'][evaluated['valid']][:, 0, 0, 0] * 255 / 40)
    np.testing.assert_array_equal(values, [0, 1, 3, 4])


def test_images_of_any_size_and_shape_fit(tmp_path):
    for i, size in enumerate([(1, 1), (300, 7), (5, 200), (64, 64)]):
        Image.new('RGB', size).save(tmp_path / f'{i}.png')
    source = load_source(f'folder:{tmp_path}', 'train')
    assert _train(source, 1, batch_size=4)[0]['view1'].shape == (4, SIZE, SIZE, 3)
    assert _joined(_evaluate(source, 1)[0])['valid'].all()


@pytest.mark.parametrize('options, message', [
    ({'batch_size': 23}, 'batch_size is 23, but .* only 22 images'),
    ({'batch_size': 10, 'shard_count': 4}, 'batch_size is 10, which 4 processes cannot share')])
def test_batch_sizes_that_will_not_do_are_refused_at_once(sources, options, message):
    with pytest.raises(ValueError, match=message):
        _train(sources['arrays'], 0, **options)
