"""Features in a file: in the order of their source, with names, labels and the encoder that made them."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.embed import embed, fingerprint, output_paths, read_features, write_features
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.training.steps import make_encode
from simclr_jax.views.device import eval_crop
from tests.evaluate.runs import overflowing, task_config

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Six images of two classes and several sizes, and a file that is none."""
    root = tmp_path_factory.mktemp('images')
    images, _ = make_shapes('test', 24, num_examples=6)
    for number, image in enumerate(images):
        path = root / ('apple' if number % 2 else 'pear') / f'{number}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).resize((24 + number, 24)).save(path)
    (root / 'pear' / '3 broken.png').write_bytes(b'no image')
    return root


@pytest.fixture(scope='module')
def pretrained(workdir):
    return load_pretrained(workdir)


@pytest.fixture(scope='module')
def files(workdir, folder, tmp_path_factory):
    config = task_config('embed', workdir)
    config.data.update({'source': f'folder:{folder}', 'train_split': 'train', 'max_bad_share': 0.5})
    return embed(config, str(tmp_path_factory.mktemp('features')))


def test_each_row_is_the_feature_of_the_file_that_it_names(files, pretrained, folder):
    embedded = read_features(files[0])
    assert list(embedded.names) == ['apple/1.png', 'apple/3.png', 'apple/5.png', 'pear/0.png', 'pear/2.png',
                                    'pear/4.png']
    assert list(embedded.indices) == [0, 1, 2, 3, 4, 6]       # 5 is the broken one
    assert list(embedded.labels) == [0, 0, 0, 1, 1, 1]
    assert embedded.metadata['data']['skipped'] == ['pear/3 broken.png']
    images = jnp.stack([eval_crop(np.asarray(Image.open(folder / name)), image_size=16, proportion=1.0)
                        for name in embedded.names])
    expected = make_encode(pretrained.network)(pretrained.variables, images)
    assert embedded.features.dtype == np.float32
    np.testing.assert_allclose(embedded.features, expected, rtol=1e-4, atol=1e-4)


def test_the_file_says_which_encoder_made_it_and_how(files, pretrained, workdir):
    metadata = read_features(files[0]).metadata
    assert metadata['encoder']['path'] == workdir
    assert (metadata['encoder']['step'], metadata['encoder']['layer']) == (2, 0)
    assert metadata['encoder']['weights'] == fingerprint(pretrained.variables)
    assert metadata['preprocessing'] | {'resize': '', 'range': ''} == {
        'image_size': 16, 'crop_proportion': 1.0, 'mean': [0.4, 0.5, 0.6], 'std': [1.0, 1.0, 1.0],
        'resize': '', 'range': ''}


def test_every_format_holds_the_same(files, tmp_path):
    embedded = read_features(files[0])
    assert [os.path.splitext(path)[1] for path in files] == ['.npz', '.parquet']
    write_features(str(tmp_path / 'f.npy'), embedded)
    np.testing.assert_array_equal(np.load(tmp_path / 'f.npy'), embedded.features)
    for path in (files[1], str(tmp_path / 'f.npy')):
        again = read_features(path)
        assert again.metadata == embedded.metadata and again.features.dtype == np.float32
        for one, other in zip(again[:-1], embedded[:-1]):
            np.testing.assert_array_equal(one, other)


def test_parquet_reads_as_a_table_of_names_classes_and_vectors(files):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(files[1])
    assert table.column_names == ['name', 'index', 'label', 'class', 'vector']
    assert table['class'].to_pylist()[2:4] == ['apple', 'pear']
    assert json.loads(table.schema.metadata[b'simclr_jax'])['encoder']['step'] == 2


def test_unlabelled_sets_are_embedded_in_their_order(workdir, pretrained, tmp_path):
    images, _ = make_shapes('test', 16, num_examples=70)         # two batches
    np.savez(tmp_path / 'set.npz', images=images)
    config = task_config('embed', workdir, file=str(tmp_path / 'out.npz'), layer=-1)
    config.data.update({'source': f'arrays:{tmp_path}/set.npz', 'train_split': 'train'})
    path, = embed(config, str(tmp_path))
    embedded = read_features(path)
    assert list(embedded.labels) == [-1] * 70 and list(embedded.names)[-1] == 'example 69'
    expected = make_encode(pretrained.network, layer=-1)(pretrained.variables, jnp.asarray(images))
    np.testing.assert_allclose(embedded.features, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_written_is_said_before_anything_is_encoded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="embed.file is 'x.csv'"):
        output_paths('x.csv', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'pyarrow', None)         # as if it were not installed
    assert [os.path.basename(path) for path in output_paths('', str(tmp_path))] == ['features.npz']
    with pytest.raises(ValueError, match='needs pyarrow'):
        output_paths('x.parquet', str(tmp_path))


def test_features_that_are_not_finite_are_refused(pretrained, tmp_path):
    path = overflowing(pretrained, tmp_path)
    config = task_config('embed', path, file=str(tmp_path / 'out.npz'))
    config.data.update({'source': 'shapes:10', 'train_split': 'train'})
    with pytest.raises(FloatingPointError, match='not finite'):
        embed(config, str(tmp_path / 'out'))
    assert os.listdir(tmp_path) == [os.path.basename(path)]


def test_the_fingerprint_sees_one_bit():
    tree = {'a': np.zeros(3, np.float32), 'b': [np.ones((2, 2), np.float32)]}
    before = fingerprint(tree)
    assert fingerprint(jax.tree.map(np.copy, tree)) == before
    tree['b'][0][1, 1] = np.nextafter(np.float32(1), np.float32(2))
    assert fingerprint(tree) != before


def test_a_write_that_fails_leaves_the_old_file(files, tmp_path, monkeypatch):
    path = str(tmp_path / 'f.npz')
    embedded = read_features(files[0])
    write_features(path, embedded)

    def fail(file, **arrays):
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(np, 'savez', fail)
    with pytest.raises(OSError, match='No space'):
        write_features(path, embedded)
    assert os.listdir(tmp_path) == ['f.npz'] and len(read_features(path).names) == 6


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='task=embed'):
        read_features(str(tmp_path / 'none.npz'))
    np.savez(tmp_path / 'other.npz', images=np.zeros(3))
    (tmp_path / 'cut.npz').write_bytes(b'PK\3\4')
    np.save(tmp_path / 'alone.npy', np.zeros((2, 2), np.float32))
    for name in ('other.npz', 'cut.npz', 'alone.npy'):
        with pytest.raises(ValueError, match=f'{name} is not a complete file of features'):
            read_features(str(tmp_path / name))
