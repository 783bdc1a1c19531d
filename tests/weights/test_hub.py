"""Encoders on the Hugging Face Hub, against a stand-in of it; and the model card of an export."""

import re
import sys

import numpy as np
import pytest

huggingface_hub = pytest.importorskip('huggingface_hub', reason="pip install '.[hub]'")
pytest.importorskip('onnxruntime', reason="pip install '.[export]'")

import yaml  # noqa: E402

import simclr_jax
from simclr_jax.config import base_config
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.weights.card import Result, make_model_card, read_card
from simclr_jax.weights.write.export import export, export_encoder
from tests.weights.hub_server import TOKEN, running_hub
from tests.weights.random_weights import assert_same_arrays, random_imported

ENCODER = {'depth': 18, 'width': 1.0, 'stem': 'imagenet', 'dtype': 'float32'}
TINY = {'depth': 10, 'width': 0.0625, 'stem': 'cifar', 'dtype': 'float32'}
HEAD = {'mode': 'linear', 'out_dim': 8}
RECIPE = base_config()
RECIPE.method.name, RECIPE.data.source = 'byol', 'cifar10'
CARD = {'step': 3, 'network': 'online', 'recipe': RECIPE.to_dict(), 'evaluation': [
    {'encoder': name, 'knn_accuracy': value, 'knn_accuracy_interval': [value - 0.1, value + 0.1],
     'data': 'cifar10', 'split': 'test', 'network': 'online'} for name, value in
    (('random', 0.2), ('pretrained', 0.7))]}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        monkeypatch.setenv('HF_ENDPOINT', server.endpoint)
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        monkeypatch.setenv('HF_TOKEN_PATH', str(tmp_path / 'none'))
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        yield server


@pytest.fixture(scope='module')
def resnet(tmp_path_factory):
    """An export of a ResNet-18 of timm's own shape in three formats."""
    path = tmp_path_factory.mktemp('resnet') / 'it'
    export_encoder(str(path), random_imported(ENCODER, HEAD, image_size=32, card=CARD),
                   formats=('torch', 'flax', 'onnx'))
    return path


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A small one, to go to the Hub."""
    path = tmp_path_factory.mktemp('exported') / 'it'
    export_encoder(str(path), imported(), formats=('flax',))
    return path


def imported(**fields):
    return random_imported(TINY, HEAD, image_size=16, card=CARD, **fields)


def metadata_of(text):
    return yaml.safe_load(text.split('---\n')[1])


def push(source, place, repository, **settings):
    config = base_config()
    config.export.update({'pretrained': str(source), 'formats': ('flax',), 'push_to_hub': repository, **settings})
    return export(config, str(place))


def test_the_model_card_says_what_was_trained_and_measured(resnet):
    text = (resnet / 'README.md').read_text()
    metadata = metadata_of(text)
    assert {'library_name', 'tags', 'datasets', 'metrics', 'model-index'} <= metadata.keys()
    assert 'license' not in metadata and '--config.export.license' in text
    assert metadata['datasets'] == ['cifar10'] and {'byol', 'resnet', 'jax', 'pytorch', 'onnx'} <= set(metadata['tags'])
    (result,) = metadata['model-index'][0]['results']
    assert result['metrics'] == [{'type': 'accuracy', 'name': 'kNN top-1', 'value': 70.0}]
    assert '| cifar10, test | random | kNN top-1 | 20.0 (10.0-30.0) |' in text


def test_the_snippets_of_the_model_card_run_and_agree(resnet, monkeypatch):
    pytest.importorskip('timm', reason="pip install '.[export]'")
    import torch
    monkeypatch.chdir(resnet)
    monkeypatch.syspath_prepend(str(resnet))
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    normalised = (images - np.float32((0.1, 0.2, 0.3))) / np.float32((0.9, 0.8, 0.7))
    names = {'normalised': torch.tensor(normalised.transpose(0, 3, 1, 2))}
    found = []
    for code in re.findall(r'```python\n(.*?)```', (resnet / 'README.md').read_text(), flags=re.DOTALL):
        # load_encoder crops the centre first: it is given what it makes nothing of.
        names['images'] = images
        exec(code, names)
        found.append(np.asarray(names['features'].detach() if hasattr(names['features'], 'detach') else
                                names['features']))
    assert len(found) == 4          # simclr_jax, torch_model, timm, ONNX
    whole = simclr_jax.load_encoder(resnet)
    assert [features.shape for features in found] == [(2, whole.width)] * 4
    for features in found[2:]:
        np.testing.assert_allclose(features, found[1], rtol=0, atol=1e-4 * np.sqrt(np.mean(found[1] ** 2)))
    sys.modules.pop('torch_model')


@pytest.mark.parametrize('source, shown', [
    ('folder:/home/me/patients', 'private images'), ('arrays:secret.npz', 'private images'),
    ('wds:gs://b/{split}.tar', 'private images'), ('my.module:Source', 'private images'),
    ('hf:user/birds:small', 'user/birds'), ('imagenet2012_subset/1pct:5.0.0', 'imagenet2012_subset/1pct'),
    ('shapes:200', 'shapes')])
def test_a_path_is_not_in_the_model_card(exported, source, shown):
    card = read_card(exported)
    card['recipe']['data']['source'] = source
    text = make_model_card(card, [Result('pretrained', 'kNN top-1', 0.5, None, source, 'test')])
    assert f'on {shown}.' in text and f'| {shown}, test |' in text
    assert source == shown or source not in text
    assert metadata_of(text).get('datasets', []) == [shown] * (shown not in ('private images', 'shapes'))


def test_an_edited_model_card_stays(tmp_path, capsys):
    export_encoder(str(tmp_path), imported(), formats=('flax',), license='mit')
    path = tmp_path / 'README.md'
    assert metadata_of(path.read_text())['license'] == 'mit'
    export_encoder(str(tmp_path), imported(seed=1), formats=('flax',), license='cc0-1.0')
    assert metadata_of(path.read_text())['license'] == 'cc0-1.0'
    path.write_text('My own words')
    for _ in range(2):
        export_encoder(str(tmp_path), imported(), formats=('flax',))
        assert path.read_text() == 'My own words'
    assert 'was edited after its export and is kept' in capsys.readouterr().out


def test_to_the_hub_and_back(exported, hub, tmp_path):
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'mine.txt').write_text('not for others')
    push(exported, tmp_path, 'me/encoder')
    kept = hub.repositories['me/encoder']
    assert kept['private'] and set(kept['main']) == {
        '.gitattributes', 'README.md', 'card.json', 'encoder.flax.safetensors'}
    assert "load_encoder('hf:me/encoder')" in kept['main']['README.md'].decode()
    back = load_pretrained('hf:me/encoder')
    assert_same_arrays(back.variables, load_pretrained(exported).variables)
    assert simclr_jax.load_encoder('hf:me/encoder@main').width == 32

    kept['v1'] = dict(kept['main'])
    push(exported, tmp_path / 'b', 'me/encoder', formats=('torch',))
    assert set(kept['main']) == {'.gitattributes', 'README.md', 'card.json', 'encoder.safetensors',
                                 'head.safetensors', 'torch_model.py'}
    of_torch = load_pretrained('hf:me/encoder')
    assert_same_arrays(of_torch.variables, back.variables)          # the head too
    assert_same_arrays(load_pretrained('hf:me/encoder@v1').variables, back.variables)
    assert_same_arrays(load_pretrained('hf:me/encoder/encoder.flax.safetensors@v1').variables, back.variables)


def test_what_was_fetched_serves_where_the_network_is_away(exported, hub, tmp_path, monkeypatch):
    push(exported, tmp_path, 'me/encoder')
    load_pretrained('hf:me/encoder')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert load_pretrained('hf:me/encoder').source == load_pretrained(exported).source
    with pytest.raises(OSError, match='http://127.0.0.1:9 cannot be reached'):
        push(exported, tmp_path, 'me/encoder')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)       # or it tries for half a minute
    with pytest.raises(FileNotFoundError, match='http://127.0.0.1:9 cannot be reached, and what is asked of me/other '):
        load_pretrained('hf:me/other')


def test_what_is_not_on_the_hub_is_named(hub):
    hub.repositories['me/other'] = {'private': False, 'main': {'model.safetensors': b''}}
    for path, sentence in {
            'hf:me/none': 'There is no repository me/none at http://127.0.0.1:.*, or it is private',
            'hf:me/other@v2': "The repository me/other has no revision 'v2'",
            'hf:me/other': 'has no file encoder.flax.safetensors or encoder.safetensors: name a file of it',
            'hf:me/other/a.pth': 'The repository me/other has no file a.pth'}.items():
        with pytest.raises(FileNotFoundError, match=sentence):
            load_pretrained(path)
    with pytest.raises(ValueError, match="'hf:other' names no repository of the Hugging Face Hub: write hf:OWNER"):
        load_pretrained('hf:other')


def test_nothing_is_sent_or_written_where_a_push_cannot_work(exported, hub, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="export.push_to_hub is 'encoder': it takes OWNER/NAME"):
        push(exported, tmp_path / 'a', 'encoder')
    with monkeypatch.context() as patch:
        patch.delenv('HF_TOKEN')
        patch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'none'))
        with pytest.raises(ValueError, match='needs a token of the Hugging Face Hub: run `hf auth login`, or'):
            push(exported, tmp_path / 'a', 'me/encoder')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'huggingface_hub', None)
        with pytest.raises(ValueError, match="push_to_hub needs the package huggingface_hub: pip install 'simclr_jax"):
            push(exported, tmp_path / 'a', 'me/encoder')
        with pytest.raises(ValueError, match='Reading hf:me/encoder needs the package huggingface_hub'):
            load_pretrained('hf:me/encoder')
    assert hub.requests == [] and not (tmp_path / 'a').exists()
    monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
    with pytest.raises(OSError, match='http://127.0.0.1:.* refuses a request for me/encoder: .*403'):
        push(exported, tmp_path / 'a', 'me/encoder')
    assert hub.repositories == {} and read_card(tmp_path / 'a' / 'export')


def test_an_export_asks_nothing_of_the_hub(hub, exported, tmp_path):
    push(exported, tmp_path, '')
    assert hub.requests == []
