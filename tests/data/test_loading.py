"""Data sources: what is accepted, how it is labelled, and one clear sentence where it is not."""

import io
import os
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclr_jax import storage
from simclr_jax.data.decode import read_image
from simclr_jax.data.loading import available_splits, load_source, load_test_source


def _images(source):
    """All images of a folder."""
    return [read_image(io.BytesIO(source.load(i))) for i in range(source.num_examples)]


def _write(path, colour=(200, 30, 60), size=(12, 9), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path, **options)


# ---- shapes and arrays -------------------------------------------------------------------------


def test_shapes_have_names_sizes_and_splits():
    source = load_source('shapes:300', 'train', image_size=16)
    assert source.images.shape == (300, 16, 16, 3)
    assert source.num_classes == 10 and source.class_names[3] == 'star'
    assert load_source('shapes:300', 'test').num_examples == 2000
    assert available_splits('shapes') == ('train', 'test')


def test_slices_take_rows_of_a_split():
    whole = load_source('shapes', 'test', image_size=8)
    for split, rows in (('test[:64]', slice(64)), ('test[10%:20%]', slice(200, 400)),
                        ('test[-5:]', slice(-5, None))):
        part = load_source('shapes', split, image_size=8)
        np.testing.assert_array_equal(part.images, whole.images[rows])
        np.testing.assert_array_equal(part.labels, whole.labels[rows])


def test_the_split_to_measure_on_is_found_or_named():
    assert load_test_source('shapes:300', '').split == 'test'
    assert load_test_source('shapes:300', 'train[200:]').num_examples == 100
    assert load_test_source('shapes', 'none') is None
    with pytest.raises(ValueError, match="no split 'validation'; it has train, test"):
        load_test_source('shapes', 'validation')


@pytest.mark.parametrize('split, message', [
    ('val', "has no split 'val'; it has train, test"), ('test[5:5]', 'holds no images'),
    ('test[:', 'not of the form')])
def test_wrong_split_of_shapes(split, message):
    with pytest.raises(ValueError, match=message.replace('[', r'\[')):
        load_source('shapes', split)


@pytest.mark.parametrize('channels', [(), (1,), (3,), (4,)])
def test_arrays_of_any_channels_become_rgb(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 7, *channels), np.uint8)
    np.savez(tmp_path / 'a.npz', images=images)
    source = load_source(f'arrays:{tmp_path}/a.npz', 'train')
    grey = np.broadcast_to(images.reshape(6, 5, 7, -1)[..., :1], (6, 5, 7, 3))
    expected = images if channels == (3,) else grey
    if channels == (4,):        # over white
        alpha = images[..., 3:] / 255
        expected = images[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(source.images, expected, atol=0.5)
    assert source.num_classes == 0 and source.labels.tolist() == [-1] * 6
    assert available_splits(source.name) == ('train',)


def test_arrays_with_labels_and_two_splits(tmp_path):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', train_images=images, train_labels=np.array([[0], [2], [1], [0]]),
             test_images=images[:2], test_labels=np.array([1, 0]))
    name = f'arrays:{tmp_path}/a.npz'
    train, test = load_source(name, 'train'), load_source(name, 'test')
    assert train.labels.tolist() == [0, 2, 1, 0] and test.labels.tolist() == [1, 0]
    assert train.num_classes == test.num_classes == 3
    assert available_splits(name) == ('train', 'test')


def test_arrays_that_are_not_read_are_named(tmp_path):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    np.savez(tmp_path / 'a.npz', train_images=images, train_labels=[0, 1, 0, 1], val_images=images, images=images)
    assert load_source(f'arrays:{tmp_path}/a.npz', 'train').notes == [
        f"'{tmp_path}/a.npz' also holds val_images, images, which are not read."]


_IMAGES = np.zeros((4, 2, 2, 3), np.uint8)


@pytest.mark.parametrize('arrays, message', [
    ({'x': _IMAGES}, "neither 'train_images' nor 'images'; its keys are x"),
    ({'images': np.full((4, 2, 2), 'a')}, "'images' of .* is <U1; it must be integers or floats"),
    ({'images': np.zeros((4, 2, 2, 17), np.uint8)}, r'has shape \(4, 2, 2, 17\)'),
    ({'images': _IMAGES, 'labels': np.zeros(3, int)}, '4 images but 3 labels'),
    ({'images': _IMAGES, 'labels': np.zeros(4)}, "'labels' of .* has labels of float64"),
    ({'images': _IMAGES[:0]}, 'holds no images'),
    ({'test_images': _IMAGES}, "no split 'train'; it has test")])
def test_arrays_that_will_not_do(tmp_path, arrays, message):
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(ValueError, match=message):
        load_source(f'arrays:{tmp_path}/a.npz', 'train')


def test_arrays_on_an_object_store(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, images=np.arange(12).reshape(3, 2, 2).astype(np.uint8))
    path = f'memory://{tmp_path}/a.npz'
    storage.write_atomically(path, buffer.getvalue())
    assert load_source(f'arrays:{path}', 'train').images[..., 0].ravel().tolist() == list(range(12))
    storage.remove(path)


def test_missing_array_file_is_named():
    with pytest.raises(FileNotFoundError, match='/nowhere/a.npz'):
        load_source('arrays:/nowhere/a.npz', 'train')


# ---- folder ------------------------------------------------------------------------------------


def _gradient(mode):
    """A 40x30 image whose left half is darker than its right, in a Pillow mode."""
    ramp = np.tile(np.linspace(20, 230, 40), (30, 1)).astype(np.uint8)
    if mode == 'I;16':
        return Image.fromarray(ramp.astype(np.uint16) * 257)
    return Image.fromarray(ramp).convert('RGB').convert(mode)


@pytest.mark.parametrize('name, mode', [
    ('a.jpg', 'RGB'), ('a.JPEG', 'L'), ('a.jpg', 'CMYK'), ('a.png', 'RGBA'), ('a.png', 'LA'),
    ('a.PNG', 'I;16'), ('a.png', '1'), ('a.gif', 'P'), ('a.webp', 'RGB'), ('a.webp', 'RGBA'),
    ('a.bmp', 'RGB')])
def test_every_format_and_mode_is_read_as_rgb(tmp_path, name, mode):
    _gradient(mode).save(tmp_path / name)
    image, = _images(load_source(f'folder:{tmp_path}', 'train'))
    assert image.shape == (30, 40, 3) and image.dtype == np.uint8
    ramp = np.linspace(20, 230, 40)
    tolerance = 60 if mode == '1' else 12  # One bit is dithered.
    for part in (slice(0, 10), slice(15, 25), slice(30, 40)):
        np.testing.assert_allclose(image[:, part].mean((0, 1)), ramp[part].mean(), atol=tolerance)


def test_exif_orientation_is_applied(tmp_path):
    image, exif = Image.new('RGB', (20, 10)), Image.Exif()
    exif[0x0112] = 6  # Stored lying on its side.
    image.save(tmp_path / 'a.jpg', exif=exif)
    assert _images(load_source(f'folder:{tmp_path}', 'train'))[0].shape == (20, 10, 3)


def test_first_level_folders_are_classes(tmp_path):
    for file in ('dog/a.png', 'cat/deep/er/b.JPG', 'cat/a.png'):
        _write(tmp_path / file)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'dog' / 'notes.txt').write_text('no image')
    (tmp_path / 'dog' / '._a.png').write_bytes(b'macOS')
    source = load_source(f'folder:{tmp_path}', 'train')
    assert source.class_names == ('cat', 'dog')
    assert source.files == ['cat/a.png', 'cat/deep/er/b.JPG', 'dog/a.png']
    assert source.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize('files', [('a.png', 'b.png', 'e.png', 'cat/b.png', 'dog/c.png'),
                                   ('cat/b.png', 'cat/c.png'), ('a.png', 'b.png')])
def test_most_images_beside_folders_or_a_single_folder_mean_no_labels(tmp_path, files):
    for file in files:
        _write(tmp_path / file)
    source = load_source(f'folder:{tmp_path}', 'train')
    assert source.num_classes == 0 and set(source.labels) == {-1}
    assert source.num_examples == len(files)


def test_split_folders_share_the_classes_of_training(tmp_path):
    for file in ('train/a/1.png', 'train/b/1.png', 'train/c/1.png', 'val/c/1.png', 'val/a/1.png'):
        _write(tmp_path / file)
    name = f'folder:{tmp_path}'
    assert available_splits(name) == ('train', 'val')
    assert load_test_source(name, '').split == 'val'
    source = load_source(name, 'val')
    assert source.class_names == ('a', 'b', 'c') and source.labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        load_source(name, 'test')
    _write(tmp_path / 'val/d/1.png')
    with pytest.raises(ValueError, match="class folder 'd'"):
        load_source(name, 'val')


def test_unreadable_files_are_named_once_by_their_path(tmp_path, caplog):
    for i in range(4):
        _write(tmp_path / 'a' / f'{i}.png')
    (tmp_path / 'a' / '0.png').write_bytes(b'')
    source = load_source(f'folder:{tmp_path}', 'train')  # finds the first one unreadable, and goes on
    source.skip(2, ValueError('broken'))
    source.skip(2, ValueError('broken'))
    assert source.skipped == ['a/0.png', 'a/2.png']
    assert [caplog.text.count(f'unreadable image {name}: ') for name in source.skipped] == [1, 1]
    assert sorted(source.unreadable) == [0, 2]
    source.max_bad_share = 0.5
    source.check_bad_share()
    source.max_bad_share = 0.4
    with pytest.raises(ValueError, match=r"^2 of the 4 images .* \(a/0.png, a/2.png\): 50.0%"):
        source.check_bad_share()


def test_the_fingerprint_of_a_folder_is_that_of_its_files_wherever_it_lies(tmp_path):
    def fingerprints():
        source = load_source(f'folder:{tmp_path}/data', 'train')
        return source.fingerprint(), source.fingerprint(with_times=True)

    for i in range(3):
        _write(tmp_path / f'data/{i}.png')
    known = [fingerprints()]
    os.utime(tmp_path / 'data/2.png', (1, 1))
    known.append(fingerprints())
    assert known[0][0] == known[1][0] and known[0][1] != known[1][1]
    (tmp_path / 'data').rename(tmp_path / 'moved')
    assert load_source(f'folder:{tmp_path}/moved', 'train').fingerprint() == known[0][0]
    (tmp_path / 'moved').rename(tmp_path / 'data')
    _write(tmp_path / 'data/1.png', size=(30, 30))
    known.append(fingerprints())
    (tmp_path / 'data/0.png').rename(tmp_path / 'data/3.png')
    known.append(fingerprints())
    assert len({plain for plain, _ in known}) == 3 and len({timed for _, timed in known}) == 4


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(FileNotFoundError, match='/nowhere'):
        load_source('folder:/nowhere', 'train')
    with pytest.raises(ValueError, match='no images below'):
        load_source(f'folder:{tmp_path}', 'train')
    for i in range(3):
        (tmp_path / f'{i}.jpg').write_bytes(b'broken')
    with pytest.raises(ValueError, match='None of the 3 images .* can be read'):
        load_source(f'folder:{tmp_path}', 'train')


# ---- TFDS --------------------------------------------------------------------------------------


def _store(data_dir, images, features, name='tiny', file_format=None, **columns):
    dataset = tf.data.Dataset.from_tensor_slices({'picture': images, **columns})
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version='1.0.0', data_dir=data_dir, split_datasets={'train': dataset},
        features=tfds.features.FeaturesDict(features), file_format=file_format)


def test_tfds_that_is_not_prepared_fails_fast_and_says_how(tmp_path):
    started = time.time()
    with pytest.raises(FileNotFoundError, match='tfds build cifar10 --data_dir=.*download=true'):
        load_source('cifar10', 'train', data_dir=str(tmp_path))
    assert time.time() - started < 10


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no data source 'cifar1'.*Did you mean cifar10"):
        load_source('cifar1', 'train', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="no data source 'imagenet'.*Did you mean imagenet2012 or"):
        load_source('imagenet', 'train', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match='cannot be loaded at version 9.9.9'):
        load_source('cifar10:9.9.9', 'train', data_dir=str(tmp_path))
    with pytest.raises(ValueError, match='BuilderConfig foo not found'):
        load_source('cifar10/foo', 'train', data_dir=str(tmp_path))


def test_a_path_without_its_word_is_told_the_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / 'photos' / 'train' / '1.png')
    for name, sentence in (
            (f'{tmp_path}/photos', f'write folder:{tmp_path}/photos'), ('~/x', 'write folder:~/x'),
            ('photos/train', 'write folder:photos/train'), ('./a.npz', 'write arrays:./a.npz'),
            ('gs://b/a.tar', 'write wds:gs://b/a.tar'),
            ('photos', 'directory of this name is folder:photos')):
        for read in (lambda name: load_source(name, 'train'), available_splits):
            with pytest.raises(ValueError, match=sentence):
                read(name)


def test_tfds_features_are_found_by_type(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 1), np.uint8)
    _store(tmp_path, images, {
        'picture': tfds.features.Image(shape=(6, 6, 1)), 'number': tfds.features.Scalar(tf.int64),
        'kind': tfds.features.ClassLabel(names=['x', 'y'])},
        number=np.arange(20), kind=np.arange(20) % 2)
    source = load_source('tiny', 'train', data_dir=str(tmp_path))
    assert source.class_names == ('x', 'y') and source.images.shape == (20, 6, 6, 3)
    stored = {image.tobytes(): i for i, image in enumerate(images)}
    rows = [stored[np.ascontiguousarray(image[..., :1]).tobytes()] for image in source.images]
    assert sorted(rows) == list(range(20))
    np.testing.assert_array_equal(source.labels, np.array(rows) % 2)
    np.testing.assert_array_equal(source.images[..., 0], source.images[..., 2])

    part = load_source('tiny', 'train[:25%]', data_dir=str(tmp_path))
    np.testing.assert_array_equal(part.images, source.images[:5])
    assert load_test_source('tiny', '', data_dir=str(tmp_path)) is None
    with pytest.raises(ValueError, match="no split 'test'; it has train"):
        load_source('tiny', 'test', data_dir=str(tmp_path))


def test_tfds_without_labels_of_sixteen_bits(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype(np.uint16) * 257
    _store(tmp_path, images, {'picture': tfds.features.Image(shape=(4, 4, 3), dtype=np.uint16)})
    source = load_source('tiny', 'train', data_dir=str(tmp_path))
    assert source.num_classes == 0 and source.labels.tolist() == [-1] * 3
    assert source.images.sum() == (images // 257).sum()


def test_the_fingerprint_of_a_tfds_split_tells_its_records_apart(tmp_path):
    image = {'picture': tfds.features.Image(shape=(4, 4, 3))}
    _store(tmp_path, np.zeros((5, 4, 4, 3), np.uint8), image)
    _store(tmp_path, np.zeros((6, 4, 4, 3), np.uint8), image, name='other')
    known = [load_source(name, split, data_dir=str(tmp_path), in_memory_bytes=0).fingerprint()
             for name, split in (('tiny', 'train'), ('tiny', 'train'), ('tiny', 'train[1:]'),
                                 ('other', 'train'))]
    assert known[0] == known[1] and len(set(known)) == 3
    tmp_path.rename(moved := tmp_path.with_name(f'{tmp_path.name}_moved'))
    again = load_source('tiny', 'train', data_dir=str(moved), in_memory_bytes=0)
    assert again.fingerprint() == known[0]


def test_tfds_that_cannot_be_used(tmp_path):
    _store(tmp_path, np.arange(3), {'picture': tfds.features.Scalar(tf.int64)})
    with pytest.raises(ValueError, match="'tiny' has no image among its features: picture"):
        load_source('tiny', 'train', data_dir=str(tmp_path))
    _store(tmp_path, np.zeros((3, 4, 4, 3), np.uint8), {'picture': tfds.features.Image()},
           name='other', file_format='array_record')
    with pytest.raises(ValueError, match="'other' was prepared as array_record"):
        load_source('other', 'train', data_dir=str(tmp_path))


def _save_small(path, count, size=6):
    path.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (count, size, size + 1, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(path / f'{number:03}.png')
    return images


def test_a_folder_of_small_images_of_one_shape_is_decoded_once(tmp_path):
    images = _save_small(tmp_path / 'a', 300)
    (tmp_path / 'a' / '007.png').write_bytes(b'no image')
    source = load_source(f'folder:{tmp_path}', 'train', decode_once=True)
    assert source.uniform and source.skipped == ['a/007.png']
    np.testing.assert_array_equal(source.images, np.delete(images, 7, axis=0))
    assert source.num_examples == len(source.labels) == 299


@pytest.mark.parametrize('change', ['another shape', 'large', 'no room'])
def test_other_folders_are_read_file_by_file(change, tmp_path):
    _save_small(tmp_path / 'a', 4, size=129 if change == 'large' else 6)
    if change == 'another shape':
        Image.new('RGB', (6, 6)).save(tmp_path / 'a' / '9.png')
    room = {'in_memory_bytes': 4 * 6 * 7 * 3 - 1} if change == 'no room' else {}
    assert not load_source(f'folder:{tmp_path}', 'train', decode_once=True, **room).uniform


def test_too_many_bad_files_are_told_while_a_folder_is_decoded(tmp_path):
    _save_small(tmp_path / 'a', 10)
    (tmp_path / 'a' / '003.png').write_bytes(b'')
    with pytest.raises(ValueError, match=r'1 of the 10 images .*a/003.png.*data.max_bad_share = 0.05'):
        load_source(f'folder:{tmp_path}', 'train', decode_once=True)
    assert load_source(f'folder:{tmp_path}', 'train', decode_once=True, max_bad_share=0.2).num_examples == 9
