"""Studies: their grids, going on after a kill, and what they show beside the paper."""

import csv
import functools
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from simclr_jax.config import base_config, flatten
from simclr_jax.runtime import sharding
from simclr_jax.studies import study as studying
from simclr_jax.studies.grid import Cell, Grid, cell_config
from simclr_jax.studies.render import render
from simclr_jax.train import build, make_inputs

FILES = {path.stem: path for path in sorted((pathlib.Path(__file__).parents[2] / 'configs' / 'studies')
                                            .glob('*.py')) if path.stem != 'common'}


@functools.cache
def load(name, argument=''):
    return runpy.run_path(str(FILES[name]))['get_config'](argument)


# --- grids


@pytest.mark.parametrize('scale', ['paper', 'cifar', 'tiny', 'tiny,smoke'])
@pytest.mark.parametrize('name', FILES)
def test_every_cell_of_a_study_is_a_run_of_its_own(name, scale):
    config = load(name, f'scale={scale}')
    fields = [flatten(cell_config(config, cell)) for cell in config.study.grid.cells]
    assert len({tuple(map(str, one.values())) for one in fields}) == len(fields)
    assert all(one['task'] == 'pretrain' and one['eval.linear_at_end'] for one in fields)
    assert len(str(config.study.grid)) < 100                   # it is printed when a run starts
    assert all(config.study.grid.choose([cell.name]) == [cell] and not set(cell.name) & set(' ,/')
               for cell in config.study.grid.cells)
    json.dumps([cell_config(config, cell).to_dict() for cell in config.study.grid.cells])


@pytest.mark.parametrize('name', FILES)
def test_a_cell_makes_a_training_step(name):
    config = load(name, 'scale=tiny,smoke')
    one, mesh = cell_config(config, config.study.grid.cells[-1]), sharding.make_mesh()
    inputs = make_inputs(one, form='crops')
    _, init_state, train_step, _ = build(one, mesh, num_examples=64, num_classes=10, num_steps=4,
                                         inputs=inputs)
    state = jax.eval_shape(init_state)
    batch = inputs.abstract_batch(mesh)
    new_state, metrics = jax.eval_shape(train_step, state, batch)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state)
    assert ('mined_share' in metrics) == (name == 'losses')


def test_the_matrix_changes_one_branch_by_two_operations_in_their_order():
    grid = load('augmentations', 'scale=cifar').study.grid
    cells = {cell.place: cell for cell in grid.cells}
    assert len(cells) == 49
    assert (cells['crop', 'colour'].paper, cells['colour', 'crop'].paper) == (56.3, 55.8)
    sequences = {place: cell.overrides['augment.sequence'] for place, cell in cells.items()}
    assert sequences['colour', 'crop'] == ('jitter', 'grey', 'crop', 'flip')
    assert sequences['crop', 'colour'] == ('crop', 'flip', 'jitter', 'grey')
    assert sequences['blur', 'blur'] == ('blur',) and cells['blur', 'blur'].name == 'blur'
    shared = cell_config(load('augmentations', 'scale=cifar'), cells['crop', 'colour']).augment
    assert {shared[name].probability for name in ('crop', 'flip', 'jitter', 'grey', 'blur')} == {0.0}


def test_scalings_meet_at_the_batch_of_the_recipe():
    grid = load('batch_size', 'scale=paper').study.grid
    rates = {cell.place[:2]: cell.overrides['optimizer.learning_rate'] for cell in grid.cells}
    assert rates['linear', 'B 4096'] == pytest.approx(4.8) and ('sqrt', 'B 4096') not in rates  # the same
    assert rates['linear', 'B 256'] == pytest.approx(0.3) and rates['sqrt', 'B 256'] == pytest.approx(1.2)
    assert {cell.place: cell.paper for cell in grid.cells}['linear', 'B 256', '800'] == 66.6


@pytest.mark.parametrize('overrides, sentence', [
    ({'encoder.dept': 18}, "'encoder.dept'.*'encoder.depth'"),
    ({'method.temperature': 0.0}, 'method.temperature is 0.0'),
])
def test_a_cell_that_no_run_could_use_is_named(overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        cell_config(load('losses'), Cell(('x',), overrides))


def test_what_is_no_study_is_refused(tmp_path):
    config = base_config()
    with pytest.raises(ValueError, match='configs/studies/'):
        studying.study(config, str(tmp_path))
    config.study.update({'grid': small_grid(), 'only': 'a,d'})
    with pytest.raises(ValueError, match="study.only names 'd'; the cells are a, b, c"):
        studying.study(config, str(tmp_path))
    with pytest.raises(ValueError, match='scale=huge'):
        load('losses', 'scale=huge')


# --- one run after the other


def small_grid(**options):
    cells = tuple(Cell((name,), {'num_epochs': number + 1.0}, paper)
                  for number, (name, paper) in enumerate([('a', 60.0), ('b', 50.0), ('c', None)]))
    return Grid('Letters', ('letter',), cells, 'points', 'Table 0', **options)


@pytest.fixture
def pretrained(monkeypatch):
    """The workdirs that pretrain() was called with: it says 0.2 and more, and b has no finite loss."""
    calls = []

    def pretrain(config, path):
        calls.append(pathlib.Path(path).name)
        assert config.task == 'pretrain' and config.study.grid is None
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        (pathlib.Path(path) / 'config.json').write_text(json.dumps(config.to_dict()))
        if calls[-1].startswith('b'):
            raise FloatingPointError('The loss is nan.')
        (pathlib.Path(path) / 'results.jsonl').write_text('{"num_test": 100}\n')
        (pathlib.Path(path) / 'metrics.jsonl').write_text('{"loss": 1.5, "contrastive_accuracy": 0.5}\n{}\n')
        return {'random': {'knn_accuracy': 0.1, 'linear_accuracy': 0.15},
                'pretrained': {'knn_accuracy': 0.2, 'linear_accuracy': 0.3 + 0.02 * config.seed}}

    monkeypatch.setattr(studying.train, 'pretrain', pretrain)
    return calls


def make_config(**study):
    config = base_config()
    config.study.update({'grid': small_grid(), **study})
    return config


def test_a_failed_cell_is_recorded_the_others_go_on_and_none_runs_twice(pretrained, tmp_path, capsys):
    records = studying.study(make_config(), str(tmp_path))
    assert pretrained == ['a', 'b', 'c'] and 'b failed: The loss is nan.' in capsys.readouterr().out
    assert [sorted(record.get('measures', {})) for record in records] == [['0'], [], ['0']]
    text = (tmp_path / 'study.md').read_text()
    assert studying.study(make_config(), str(tmp_path)) == json.loads(json.dumps(records))
    assert pretrained == ['a', 'b', 'c']
    assert (tmp_path / 'study.md').read_text() == text
    (tmp_path / 'cells' / 'c' / 'cell.json').unlink()                   # killed before its end
    studying.study(make_config(only='a,c'), str(tmp_path))
    assert pretrained == ['a', 'b', 'c', 'c']


def test_a_study_of_another_config_is_refused_before_anything_runs(pretrained, tmp_path):
    studying.study(make_config(only='c'), str(tmp_path))
    config = make_config()
    config.batch_size = 64
    with pytest.raises(ValueError, match='batch_size: 512 in the workdir, 64 now'):
        studying.study(config, str(tmp_path))
    assert pretrained == ['c']


def test_seeds_are_runs_of_their_own_and_become_mean_and_deviation(pretrained, tmp_path):
    studying.study(make_config(only='a', num_seeds=3), str(tmp_path))
    assert pretrained == ['a', 'a_seed1', 'a_seed2']
    row = next(csv.DictReader(open(tmp_path / 'study.csv')))
    assert [float(row[f'linear top-1 %{end}']) for end in ('', ', low', ', high')] == [32.0, 30.0, 34.0]
    assert row['seeds'] == '3'


# --- what it shows


def record(place, *shares, failed='', layers=('0',), seed=0):
    done = {'measures': {layer: {'linear_accuracy': share} for layer, share in zip(layers, shares)},
            'intervals': {layer: {'linear_accuracy': [share - 0.02, share + 0.03]}
                          for layer, share in zip(layers, shares)},
            'random': {'linear_accuracy': 0.1}, 'last': {'contrastive_accuracy': 0.5}}
    return {'place': list(place), 'overrides': {}, 'seed': seed, 'seconds': 2.0,
            **({'failed': failed} if failed else done)}


def test_a_table_has_our_numbers_with_their_interval_beside_the_papers(tmp_path):
    grid = small_grid()
    render(grid, [record('a', 0.4), record('b', failed='The loss is nan.')], str(tmp_path))
    rows = {row['letter']: row for row in csv.DictReader(open(tmp_path / 'study.csv'))}
    assert rows['a'] == {
        'letter': 'a', 'linear top-1 %': '40.0', 'linear top-1 %, low': '38.0',
        'linear top-1 %, high': '43.0', 'contrastive accuracy %': '50.0', 'paper top-1 %': '60.0',
        'seeds': '1', 'seconds': '2.0', 'status': 'finished'}
    assert rows['b']['linear top-1 %'] == '' and rows['b']['status'] == 'failed: The loss is nan.'
    assert rows['c']['status'] == 'to do' and rows['c']['paper top-1 %'] == ''
    text = (tmp_path / 'study.md').read_text()
    assert '| a | 40.0 (38.0-43.0) | 50.0 | 60.0 | 1 | 2.0 | finished |' in text
    assert '2 of 3 cells' in text and '10.0 to 10.0' in text and 'Table 0' in text


def test_several_seeds_show_their_mean_and_deviation(tmp_path):
    records = [record('a', share, seed=seed) for seed, share in enumerate((0.4, 0.42, 0.44))]
    render(small_grid(), records, str(tmp_path))
    assert '| a | 42.0 ± 2.0 |' in (tmp_path / 'study.md').read_text()


def test_a_matrix_stands_beside_the_papers_and_compares_the_order(tmp_path):
    grid = load('augmentations', 'scale=tiny').study.grid
    render(grid, [record(cell.place, cell.paper / 200) for cell in grid.cells[:20]], str(tmp_path))
    text = (tmp_path / 'study.md').read_text()
    assert '| crop | 16.6 / 33.1 | 16.9 / 33.9 |' in text and '| rotate | - / 30.0 |' in text
    assert 'the 20 cells' in text and 'Spearman correlation 1.00' in text


@pytest.mark.parametrize('name', ['augmentations', 'heads', 'batch_size', 'losses'])
def test_each_kind_of_study_is_drawn(name, tmp_path):
    pytest.importorskip('matplotlib')       # of the extra [report]: without it there is no figure
    grid = load(name, 'scale=tiny').study.grid
    layers = tuple(map(str, grid.layers))
    render(grid, [record(cell.place, 0.3, 0.2, layers=layers) for cell in grid.cells[:4]], str(tmp_path))
    assert (tmp_path / 'study.png').read_bytes()[:4] == b'\x89PNG'
    assert '![](study.png)' in (tmp_path / 'study.md').read_text()


def test_without_matplotlib_the_table_is_written_and_says_so(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, 'simclr_jax.report.charts', raising=False)
    monkeypatch.delattr('simclr_jax.report.charts', raising=False)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    render(small_grid(), [record('a', 0.4)], str(tmp_path))
    assert not (tmp_path / 'study.png').exists()
    assert "pip install 'simclr_jax[report]'" in (tmp_path / 'study.md').read_text()


# --- the command


def test_a_killed_study_goes_on_where_it_was(run_main, tmp_path):
    arguments = ('--config=configs/studies/losses.py:smoke', '--config.study.only=margin',
                 '--config.num_train_steps=40', '--config.checkpoint.every_epochs=1.0',       # every 4 steps
                 '--config.encoder.name=tests.encoders:OneBlock', '--config.augment.image_size=16',
                 '--config.batch_size=16',
                 '--config.data.train_split=train[:64]', '--config.data.test_split=test[:64]',
                 '--config.log.every_steps=20', '--config.eval.linear_at_end=false', f'--workdir={tmp_path}')
    killed, cell = run_main(*arguments, signalled='9 20'), tmp_path / 'cells' / 'margin'
    assert killed.returncode == -9, killed.stderr
    assert (cell / 'checkpoints').exists() and not (cell / 'cell.json').exists()
    done = run_main(*arguments, signalled='9 20')       # in a run from its beginning alone
    assert done.returncode == 0, done.stderr
    assert 'Cell 1 of 1: margin' in done.stdout and 'resumed at step' in done.stdout
    rows = {row['loss']: row for row in csv.DictReader(open(tmp_path / 'study.csv'))}
    assert rows['margin']['status'] == 'finished' and rows['NT-Xent']['status'] == 'to do'
    assert float(rows['margin']['kNN top-1 %']) > 0
    assert np.isfinite(json.loads((cell / 'cell.json').read_text())['last']['loss'])
