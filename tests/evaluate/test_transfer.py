"""Transfer of a small run to several sets, and what a set must have."""

import json

import numpy as np
import pytest

from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.transfer import DATA_SETS, DataSet, transfer
from tests.evaluate.runs import task_config

pytestmark = pytest.mark.usefixtures('one_device')


def save_set(path, *, labels=True, test=True, classes=10):
    arrays = {}
    for split, count in (('train', 128), ('test', 64)):
        images, numbers = make_shapes(split, 16, count)
        arrays[f'{split}_images'] = images
        if labels:
            arrays[f'{split}_labels'] = numbers % classes
    np.savez(path, **{name: array for name, array in arrays.items() if test or 'test' not in name})
    return f'arrays:{path}'


def test_several_sets_make_one_table_each_by_its_own_metric(workdir, tmp_path, monkeypatch, capsys):
    other = save_set(tmp_path / 'pets.npz')
    monkeypatch.setitem(DATA_SETS, 'shapes', DataSet('train[:128]', 'test[:64]', per_class=True))
    results = transfer(task_config('transfer', workdir, sources=(other, 'shapes'), l2='10',
                                   pixel_floor=False), str(tmp_path / 'out'))
    assert {name: list(row) for name, row in results.items()} == {
        other: ['random', 'pretrained'], 'shapes': ['random', 'pretrained']}
    rows = [json.loads(line) for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()]
    assert [(row['data'], row['encoder']) for row in rows] == [
        (name, encoder) for name in results for encoder in results[name]]
    for row, metric, splits in zip(rows, ['logistic_accuracy'] * 2 + ['logistic_per_class'] * 2,
                                   [('train', 'test')] * 2 + [('train[:128]', 'test[:64]')] * 2):
        low, high = row[f'{metric}_interval']
        assert low < row[metric] < high and row[metric] == results[row['data']][row['encoder']]
        assert (row['num_train'], row['num_test'], row['train_split'], row['split']) == (128, 64, *splits)
        assert row['pretrained'] == workdir and row['step'] == 2 and row['l2'] == 10
    said = capsys.readouterr().out
    assert said.count('data set  ') == 1 and 'per class' in said and 'top-1' in said


def test_the_metric_is_over_classes_where_the_literature_says_so():
    """Chen et al. 2020, App. B.8: mean per class for Aircraft, Pets, Caltech-101 and Flowers."""
    assert {name for name, data_set in DATA_SETS.items() if data_set.per_class} == {
        'visual_domain_decathlon/aircraft', 'oxford_iiit_pet', 'caltech101', 'oxford_flowers102'}


@pytest.mark.parametrize('settings, sentence', [
    ({'labels': False}, 'has no class for each image in train.*VOC 2007'),
    ('again', 'each once'), ('none', 'name one or more'),
    ('l2', "transfer.l2 is 'x'")])
def test_sets_that_will_not_do_are_refused_before_any_is_measured(settings, sentence, workdir, tmp_path):
    names = {'again': ('shapes', 'shapes'), 'none': ()}.get(str(settings), ('shapes',))
    if isinstance(settings, dict):
        names = ('shapes', save_set(tmp_path / 'set.npz', **settings))
    config = task_config('transfer', workdir, sources=names, l2='x' if settings == 'l2' else '1')
    with pytest.raises(ValueError, match=sentence):
        transfer(config, str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
