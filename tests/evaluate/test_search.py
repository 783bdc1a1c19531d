"""The nearest images to a query: right ones, from the encoder that made the features, on a safe page."""

import copy
import csv

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.embed import check_same_encoder, embed, read_features, write_features
from simclr_jax.evaluate.pretrained import as_imported, load_pretrained
from simclr_jax.evaluate.search import search
from simclr_jax.weights.tensors import write_flax
from tests.evaluate.runs import task_config

pytestmark = pytest.mark.usefixtures('one_device')

HOSTILE = 'a<img src=x onerror=alert(1)>&"\'.png'


@pytest.fixture(scope='module')
def place(workdir, tmp_path_factory):
    """A directory with the features of 20 shapes, two of them as files, and one file with a hostile name."""
    directory = tmp_path_factory.mktemp('search')
    images, _ = make_shapes('test', 16, num_examples=20)
    for number, name in ((3, '3.png'), (7, '7.png'), (3, HOSTILE)):
        Image.fromarray(images[number]).save(directory / name)
    config = task_config('embed', workdir, file='features.npz')
    config.data.update({'source': 'shapes', 'train_split': 'test[:20]'})
    embed(config, str(directory))
    return directory


def search_config(*queries, **settings):
    config = task_config('search', '')
    config.search.update({'query': queries, 'k': 4, **settings})
    return config


def test_an_image_finds_itself_and_then_the_nearest_by_cosine(place, capsys):
    rows = search(search_config(str(place / '3.png'), str(place / '7.png')), str(place))
    bank = read_features(str(place / 'features.npz'))
    unit = (bank.features / np.linalg.norm(bank.features, axis=1, keepdims=True)).astype(np.float64)
    for query, found in ((3, rows[:4]), (7, rows[4:])):
        cosines = unit @ unit[query]
        np.testing.assert_allclose([row['cosine'] for row in found], np.sort(cosines)[::-1][:4], atol=1e-5)
        np.testing.assert_allclose(cosines[[row['index'] for row in found]],
                                   [row['cosine'] for row in found], atol=1e-5)
        assert found[0]['index'] == query and found[0]['cosine'] == pytest.approx(1, abs=1e-5)
    assert rows[0]['label'] == 'star' and rows[0]['name'] == 'example 3'
    told = capsys.readouterr().out
    assert 'Nearest of 20 images of shapes, test[:20]' in told and 'example 3' in told
    written = list(csv.DictReader((place / 'search.csv').open()))
    assert [row['index'] for row in written] == [str(row['index']) for row in rows]


def test_the_sheet_holds_its_images_and_escapes_names(place):
    search(search_config(str(place / HOSTILE)), str(place))
    text = (place / 'search.html').read_text()
    assert text.count('src="data:image/') == 1 + 4 and text.count('<img') == 1 + 4
    assert 'a&lt;img src=x onerror=alert(1)&gt;&amp;&#34;&#39;.png' in text
    assert Image.open(place / 'search.png').size[0] == 224 * 5


def test_a_set_that_is_gone_leaves_the_table_and_says_so(place, tmp_path):
    bank = read_features(str(place / 'features.npz'))
    metadata = copy.deepcopy(bank.metadata)
    metadata['data']['source'] = f'folder:{tmp_path}/gone'
    write_features(str(tmp_path / 'features.npz'), bank._replace(metadata=metadata))
    rows = search(search_config(str(place / '3.png')), str(tmp_path))
    text = (tmp_path / 'search.html').read_text()
    assert len(rows) == 4 and 'could not be read' in text and text.count('<img') == 1


def test_features_of_another_encoder_or_preprocessing_are_refused(place, workdir):
    pretrained, path = load_pretrained(workdir), str(place / 'features.npz')
    metadata = read_features(path).metadata
    check_same_encoder(path, metadata, pretrained)
    for part, change in (('preprocessing', {'image_size': 32}), ('preprocessing', {'crop_proportion': 0.875}),
                         ('preprocessing', {'mean': [0.0, 0.0, 0.0]}), ('encoder', {'weights': 'others'})):
        with pytest.raises(ValueError, match=f'made with another {part} .*cannot be compared'):
            check_same_encoder(path, metadata | {part: metadata[part] | change}, pretrained)
    own = copy.deepcopy(pretrained.config)
    own.encoder.max_pool = 'same'           # the same weights, another function
    with pytest.raises(ValueError, match='another encoder'):
        check_same_encoder(path, metadata, pretrained._replace(config=own))


def test_a_search_by_another_encoder_is_refused(place, workdir, tmp_path):
    pretrained = load_pretrained(workdir)
    write_flax(tmp_path / 'start.safetensors', as_imported(pretrained, variables=pretrained.initial))
    with pytest.raises(ValueError, match='made with another encoder'):
        search(search_config(str(place / '3.png'), pretrained=str(tmp_path / 'start.safetensors'),
                             features=str(place / 'features.npz')), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['start.safetensors']


@pytest.mark.parametrize('queries, message', [
    ((), 'names no image'), (('gone.png',), 'there is no such file'),
    (('features.npz',), 'not a readable image')])
def test_queries_that_will_not_do_are_named(place, queries, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        search(search_config(*(str(place / query) for query in queries)), str(place))
