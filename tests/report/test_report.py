"""The page of a run: every part or a sentence in its place, nothing from outside, nothing left unescaped."""

import html.parser
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import ConfigDict, base_config, smoke
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.pretrained import Pretrained
from simclr_jax.models.network import make_network
from simclr_jax.report import charts
from simclr_jax.report import encoder_sections, report as report_module
from simclr_jax.report.report import report
from simclr_jax.report.workdir import evaluation_rows

SIZE = 16
HOSTILE = '<script>alert(1)</script><img src="http://example.com/x.png">'


def small_config():
    config = smoke(base_config())
    config.encoder.width = 0.0625
    config.augment.image_size = SIZE
    for name in ('jitter', 'grey', 'blur'):         # seconds of compilation
        config.augment[name].probability = 0.0
    config.augment.view2 = {'solarize': {'probability': 0.5}}
    config.data.update({'source': 'shapes', 'train_split': 'train[:60]', 'test_split': 'test[:30]'})
    return config


def write_run(workdir, config):
    """The files of a run of 20 steps, without a checkpoint."""
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
    rows = [{'step': step, 'time': 1.7e9 + step, 'loss': 5 - step / 10, 'learning_rate': 0.1,
             'contrastive_accuracy': 0.5, 'feature_rank': 4.0, 'feature_spread': 0.5,
             'alignment': None if step == 10 else 0.5,
             'gradient_norm': 2.0, 'trust_ratio/encoder/kernel': 0.01, 'trust_ratio/head/kernel': 0.02}
            for step in (10, 20)] + [{'step': 20, 'time': 1.7e9 + 21, 'knn_accuracy': 0.4, 'knn_floor': 0.1}]
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows) + '{"step": 30, ')
    results = [{'encoder': encoder, 'knn_accuracy': value, 'linear_accuracy': value, 'evaluation': 'frozen',
                'knn_accuracy_interval': [value - 0.05, value + 0.05], 'step': 20, 'data': 'shapes',
                'split': 'test', 'num_test': 1234}
               for encoder, value in (('random', 0.1), ('pretrained', 0.444))]
    (workdir / 'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in results))
    (workdir / 'versions.json').write_text(json.dumps(
        {'simclr_jax': '0.1', 'python': '3.11', 'packages': {'jax': '0.10.2'}, 'devices': 8,
         'device_kind': 'TPU v4', 'backend': 'tpu', 'processes': 2, 'platform': 'Linux'}))
    (workdir / 'log.txt').write_text(f'2026-01-01 00:00:00  Collapse at step 7: {HOSTILE}\n')


@pytest.fixture(scope='module')
def encoder():
    """An encoder as `load_pretrained` gives it, not trained."""
    config = small_config()
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(),
                           mean=config.augment.mean, std=config.augment.std)
    variables = jax.device_get(network.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32),
                                            train=False))
    return Pretrained(config, network, variables, variables, 20, 'online', f'simclr, step 20 {HOSTILE}', {})


def make_report(workdir, config, encoder, monkeypatch, **settings):
    """The page of `workdir`, with `encoder` in the place of a checkpoint, asked for by another recipe."""
    monkeypatch.setattr(charts, '_DPI', 40)     # small files, soon written
    own = encoder._replace(config=config)
    for module in (report_module, encoder_sections):
        monkeypatch.setattr(module, 'load_pretrained', lambda *_, **__: own)
    asked = small_config()
    asked.report.update({'max_images': 40, 'num_queries': 3, **settings})
    return Page(report(asked, str(workdir)))


class Page(html.parser.HTMLParser):
    """The text of a page, and whatever it could load."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.loads, self.links, self.without_alt = '', [], [], [], 0
        with open(path) as file:
            self.source = file.read()
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.loads += [attributes[name] for name in ('src', 'srcset', 'data', 'action') if name in attributes]
        self.links += [attributes['href']] if 'href' in attributes else []
        self.without_alt += tag == 'img' and not attributes.get('alt')

    def handle_data(self, text):
        self.text += text


@pytest.fixture(scope='module')
def full(tmp_path_factory, encoder):
    """(page, workdir) of a run that has everything."""
    workdir = tmp_path_factory.mktemp('runs') / 'run'
    config = small_config()
    config.optimizer.learning_rate = 0.125
    config.method.name = f'simclr{HOSTILE}'
    write_run(workdir, config)
    with pytest.MonkeyPatch.context() as patch:
        return make_report(workdir, config, encoder, patch), workdir


def test_every_part_is_there(full):
    page, workdir = full
    headings = re.findall('<h2>(.*?)</h2>', page.source)
    assert headings == ['The run', 'Curves', 'Evaluation', 'Augmentations', 'Nearest neighbours',
                        'Map of the features', 'Similarities of views', 'Confusion', 'Configuration',
                        'Notes of the run']
    assert '8 x TPU v4' in page.text and '20 steps of 64 images' in page.text
    assert 'Collapse at step 7' in page.text
    assert '44.4' in page.text and '39.4 to 49.4' in page.text and '1,234' in page.text
    assert 'Some of these results were written without an interval.' in page.text
    assert 'crop 1' in page.text and 'solarize 0 / 0.5' in page.text
    assert 'Off in this run: rotate, jitter, grey, sobel, noise, blur, cutout.' in page.text
    assert '40 of 60, chosen at random (seed 0)' in page.text and 'all 30 images' in page.text
    assert ('\N{CHECK MARK} right' in page.text) or ('\N{MULTIPLICATION X} wrong' in page.text)
    assert 'component 1 (' in page.source or 'map_pca.png' in page.source


def test_every_figure_has_a_file_and_its_numbers(full):
    page, workdir = full
    files = {path.name for path in (workdir / 'report').iterdir()}
    figures = {'augmentations', 'confusion', 'curve_alignment', 'curve_contrastive_accuracy',
               'curve_feature_rank', 'curve_feature_spread', 'curve_gradient_norm', 'curve_knn_accuracy',
               'curve_learning_rate', 'curve_loss', 'curve_trust_ratios', 'map_pca', 'map_tsne',
               'map_tsne_images', 'neighbours', 'similarities_features', 'similarities_projections'}
    assert files == {f'{name}.{kind}' for name in figures for kind in ('png', 'csv')} | {'evaluation.csv'}
    assert all((workdir / link).exists() for link in page.links if link.startswith('report/'))
    assert len([link for link in page.links if link.startswith('report/')]) == 2 * len(figures) + 1
    trust = (workdir / 'report' / 'curve_trust_ratios.csv').read_text()
    assert trust.splitlines()[1:3] == ['encoder/kernel,10,0.01', 'encoder/kernel,20,0.01']


def test_nothing_comes_from_outside_and_nothing_runs(full):
    page, _ = full
    assert page.loads and all(load.startswith('data:image/') for load in page.loads)
    assert all(re.match('report/|#|data:,', link) for link in page.links)
    assert not {'script', 'iframe', 'object', 'embed', 'form'} & set(page.tags)
    assert "default-src 'none'; img-src data:" in page.source and 'url(' not in page.source
    assert '@import' not in page.source


def test_names_are_escaped_and_pictures_described(full):
    page, _ = full
    assert HOSTILE in page.text and HOSTILE not in page.source
    assert page.without_alt == 0


def test_deviations_are_from_the_recipe_asked_for_and_from_the_defaults(full):
    page, _ = full
    recipe, defaults = page.source.split('Deviations from the defaults')[0:2]
    recipe = recipe.split('Deviations from the recipe')[1]
    assert 'optimizer.learning_rate</td><td class="short">0.125</td><td class="short">0.3<' in recipe
    assert 'encoder.depth' not in recipe and 'report.max_images' not in recipe
    assert 'encoder.depth</td><td class="short">10</td><td class="short">50<' in defaults


def test_a_directory_with_a_config_alone_is_a_page_of_sentences(tmp_path):
    config = small_config()
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    page = Page(report(config, str(tmp_path)))
    for sentence in ('No metrics.jsonl', 'No versions.json', 'No curves: no metrics', 'No results.jsonl',
                     'no checkpoint in', 'every field is as in the recipe'):
        assert sentence in page.text
    assert not page.loads and 'Notes of the run' not in page.text


def test_unlabelled_images_without_a_test_split(tmp_path, encoder, monkeypatch):
    """A folder of several sizes and a broken file: neighbours within it, nothing marked, no confusion."""
    images, _ = make_shapes('train', 20, num_examples=9)
    (tmp_path / 'images').mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).resize((20 + number, 20)).save(tmp_path / 'images' / f'{number}.png')
    (tmp_path / 'images' / '5 broken.png').write_bytes(b'no image')
    config = small_config()
    config.data.update({'source': f'folder:{tmp_path}/images', 'train_split': 'train', 'test_split': '',
                        'max_bad_share': 0.5})
    workdir = tmp_path / 'run'
    write_run(workdir, config)
    page = make_report(workdir, config, encoder, monkeypatch, tsne=False)
    assert 'No confusion matrix: the images have no labels.' in page.text
    assert 'There are no labels, so that none is marked' in page.text and 'itself left out' in page.text
    assert ' right' not in re.findall('<div class="cell[^"]*', page.source)
    assert 'no labels to colour them by' in page.text and 't-SNE' not in page.text


def test_an_encoder_and_a_source_that_are_not_ours_have_every_part(tmp_path, encoder, monkeypatch):
    config = small_config()
    config.encoder.update({'name': 'tests.encoders:CNN', 'arguments': ConfigDict({'width': 12})})
    config.data.update({'source': 'examples.source:Stripes', 'arguments': ConfigDict({'count': 30}),
                        'train_split': 'train', 'test_split': 'test'})
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(),
                           mean=config.augment.mean, std=config.augment.std)
    variables = jax.device_get(network.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32),
                                            train=False))
    write_run(tmp_path / 'run', config)
    theirs = encoder._replace(network=network, variables=variables, initial=variables)
    page = make_report(tmp_path / 'run', config, theirs, monkeypatch, tsne=False)
    assert 'tests.encoders:CNN(width=12)' in page.text and 'all 30 images' in page.text
    assert 'horizontal' in page.text and 'The vote of the ' in page.text
    for heading in ('Augmentations', 'Nearest neighbours', 'Map of the features', 'Similarities of views'):
        assert f'<h2>{heading}</h2>' in page.source
    assert not re.search('<p class="missing">No (?!floor)', page.source)


def test_data_that_are_gone_are_said(tmp_path, encoder, monkeypatch):
    config = small_config()
    config.data.source = f'folder:{tmp_path}/gone'
    write_run(tmp_path / 'run', config)
    page = make_report(tmp_path / 'run', config, encoder, monkeypatch)
    assert 'No augmentations, neighbours, map' in page.text and 'There is no directory' in page.text
    assert 'curve_loss.png' in page.source


def test_what_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='is it a workdir'):
        report(small_config(), str(tmp_path))
    (tmp_path / 'config.json').write_text('{"seed": ')
    with pytest.raises(ValueError, match='config.json is damaged'):
        report(small_config(), str(tmp_path))
    asked = small_config()
    asked.report.max_images = 1
    with pytest.raises(ValueError, match='report.max_images is 1'):
        report(asked, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_the_last_of_several_measurements_counts():
    line = {'evaluation': 'knn', 'encoder': 'pretrained', 'data': 'shapes', 'split': 'test', 'step': 5}
    rows = evaluation_rows([
        line | {'knn_accuracy_k20': 0.1},
        line | {'knn_accuracy_k20': 0.2, 'knn_accuracy_k20_interval': [0.1, 0.3]},
        line | {'knn_accuracy_k20': 0.3, 'num_train': 600},
        line | {'knn_accuracy_k20': 0.4, 'protocol': {'layer': 1}},
        line | {'linear_accuracy': 0.5, 'protocol': {'solver': 'sgd'}},
        line | {'linear_accuracy': 0.6, 'solver': 'lbfgs', 'protocol': {'solver': 'sgd'}}])
    assert [(row['measure'], row['encoder'], row['value'], row['interval']) for row in rows] == [
        ('kNN top-1, k = 20', 'pretrained', 0.2, [0.1, 0.3]), ('kNN top-1, k = 20', 'pretrained', 0.3, None),
        ('kNN top-1, k = 20', 'pretrained, layer 1', 0.4, None),
        ('linear top-1', 'pretrained', 0.5, None), ('linear top-1', 'pretrained, by lbfgs', 0.6, None)]


def test_a_file_of_weights_has_a_page_on_the_data_that_it_is_asked_for(tmp_path, encoder, monkeypatch):
    own = small_config()
    own.data.update({'source': '', 'train_split': 'train', 'test_split': ''})       # a file names no data
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'results.jsonl').write_text(json.dumps(
        {'encoder': 'pretrained', 'knn_accuracy_k20': 0.512, 'evaluation': 'knn', 'data': 'shapes'}) + '\n')
    page = make_report(tmp_path / 'out', own, encoder, monkeypatch, pretrained=str(tmp_path / 'mine.pth'),
                       tsne=False)
    said = page.text
    assert 'on shapes' in said and str(tmp_path / 'mine.pth') in said and 'holds no curves' in said
    assert '51.2' in said and 'kNN top-1, k = 20' in said
    for part in ('Augmentations', 'Nearest neighbours', 'Map of the features', 'Confusion'):
        assert part in said
    assert 'Deviations from the recipe' not in said and '<script' not in page.source
