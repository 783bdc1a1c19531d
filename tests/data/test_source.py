"""Slices and held-out parts: disjoint, each class in its share, the same on every machine."""

import re

import numpy as np
import pytest

from simclr_jax.config import base_config
from simclr_jax.data import loading
from simclr_jax.data.labels import members
from simclr_jax.data.loading import load_pair, load_source
from simclr_jax.data.source import ArraySource, hold_out, take_split

LABELS = np.repeat(np.arange(4), (100, 50, 10, 1)).astype(np.int32)        # sorted by class, as files are


def numbered(labels=LABELS):
    """Images that hold their own number."""
    images = np.arange(len(labels)).astype(np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    return ArraySource('numbered', 'train', images, labels, tuple('abcd'))


def numbers(source):
    return source.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize('cut', ['80%', '37', '-20'])
def test_two_slices_share_no_image_and_make_up_the_whole(cut):
    first, second = (take_split(numbered(), split) for split in (f'train[:{cut}]', f'train[{cut}:]'))
    assert sorted(numbers(first) + numbers(second)) == list(range(161))
    assert numbers(first) == numbers(take_split(numbered(), f'train[:{cut}]'))       # in every run


@pytest.mark.parametrize('split', ['train[:20%]', 'train[20%:40%]', 'train[80%:]'])
def test_a_slice_has_its_share_of_each_class(split):
    counts = np.bincount(take_split(numbered(), split).labels, minlength=4)
    np.testing.assert_allclose(counts[:3], [20, 10, 2], atol=1)


def test_which_images_are_drawn_never_changes():
    """Else every run that uses slices, or a part held out, would have other data."""
    assert numbers(take_split(numbered(), 'train[:5%]')) == [25, 52, 58, 65, 79, 139, 143, 147]
    assert numbers(hold_out(numbered(), 5)[1]) == [16, 20, 39, 57, 85, 109, 111, 154]


def test_a_part_is_held_out_of_each_class():
    train, test = hold_out(numbered(), 10)
    assert sorted(numbers(train) + numbers(test)) == list(range(161))
    assert np.bincount(test.labels, minlength=4).tolist() == [10, 5, 1, 0]      # one of one cannot be had
    assert np.bincount(hold_out(numbered(), 50)[1].labels, minlength=4).tolist() == [50, 25, 5, 0]
    assert np.bincount(hold_out(numbered(), 0.5)[1].labels).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="data.test_split is '100%'"):
        hold_out(numbered(), 100)


def npz(tmp_path, **arrays):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    np.savez(tmp_path / 'a.npz', images=images, **{'labels': np.repeat([0, 1], 20), **arrays})
    return f'arrays:{tmp_path}/a.npz'


def test_without_a_test_split_a_tenth_is_held_out_and_said(tmp_path):
    train, test = load_pair(npz(tmp_path), 'train', '')
    assert len(train) == 36 and len(test) == 4 and test.labels.tolist() == [0, 0, 1, 1]
    assert '4 images, 10 % of each class, are held out of training' in train.notes[-1]
    train, test = load_pair(npz(tmp_path), 'train', '25%')
    assert len(train) == 30 and len(test) == 10 and test.split == '25% of train'
    train, test = load_pair(npz(tmp_path), 'train', 'none')
    assert len(train) == 40 and test is None


def test_nothing_is_held_out_without_labels_or_beside_a_test_split(tmp_path):
    images = np.zeros((5, 4, 4), np.uint8)
    np.savez(tmp_path / 'b.npz', train_images=np.tile(images, (8, 1, 1)))
    train, test = load_pair(f'arrays:{tmp_path}/b.npz', 'train', '')
    assert len(train) == 40 and test is None
    train, test = load_pair('shapes:50', 'train', '')
    assert len(train) == 50 and test.split == 'test'


def options(data, begun_with=None):
    return loading.options(data, image_size=8, is_lead=True, begun_with=begun_with)


def test_a_run_that_was_begun_before_reads_its_data_as_it_did(tmp_path):
    """Its config has no field of these: sorted slices, nothing held out, labels as numbers."""
    name, data = npz(tmp_path, labels=np.repeat([0, 2], 20)), base_config().data.to_dict()
    old = {field: value for field, value in data.items() if field not in (
        'reading', 'background', 'range', 'max_pixels', 'folders', 'arguments')}
    where = options(data, begun_with=old | {'source': name})
    train, test = load_pair(name, 'train[:50%]', '', **where)
    assert train.labels.tolist() == [0] * 20 and train.num_classes == 3 and test is None
    assert load_source(name, 'train[:50%]', **options(data)).labels.tolist() == [0] * 10 + [1] * 10
    fields = loading.resumed(data, old)
    assert fields['reading'] == 1 and fields['background'] == ''


def test_a_run_goes_on_with_the_part_that_it_held_out_and_the_range_that_it_found():
    data = base_config().data.to_dict()
    begun = data | {'test_split': '10%', 'range': [0, 4095]}
    fields = loading.resumed(data, begun)
    assert fields['test_split'] == '10%' and fields['range'] == (0, 4095)
    with pytest.raises(ValueError, match="data.test_split is 'none', but the run began with '10%'"):
        loading.resumed(data | {'test_split': 'none'}, begun)
    with pytest.raises(ValueError, match=r'data.range is \(0, 255\), but the run began with \(0, 4095\)'):
        loading.resumed(data | {'range': (0, 255)}, begun)
    assert loading.resumed(data | {'test_split': 'val'}, data | {'test_split': 'test'})['test_split'] == 'val'


@pytest.mark.parametrize('labels, found, note', [
    ([1, 2, 3, 1], [0, 1, 2, 0], 'are 1, 2, 3: they become the classes 0 to 2'),
    ([0, 5, 9, 0], [0, 1, 2, 0], 'are 0, 5, 9: they become'),
    (np.array([0, 1, 255, 1], np.uint8), [0, 1, -1, 1], '1 labels .* are 255: no label'),
    ([0, -1, 1, 0], [0, -1, 1, 0], '')])
def test_labels_of_arrays_become_classes(tmp_path, labels, found, note):
    images = np.zeros((4, 2, 2), np.uint8)
    np.savez(tmp_path / 'a.npz', images=images, labels=labels)
    source = load_source(f'arrays:{tmp_path}/a.npz', 'train')
    assert source.labels.tolist() == found and source.num_classes == len(set(found) - {-1})
    assert bool(source.notes) == bool(note) and re.search(note, ''.join(source.notes))


def test_classes_are_those_of_both_splits_and_labels_below_minus_one_are_refused(tmp_path):
    images = np.zeros((2, 2, 2), np.uint8)
    name = f'arrays:{tmp_path}/a.npz'
    np.savez(tmp_path / 'a.npz', train_images=images, train_labels=[1, 2], test_images=images,
             test_labels=[3, 1])
    train, test = load_pair(name, 'train', '')
    assert train.class_names == test.class_names == ('1', '2', '3') and test.labels.tolist() == [2, 0]
    np.savez(tmp_path / 'a.npz', images=images, labels=[0, -2])
    with pytest.raises(ValueError, match="has the label -2: labels are 0, 1, 2, ..., and -1 is no label"):
        load_source(name, 'train')


def test_the_rows_of_each_label_are_those_that_hold_it():
    labels = np.random.default_rng(0).integers(-1, 5, 200).astype(np.int32)
    labels[labels == 3] = 4
    found = members(labels)
    assert [label for label, _ in found] == [-1, 0, 1, 2, 4]
    for label, rows in found:
        np.testing.assert_array_equal(rows, np.flatnonzero(labels == label))
