"""Hugging Face data sets and WebDataset's shards: the images and labels put in, in an order that resumes."""

import io
import itertools
import json
import socket
import tarfile

import numpy as np
import pytest

from simclr_jax import storage
from simclr_jax.data import pipeline
from simclr_jax.data.loading import available_splits, in_memory, load_pair, load_source
from tests.data.streams import VIEW, assert_equal_batches, encoded

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3), np.uint8)


def tar(files):
    """The bytes of a tar file of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as shard:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shards(root, split='train', rows=range(12), label='cls'):
    """Three shards of a split, as WebDataset's writer names and fills them."""
    rows = list(rows)
    for number in range(3):
        files = {}
        for row in rows[number::3]:
            files[f'./{row:05}.png'] = encoded(IMAGES[row])
            files[f'./{row:05}.{label}'] = str(row % 2).encode() if label == 'cls' else json.dumps(
                {'label': 'ab'[row % 2]}).encode()
        files[f'./{number}x.txt'] = b'no image'
        storage.write_atomically(f'{root}/{split}-{number:03}.tar', tar(files))


def assert_holds(source, rows, classes=('0', '1')):
    images = in_memory(source).images
    found = {int(image.astype(int).sum()): label for image, label in zip(images, source.labels)}
    assert found == {int(IMAGES[row].astype(int).sum()): row % 2 for row in rows}
    assert len(source) == len(rows) and source.class_names == classes


@pytest.mark.parametrize('pattern', ['train-{000..002}.tar', 'train-*.tar', '{split}-{000..002}.tar'])
def test_tar_shards_hold_their_images_and_labels(tmp_path, pattern):
    shards(tmp_path)
    source = load_source(f'wds:{tmp_path}/{pattern}', 'train')
    assert_holds(source, range(12))
    assert source.name_of(1) == './00003'
    assert '3 examples without an image are left out' in source.notes[-1]


def test_shards_with_json_and_their_splits_on_an_object_store(tmp_path):
    root = f'memory://{tmp_path}'
    shards(root, label='json')
    shards(root, 'test', range(4), label='json')
    name = f'wds:{root}/{{split}}-{{000..002}}.tar'
    assert available_splits(name) == ('train', 'test')
    train, test = load_pair(name, 'train', '')
    assert_holds(train, range(12), ('a', 'b'))
    assert_holds(test, range(4), ('a', 'b'))
    storage.remove(root)


def test_shards_resume_where_they_stopped(tmp_path):
    shards(tmp_path)
    source = load_source(f'wds:{tmp_path}/train-*.tar', 'train')
    options = {'seed': 1, 'batch_size': 5, 'form': 'crops', 'image_size': 4, 'view1': VIEW, 'view2': VIEW}
    whole = list(itertools.islice(pipeline.train_batches(source, **options), 6))
    rest = list(itertools.islice(pipeline.train_batches(source, start_step=3, **options), 3))
    assert_equal_batches(whole[3:], rest)
    assert sorted(np.concatenate([batch['index'] for batch in whole])[:12]) == list(range(12))


def test_second_images_of_an_example_are_counted(tmp_path):
    names = ('1.png', '1.mask.png', '2.png')
    (tmp_path / 'a.tar').write_bytes(tar({name: encoded(image) for name, image in zip(names, IMAGES)}))
    source = load_source(f'wds:{tmp_path}/a.tar', 'train')
    assert source.num_examples == 2
    assert source.notes[-1].endswith('1 images that are not the first of their example are left out.')


def test_shards_that_will_not_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard 'wds:.*x-.*' of the split 'train'"):
        load_source(f'wds:{tmp_path}/x-{{0..3}}.tar', 'train')
    (tmp_path / 'a.tar').write_bytes(b'no tar file' * 100)
    with pytest.raises(ValueError, match="The shard '.*a.tar' cannot be read .*complete and uncompressed"):
        load_source(f'wds:{tmp_path}/a.tar', 'train')
    (tmp_path / 'b.tar').write_bytes(tar({'1.txt': b'words'}))
    with pytest.raises(ValueError, match='hold no images'):
        load_source(f'wds:{tmp_path}/b.tar', 'train')


def hub_files(path, datasets):
    """Parquet files of two splits, named as the hub names them."""
    features = datasets.Features({'img': datasets.Image(), 'kind': datasets.ClassLabel(names=['x', 'y'])})
    for split, rows in (('train', range(8)), ('test', range(8, 12))):
        datasets.Dataset.from_dict(
            {'img': [{'bytes': encoded(IMAGES[row]), 'path': None} for row in rows],
             'kind': [row % 2 for row in rows]}, features=features
        ).to_parquet(str(path / f'{split}-00000-of-00001.parquet'))


def test_parquet_files_and_folders_of_them(tmp_path):
    datasets = pytest.importorskip('datasets')
    (tmp_path / 'data').mkdir()
    hub_files(tmp_path / 'data', datasets)
    options = {'data_dir': str(tmp_path / 'cache')}
    train, test = load_pair(f'hf:{tmp_path}', 'train', '', **options)
    assert_holds(train, range(8), ('x', 'y'))
    assert_holds(test, range(8, 12), ('x', 'y'))
    files = load_source(f'hf:{tmp_path}/data/test-*.parquet', 'train', **options)
    assert_holds(files, range(8, 12), ('x', 'y'))
    with pytest.raises(ValueError, match="has no split 'val'; it has train, test"):
        load_source(f'hf:{tmp_path}', 'val', **options)


def test_nothing_is_fetched_from_the_hub_unless_asked_for(tmp_path, monkeypatch):
    pytest.importorskip('datasets')
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: pytest.fail('a network was asked'))
    with pytest.raises(FileNotFoundError, match="'hf:nobody/nothing' cannot be loaded .*data.download=true"):
        load_source('hf:nobody/nothing', 'train', data_dir=str(tmp_path))
