"""Folders as people have them: splits, classes, what is left out and said, and what is refused."""

import io
import os
import pathlib
import tempfile

import numpy as np
import pytest
from PIL import Image

from simclr_jax import storage
from simclr_jax.data import loading
from simclr_jax.data.bucket_listing import Share
from simclr_jax.data.loading import available_splits, load_pair, load_source


def write(root, *files):
    """Images, each of one grey; other files hold a word."""
    for number, file in enumerate(files):
        path = pathlib.Path(root, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in ('.png', '.jpg'):
            Image.new('RGB', (6, 5), (40 + number,) * 3).save(path)
        elif path.suffix:
            path.write_text('words')
        else:
            path.mkdir(exist_ok=True)


SPLITS = ['train/a/1.png', 'train/b/1.png', 'test/a/1.png', 'test/b/1.png']


@pytest.mark.parametrize('names, found', [
    (('Train', 'TEST'), ('train', 'test')), (('training', 'testing'), ('train', 'test')),
    (('train', 'valid'), ('train', 'val')), (('TRAIN', 'Validation'), ('train', 'validation')),
    (('train', 'val'), ('train', 'val'))])
def test_split_folders_by_any_of_their_names(tmp_path, names, found):
    for name in names:
        write(tmp_path, f'{name}/a/1.png', f'{name}/b/1.png')
    source = f'folder:{tmp_path}'
    assert available_splits(source) == found
    train, test = load_pair(source, 'train', '')
    assert train.class_names == test.class_names == ('a', 'b') and len(train) == len(test) == 2
    assert test.split == found[1]


@pytest.mark.parametrize('beside', [
    ('empty',), ('__MACOSX/train/a/1.png',), ('annotations/a.xml',), ('logs/x.txt', 'logs/deep'),
    ('.cache/a.png',), ('readme.txt', 'stray.png')])
def test_what_lies_beside_split_folders_is_no_class(tmp_path, beside):
    write(tmp_path, *SPLITS, *beside)
    train, test = load_pair(f'folder:{tmp_path}', 'train', '')
    assert train.files == ['a/1.png', 'b/1.png'] and train.class_names == ('a', 'b') and len(test) == 2


def test_unlabelled_images_are_a_split_beside_splits_and_have_no_label_beside_classes(tmp_path):
    write(tmp_path / 'splits', *SPLITS, 'unlabeled/1.png', 'unlabeled/x/2.png')
    assert available_splits(f'folder:{tmp_path}/splits') == ('train', 'test', 'unlabeled')
    assert load_source(f'folder:{tmp_path}/splits', 'unlabeled').labels.tolist() == [-1, -1]
    write(tmp_path / 'classes', 'cat/1.png', 'dog/1.png', 'unlabeled/1.png')
    assert load_source(f'folder:{tmp_path}/classes', 'train').labels.tolist() == [0, 1, -1]


@pytest.mark.parametrize('wrapper', ['images', 'data/set'])
def test_a_wrapper_around_train_and_test_is_looked_through(tmp_path, wrapper):
    write(tmp_path, *(f'{wrapper}/{file}' for file in SPLITS), 'labels/train/1.txt', 'labels/test/1.txt')
    train, test = load_pair(f'folder:{tmp_path}', 'train', '')
    assert train.class_names == ('a', 'b') and len(train) == len(test) == 2


@pytest.mark.parametrize('files, sentence', [
    (['train/1.png', 'cat/1.png', 'dog/1.png'], "holds 'train', 'cat', 'dog', which are not understood"),
    (['one/train/1.png', 'two/train/1.png'], "holds 'one/train' beside other images. Give folder:.*/one"),
    (['set/train/1.png', 'stray.png'], "holds 'set/train' beside other images"),
    (['train/empty', 'test/1.png', 'val/1.png'], "has images in 'test', 'val', but none in 'train'"),
    (['train/1.png', 'Training/1.png'], "holds 'Training', 'train', which are not understood")])
def test_a_train_folder_that_is_not_understood_is_an_error_with_the_fix(tmp_path, files, sentence):
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=f"{sentence}.*set data.folders='classes'"):
        load_source(f'folder:{tmp_path}', 'train')


def test_an_option_says_what_folders_are(tmp_path):
    write(tmp_path, 'train/1.png', 'cat/1.png', 'dog/1.png')
    source = load_source(f'folder:{tmp_path}', 'train', folders='classes')
    assert source.class_names == ('cat', 'dog', 'train')
    write(tmp_path / 'other', 'cat/1.png', 'dog/1.png')
    source = load_source(f'folder:{tmp_path}/other', 'train', folders='none')
    assert source.class_names is None and source.labels.tolist() == [-1, -1] and source.notes == []
    with pytest.raises(ValueError, match="data.folders is 'no'; it takes 'auto', 'classes', 'none'"):
        load_source(f'folder:{tmp_path}', 'train', folders='no')


def test_a_stray_image_has_no_label_and_the_others_keep_theirs(tmp_path):
    write(tmp_path, 'stray.png', 'cat/1.png', 'cat/2.png', 'dog/1.png')
    source = load_source(f'folder:{tmp_path}', 'train')
    assert source.labels.tolist() == [0, 0, 1, -1] and source.class_names == ('cat', 'dog')
    assert any('1 of 4 images lie beside the class folders' in note for note in source.notes)


def test_what_is_left_out_is_counted_by_suffix_and_said(tmp_path):
    write(tmp_path, 'a.png', 'b.jpg', *(f'{i}.dcm' for i in range(4)), 'x.txt', 'Y.TXT', 'cut.psd')
    note, = load_source(f'folder:{tmp_path}', 'train').notes
    assert note.endswith('7 files are not images of a known format and are left out: 4 .dcm, 2 .txt, '
                         '1 .psd.')
    write(tmp_path / 'none', 'a.dcm')
    with pytest.raises(ValueError, match='no images below .*; there are 1 .dcm'):
        load_source(f'folder:{tmp_path}/none', 'train')


@pytest.mark.parametrize('suffix, kind', [
    ('.tif', 'TIFF'), ('.TIFF', 'TIFF'), ('.jp2', 'JPEG2000'), ('.jfif', 'JPEG'), ('.jpe', 'JPEG'),
    ('.avif', 'AVIF'), ('.ppm', 'PPM'), ('.npy', ''), ('.heic', 'HEIF')])
def test_further_suffixes(tmp_path, suffix, kind):
    pixels = np.full((8, 10, 3), (200, 90, 30), np.uint8)
    if suffix in ('.avif', '.heic') and suffix not in loading.folder.suffixes():
        pytest.skip('no codec')
    if kind:
        Image.fromarray(pixels).save(tmp_path / f'a{suffix}', kind)
    else:
        np.save(tmp_path / f'a{suffix}', pixels)
    image = loading.in_memory(load_source(f'folder:{tmp_path}', 'train')).images[0]
    np.testing.assert_allclose(image, pixels, atol=6)


def test_arrays_of_other_channels_end_in_one_sentence(tmp_path):
    np.save(tmp_path / 'a.npy', np.zeros((4, 4, 17), np.uint16))
    with pytest.raises(ValueError, match=r'None of the 1 images .* can be read \(a.npy: uint16 \[4, 4, 17\]'
                                         r': an image is \[H, W\] or \[H, W, C\] of C = 1, 3 or 4'):
        load_source(f'folder:{tmp_path}', 'train')


# ---- names ---------------------------------------------------------------------------------------------


def test_names_that_are_no_utf8_are_read_and_can_be_printed(tmp_path):
    write(tmp_path, 'ok.png')
    os.rename(tmp_path / 'ok.png', os.fsencode(tmp_path) + b'/caf\xe9.png')
    write(tmp_path, 'x.png')
    with open(os.fsencode(tmp_path) + b'/br\xf6ken.png', 'wb'):
        pass
    source = load_source(f'folder:{tmp_path}', 'train')
    assert [source.name_of(i) for i in range(3)] == ['br\\xf6ken.png', 'caf\\xe9.png', 'x.png']
    assert source.skipped == ['br\\xf6ken.png'] and source.load(1)[:4] == b'\x89PNG'
    ' '.join(source.skipped).encode('utf-8')
    assert source.fingerprint()


def test_two_forms_of_one_accent_are_one_class(tmp_path):
    composed, apart = 'caf\u00e9', 'cafe\u0301'
    write(tmp_path, f'train/{composed}/1.png', 'train/b/1.png', f'test/{apart}/1.png', 'test/b/1.png')
    train, test = load_pair(f'folder:{tmp_path}', 'train', '')
    assert train.class_names == test.class_names == ('b', composed) and test.labels.tolist() == [0, 1]


def test_linked_class_folders_are_classes_also_where_they_lead_to_one_another(tmp_path):
    write(tmp_path, 'store/cats/1.png', 'data/dog/1.png')
    os.symlink(tmp_path / 'store/cats', tmp_path / 'data/cat')
    os.symlink(tmp_path / 'store/cats', tmp_path / 'data/kitten')
    os.symlink(tmp_path / 'data', tmp_path / 'data/dog/back')
    source = load_source(f'folder:{tmp_path}/data', 'train')
    assert source.class_names == ('cat', 'dog', 'kitten') and len(source) == 3 and source.files[2] == 'kitten/1.png'


def test_a_folder_that_cannot_be_listed_is_named():
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        write(root, 'a/1.png', 'b/1.png')
        os.chmod(f'{root}/b', 0)
        if os.geteuid() == 0:       # who may read everything
            os.seteuid(65534)
        try:
            mend = "The folder '.*/b' cannot be listed .Permission denied.: correct its permissions"
            with pytest.raises(OSError, match=mend):
                load_source(f'folder:{root}', 'train')
        finally:
            os.seteuid(os.getuid())
            os.chmod(f'{root}/b', 0o755)


def test_a_folder_on_an_object_store(tmp_path):
    from simclr_jax import storage
    root = f'memory://{tmp_path}'
    for file in SPLITS:
        buffer = io.BytesIO()
        Image.new('RGB', (4, 4), (9, 99, 200)).save(buffer, 'PNG')
        storage.write_atomically(f'{root}/{file}', buffer.getvalue())
    train, test = load_pair(f'folder:{root}', 'train', '')
    assert train.class_names == ('a', 'b') and len(test) == 2 and train.fingerprint()
    assert (loading.in_memory(train).images == (9, 99, 200)).all()
    storage.remove(root)


def test_images_beside_the_folders_of_the_splits_are_counted(tmp_path):
    for name in ('train/a.png', 'test/b.png', 'c.png', 'd.jpg', 'notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / name, format='PNG')
    source = load_source(f'folder:{tmp_path}', 'train')
    assert source.files == ['a.png']
    assert source.notes[-1].endswith(
        ': 2 images lie beside the folders of the splits, in no split, and are left out.')


def test_two_processes_read_half_of_a_small_folder_each(tmp_path):
    write(tmp_path, *(f'{number % 2}/{number:02}.png' for number in range(12)))
    whole = load_source(f'folder:{tmp_path}', 'train', decode_once=True)
    parts, given = [], []

    class Counted(type(whole)):
        """A source that counts what is read of it."""

    def load(index):
        given.append(index)
        return whole.images[index]

    source = Counted(whole.name, whole.split, whole.images, whole.labels, whole.class_names)
    source.load, source.max_bad_share = load, 1.0
    for process in (0, 1):          # what each would give, then the exchange of both
        loading.in_memory(source, share=Share(process, 2, lambda mine: parts.append(mine) or [mine]))
    assert sorted(given) == list(range(12))
    (shape, rows0, images0), (_, rows1, images1) = parts[:3], parts[3:]
    answers = iter([[shape, shape], [rows0, rows1], [images0, images1]])
    found = loading.in_memory(source, share=Share(0, 2, lambda mine: next(answers)))
    np.testing.assert_array_equal(found.images, whole.images)
    assert found.skipped == []


@pytest.mark.parametrize('root', ['{split}/{label}', '{label}', 'wrapper/{label}', ''])
def test_a_start_lists_each_directory_once_asks_once_of_a_size_and_opens_no_more_of_a_larger_folder(
        tmp_path, monkeypatch, root):
    def record(patch, name, paths):
        real = getattr(storage, name)
        patch.setattr(storage, name, lambda path, *rest: paths.append(path) or real(path, *rest))

    opened = {}
    for count in (140, 420):
        for number in range(count):
            folder = tmp_path / str(count) / root.format(split=('train', 'test')[number % 2], label=number % 7)
            folder.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (6 + number % 3, 5), (number % 256, 200, 90)).save(folder / f'{number:04}.png')
        listed, asked, opened[count] = [], [], []
        with monkeypatch.context() as patch:
            record(patch, 'names', listed)
            record(patch, 'size', asked)
            record(patch, 'read_bytes', opened[count])
            train, test = load_pair(f'folder:{tmp_path}/{count}', 'train', '')
            before = len(asked)
            for source in (train, test or train, train):
                assert len(source.fingerprint()) == 64
        num_folders = len({path for path, *_ in os.walk(tmp_path / str(count))})
        assert len(listed) == len(set(listed)) == num_folders
        assert before == 0 and len(asked) == len(set(asked)) == count
    assert len(opened[140]) == len(opened[420]) < 700        # samples, of the files' pixels and depth


def test_what_is_added_to_a_folder_is_seen_by_the_next_source_of_it(tmp_path):
    write(tmp_path, *SPLITS)
    assert len(load_source(f'folder:{tmp_path}', 'train')) == 2
    write(tmp_path, 'train/c/1.png')
    train = load_source(f'folder:{tmp_path}', 'train')
    assert len(train) == 3 and train.class_names == ('a', 'b', 'c')
