import numpy as np
import pytest

from simclr_jax.data.source import ArraySource, Source, take_rows
from simclr_jax.evaluate.subsets import balanced_rows, heldout_rows, rows_of_files

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100)).astype(np.int32)


def test_held_out_rows_and_the_rest_are_all_rows_once():
    rest, held = heldout_rows(997, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, held])), np.arange(997))
    assert len(held) == 100 and len(heldout_rows(50_000, seed=3, at_most=2000)[1]) == 2000
    assert (heldout_rows(997, seed=3)[1] == held).all() and (heldout_rows(997, seed=4)[1] != held).any()
    assert [len(part) for part in heldout_rows(2, seed=0)] == [1, 1]
    with pytest.raises(ValueError, match='cannot be split'):
        heldout_rows(1, seed=0)


def test_a_share_has_as_many_of_each_class_and_smaller_shares_are_part_of_larger_ones():
    unlabelled = np.append(LABELS, -1)
    tenth, hundredth = (balanced_rows(unlabelled, share, 5, 10) for share in (0.1, 0.01))
    assert np.bincount(LABELS[tenth]).tolist() == [10] * 10
    assert np.bincount(LABELS[hundredth]).tolist() == [1] * 10
    assert set(hundredth) < set(tenth) and (np.diff(tenth) > 0).all()
    assert set(balanced_rows(unlabelled, 1.0, 5, 10)) == set(range(1000))
    assert set(balanced_rows(unlabelled, 0.1, 6, 10)) != set(tenth)


@pytest.mark.parametrize('labels, share, classes, sentence', [
    (LABELS, 0.0, 10, r'label_share is 0.0: it must be in \(0, 1\]'),
    (LABELS, 1.5, 10, 'label_share is 1.5'),
    (LABELS, 0.001, 10, 'less than one to each of 10 classes: take at least 0.01'),
    (LABELS, 0.5, 11, 'Class 10 of 11 has no training example'),
    (LABELS[(LABELS != 3) | (np.arange(1000) % 9 == 0)], 0.5, 10, 'Class 3 has .* takes 4. of each class'),
])
def test_a_share_that_cannot_be_is_refused(labels, share, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        balanced_rows(labels, share, 0, classes)


NAMES = ['n01/n01_1.JPEG', 'n01/n01_2.JPEG', 'n02/n02_1.JPEG', 'n02/same.png', 'n03/same.png']


def test_a_list_of_file_names_chooses_rows(tmp_path):
    path = tmp_path / '1percent.txt'
    path.write_text('n02_1.JPEG\nn01/n01_1.JPEG\n\nn03/same.png\n')      # as simclr's list, and with folders
    assert rows_of_files(NAMES, str(path)).tolist() == [0, 2, 4]


@pytest.mark.parametrize('text, sentence', [
    ('n01_1.JPEG\nn09_1.JPEG\n', 'names 1 files of 2 .*: n09_1.JPEG'), ('same.png\n', 'has twice: same.png'),
    ('n01_1.JPEG\nn01/n01_1.JPEG\n', 'names a file twice'), ('\n', 'names no file')])
def test_a_list_that_does_not_fit_is_refused(text, sentence, tmp_path):
    (tmp_path / 'list.txt').write_text(text)
    with pytest.raises(ValueError, match=sentence):
        rows_of_files(NAMES, str(tmp_path / 'list.txt'))
    with pytest.raises(FileNotFoundError, match='no file'):
        rows_of_files(NAMES, str(tmp_path / 'missing.txt'))


class Files(Source):
    """Images that are read one by one."""

    labels = np.arange(8, dtype=np.int32)

    def load(self, index):
        return np.full((2, 2, 3), index, np.uint8)

    def name_of(self, index):
        return f'file{index}'


class Stream(Source):
    def stream(self, **_):
        raise AssertionError('it must not be read')

    ordered = stream


def test_rows_of_a_source_are_a_source():
    rows = np.array([6, 1])
    some = take_rows(Files('files', 'train', 8, tuple('abcdefgh')), rows)
    assert some.num_examples == 2 and some.labels.tolist() == [6, 1] and some.num_classes == 8
    assert some.load(0).max() == 6 and some.name_of(1) == 'file1'
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    some = take_rows(ArraySource('arrays', 'train', images, Files.labels, tuple('abcdefgh')), rows)
    assert some.uniform and some.images[:, 0, 0, 0].tolist() == [6, 1] and some.labels.tolist() == [6, 1]
    with pytest.raises(ValueError, match='read as a stream'):
        take_rows(Stream('imagenet2012', 'train', 8, None), rows)
