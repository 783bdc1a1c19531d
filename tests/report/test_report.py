"""The page of a run: every part or a sentence in its place, nothing from outside, nothing left unescaped."""

import base64
import html.parser
import io
import json
import re
import shutil

import pytest
from PIL import Image

from simclr_jax.config import ConfigDict, load_recipe
from simclr_jax.data import loading
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.evaluated import load_evaluated, load_splits
from simclr_jax.evaluate.health import CollapseWatch
from simclr_jax.evaluate.pretrained import as_imported, load_pretrained
from simclr_jax.report import page, run_sections
from simclr_jax.report.report import report
from simclr_jax.report.run_sections import configuration
from simclr_jax.report.workdir import evaluation_rows
from simclr_jax.weights.tensors import write_flax
from tests.evaluate import runs

pytestmark = pytest.mark.usefixtures('one_device')
HOSTILE = '<script>alert(1)</script><img src="http://example.com/x.png">'


def small_config():
    config = runs.small_config()
    config.augment.view2 = {'solarize': {'probability': 0.5}}
    config.data.update({'train_split': 'train[:60]', 'test_split': 'test[:30]'})
    return config


def write_run(workdir, config, run):
    """The files of a run of 20 steps, with the checkpoint of another."""
    shutil.copytree(f'{run}/checkpoints', workdir / 'checkpoints')
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


def make_report(workdir, data=None, **settings):
    """The page of `workdir`, asked for by another recipe."""
    asked = small_config()
    asked.data.update(data or {})
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
def full(tmp_path_factory, workdir):
    """(page, directory) of a run that has everything."""
    directory = tmp_path_factory.mktemp('runs') / 'run'
    config = small_config()
    config.optimizer.learning_rate = 0.125
    config.method.name = f'simclr{HOSTILE}'
    write_run(directory, config, workdir)
    return make_report(directory), directory


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
    assert '40 of 60 images, chosen at random with seed 0' in page.text and 'all 30 images' in page.text
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
    assert 'optimizer.learning_rate</td><td class="short">0.125</td><td class="short">0.1<' in recipe
    assert 'encoder.depth' not in recipe and 'report.max_images' not in recipe
    assert 'encoder.depth</td><td class="short">10</td><td class="short">50<' in defaults


def test_a_directory_with_a_config_alone_is_a_page_of_sentences(tmp_path, capsys):
    config = small_config()
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    page = Page(report(config, str(tmp_path)))
    for sentence in ('No metrics.jsonl', 'No versions.json', 'No curves: no metrics', 'No results.jsonl',
                     'no checkpoint in', 'every field is as in the recipe'):
        assert sentence in page.text
    assert not page.loads and 'Notes of the run' not in page.text
    (tmp_path / 'metrics.jsonl').write_text('')
    capsys.readouterr()
    assert 'metrics.jsonl has no rows' in Page(report(config, str(tmp_path))).text
    assert re.fullmatch(r'\d+ kB -> .*report.html\n', capsys.readouterr().out)       # and of no figures beside it


def test_a_recipe_is_compared_with_the_argument_that_the_run_had():
    """Plain --config=smoke beside a run of --config=smoke:method=byol,smoke: nothing of it is a deviation."""
    run, given = (load_recipe(name) for name in ('smoke:method=byol,smoke', 'smoke'))
    run.recipe, given.recipe, run.batch_size = 'smoke:method=byol,smoke', 'smoke', 32
    found = configuration(run.to_dict(), given)['differences']
    assert [row[0] for row in found[0][2]] == ['batch_size']
    given.recipe = 'smoke:no_colour'            # another one that was asked for
    assert len(configuration(run.to_dict(), given)['differences'][0][2]) > 5


def test_unlabelled_images_without_a_test_split(tmp_path, workdir):
    """A folder of several sizes and a broken file: neighbours within it, nothing marked, no confusion."""
    images, _ = make_shapes('train', 20, num_examples=9)
    (tmp_path / 'images').mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).resize((20 + number, 20)).save(tmp_path / 'images' / f'{number}.png')
    (tmp_path / 'images' / '5 broken.png').write_bytes(b'no image')
    config = small_config()
    config.data.update({'source': f'folder:{tmp_path}/images', 'train_split': 'train', 'test_split': '',
                        'max_bad_share': 0.5})
    write_run(tmp_path / 'run', config, workdir)
    page = make_report(tmp_path / 'run', tsne=False)
    assert 'No confusion matrix: the images have no labels.' in page.text
    assert 'There are no labels, so that none is marked' in page.text and 'itself left out' in page.text
    assert ' right' not in re.findall('<div class="cell[^"]*', page.source)
    assert 'no labels to colour them by' in page.text and 't-SNE' not in page.text


def test_data_that_are_gone_are_named(tmp_path, workdir):
    config = small_config()
    config.data.source = f'folder:{tmp_path}/gone'
    write_run(tmp_path / 'run', config, workdir)
    page = make_report(tmp_path / 'run')
    assert 'No augmentations, neighbours, map' in page.text and 'there is no directory' in page.text
    assert 'curve_loss.png' in page.source


def test_what_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no (config.json in|directory) '):
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
        ('kNN (k = 20) top-1', 'pretrained', 0.2, [0.1, 0.3]),
        ('kNN (k = 20) top-1', 'pretrained', 0.3, None),
        ('kNN (k = 20) top-1', 'pretrained, layer 1', 0.4, None),
        ('linear top-1', 'pretrained', 0.5, None), ('linear top-1', 'pretrained, by lbfgs', 0.6, None)]


def test_a_file_of_weights_has_a_page_on_the_data_that_it_is_asked_for(tmp_path, workdir):
    """The images are of a source that is not ours."""
    path = tmp_path / 'mine.safetensors'
    write_flax(path, as_imported(load_pretrained(workdir)))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'results.jsonl').write_text(json.dumps(
        {'encoder': 'pretrained', 'knn_accuracy_k20': 0.512, 'evaluation': 'knn', 'data': 'stripes'}) + '\n')
    stripes = {'source': 'examples.source:Stripes', 'arguments': ConfigDict({'count': 30}),
               'train_split': 'train', 'test_split': 'test'}
    page = make_report(tmp_path / 'out', stripes, pretrained=str(path), tsne=False)
    assert 'on examples.source:Stripes' in page.text and str(path) in page.text
    assert 'holds no curves' in page.text and 'all 30 images' in page.text and 'horizontal' in page.text
    assert '51.2' in page.text and 'kNN (k = 20) top-1' in page.text
    for part in ('Augmentations', 'Nearest neighbours', 'Map of the features', 'Similarities', 'Confusion'):
        assert f'<h2>{part}' in page.source
    assert 'Deviations from the recipe' not in page.text and '<script' not in page.source


def test_a_collapse_and_its_end_stand_beside_the_curves(tmp_path):
    watch = CollapseWatch()
    sentences = [watch(step, {'feature_rank': rank}) for step, rank in ((1, 1.0), (2, 9.0))]
    notes = '\n'.join(f'2026-01-01 00:00:00  {text}' for text in [*sentences, 'Something else.'])
    curves = run_sections.curves(page.Figures(str(tmp_path)), [{'step': 1, 'loss': 1.0}], notes)
    assert curves['warnings'] == sentences


def test_a_run_with_a_cache_is_shown_and_evaluated_by_the_pixels_of_that_cache(tmp_path, workdir):
    """Originals are not decoded again. Without the cache none is built, and pictures are small all the same."""
    for number in range(24):
        path = tmp_path / f'images/{"ab"[number % 2]}/{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((600, 400 + number), 50).save(path)
    config = small_config()
    config.data.update({'source': f'folder:{tmp_path}/images', 'train_split': 'train', 'test_split': '25%',
                        'cache': 'resized:16', 'cache_dir': f'{tmp_path}/cache'})
    (tmp_path / 'run').mkdir()
    write_run(tmp_path / 'run', config, workdir)

    def sides():
        page = make_report(tmp_path / 'run', {'source': ''}, tsne=False)
        files = [base64.b64decode(uri.partition(',')[2]) for uri in re.findall(
            r'<div class="cell[^>]*>\s*<img src="([^"]+)"', page.source)]
        return {max(Image.open(io.BytesIO(file)).size) for file in files}

    def evaluated(**data):
        asked = runs.task_config('knn', str(tmp_path / 'run'))
        asked.data.update(data)
        return load_splits(asked, load_evaluated(asked.knn, '', 'knn'), 'kNN')

    assert max(sides()) == 96 and not (tmp_path / 'cache').exists()
    assert all(isinstance(split.load(0), bytes) for split in evaluated())
    loading.load_source(config.data.source, 'train', cache='resized:16', cache_dir=f'{tmp_path}/cache')
    assert max(sides()) <= 24
    assert all(min(split.load(0).shape[:2]) == 16 for split in evaluated())
    assert all(isinstance(split.load(0), bytes) for split in evaluated(train_split='train[:80%]'))
