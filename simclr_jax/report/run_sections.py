"""The parts of a report that need no network: what a workdir or a file of weights says of itself."""

import collections
import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simclr_jax import storage
from simclr_jax.config import ConfigDict, base_config, flatten, load_recipe
from simclr_jax.config.tasks import task_configs
from simclr_jax.report import charts, page, workdir as records
from simclr_jax.report.page import Figures, Section
from simclr_jax.runlog.jsonl import read_rows, read_versions

# Title, metrics, y label: what is drawn together. What is left is drawn alone, on request.
_CURVES = (
    ('Loss', ('loss', 'contrastive_loss', 'probe_loss'), 'loss (nats)'),
    ('Accuracy in training', ('contrastive_accuracy', 'probe_accuracy'), 'accuracy (%)'),
    ('kNN, by which checkpoints are chosen', ('knn_accuracy', 'linear_accuracy', 'knn_floor'), 'top-1 (%)'),
    ('Learning rate', ('learning_rate',), 'learning rate'),
    ('Effective rank (RankMe)', ('feature_rank', 'projection_rank'), 'effective rank'),
    ('Spread of directions', ('feature_spread', 'projection_spread'), 'spread, 0 to 1'),
    ('Alignment and uniformity', ('alignment', 'uniformity'), 'lower is better (no unit)'),
    ('Similarities of pairs', ('positive_similarity', 'negative_similarity'), 'mean cosine'),
    ('Throughput', ('images_per_second',), 'images / s'),
)
_RATIO = 'trust_ratio/'       # then the layer
_PART = 'step_ms/'            # then the part of a step
_COLLAPSE_ENDS = 'vary again.', 'has spread again.'        # as CollapseWatch says now, and as it once did


def _encoder_words(encoder: Mapping[str, Any]) -> str:
    """An encoder's fields in words: of ours, or else its name and arguments."""
    if encoder.get('name', 'resnet') == 'resnet':
        return (f'ResNet-{encoder.get("depth", "?")}, width {encoder.get("width", "?")}, '
                f'{encoder.get("stem", "?")} stem, {encoder.get("dtype", "?")}')
    arguments = ', '.join(f'{name}={value!r}' for name, value in (encoder.get('arguments') or {}).items())
    return f'{encoder["name"]}({arguments})' if encoder['name'] else 'an encoder that the config cannot name'


def file_of_weights(path: str, run: Mapping[str, Any]) -> Section:
    """What a file of weights says of itself."""
    augment = run['augment']
    return {'kind': 'file of weights', 'pairs': {
        'file': path, 'encoder': _encoder_words(run['encoder']),
        'padding': ', '.join(f'{name} {run["encoder"][name]}' for name in ('conv_padding', 'max_pool')
                             if name in run['encoder']),
        'images': f'{augment["image_size"]} px, central {run["eval"]["crop_proportion"]:g}',
        'mean, std': f'{tuple(augment["mean"])}, {tuple(augment["std"])}'}}


def run(workdir: str, run: Mapping[str, Any], rows: list[dict]) -> Section:
    """What the run trained on and with, and how far it is."""
    data, versions = run.get('data', {}), read_versions(workdir)
    steps = max((row['step'] for row in rows if 'step' in row), default=None)
    pairs = {
        'encoder': _encoder_words(run.get('encoder', {})),
        'data': f'{data.get("source", "?")}, {data.get("train_split", "?")}',
        'training': f'{_count(steps)} steps of {run.get("batch_size", "?")} images' if steps else '',
        'when': records.when(rows),
        'devices': '{devices} x {device_kind}, processes: {processes}',
        'versions': 'simclr_jax {simclr_jax}, Python {python}'
                    + ''.join(f', {name} {value}' for name, value in versions.get('packages', {}).items()),
        'platform': versions.get('platform', ''),
        'a step': ', '.join(f'{name.removeprefix(_PART).replace("_", " ")} {row[name]:.1f} ms' for row in rows
                            for name in row if name.startswith(_PART)),
    }
    known = collections.defaultdict(lambda: '?', versions)
    for name in ('devices', 'versions'):
        pairs[name] = pairs[name].format_map(known) if versions else ''
    is_there = storage.exists(os.path.join(workdir, 'metrics.jsonl'))
    no_metrics = '' if rows else 'metrics.jsonl has no rows' if is_there else 'No metrics.jsonl'
    return {'kind': 'run', 'pairs': pairs, 'no_metrics': no_metrics, 'has_versions': bool(versions)}


def curves(figures: Figures, rows: list[dict], notes: str) -> Section:
    """The metrics of the run over its steps, and its notes."""
    names = list(dict.fromkeys(name for row in rows for name, value in row.items()
                               if isinstance(value, (int, float)) and name not in ('step', 'time')))
    if not names:
        return page.absent('curves', 'no metrics were written.')
    limits = 0, 1.02 * max(row['step'] for row in rows if 'step' in row)

    def curve(title, names, y_label):
        found = {name: records.column(rows, name) for name in names}
        scale = 100 if '(%)' in y_label else 1
        drawn = {_words(name): (steps, scale * values) for name, (steps, values) in found.items()}
        figure = charts.lines(drawn, x_label='step', y_label=y_label, title=title, x_limits=limits)
        return figures.add(f'curve_{re.sub("[^A-Za-z0-9_]+", "_", names[0])}', figure,
                           ['metric', 'step', 'value'], _long_table(found),
                           alt=f'{title} by step: {", ".join(drawn)}')

    ratios = [name for name in names if name.startswith(_RATIO)]
    groups = [(title, [name for name in group if name in names], y_label)
              for title, group, y_label in _CURVES]
    grouped = {name for _, group, _ in groups for name in group}
    left = [name for name in names if name not in grouped and 'input_wait' not in name
            and not name.startswith((_RATIO, _PART))]
    drawn = [curve(*group) for group in groups if group[1]]
    if ratios:
        drawn.append(_trust_ratios(figures, rows, ratios, limits))
    return {'kind': 'curves', 'figures': drawn, 'has_knn': 'knn_accuracy' in names,
            'more': [curve(_words(name), [name], _words(name)) for name in left],
            'warnings': [line.split('  ', 1)[-1] for line in notes.splitlines()
                         if 'Collapse at step' in line or line.endswith(_COLLAPSE_ENDS)]}


def _trust_ratios(figures, rows: list[dict], names: list[str], limits: tuple[float, float]) -> dict[str, Any]:
    found = {name.removeprefix(_RATIO): records.column(rows, name) for name in names}
    steps = next(iter(found.values()))[0]
    alike = np.array([values for at, values in found.values() if np.array_equal(at, steps)])     # [L, P]
    drawn = {'largest': alike.max(0), 'median': np.median(alike, axis=0), 'smallest': alike.min(0)}
    figure = charts.lines({name: (steps, values) for name, values in drawn.items()}, x_label='step',
                          y_label='trust ratio', log_y=True, x_limits=limits,
                          title=f'LARS trust ratios of {len(alike)} layers')
    return figures.add('curve_trust_ratios', figure, ['layer', 'step', 'trust_ratio'], _long_table(found),
                       alt='Largest, median and smallest LARS trust ratio of the layers, by step')


def _long_table(found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[list]:
    """Rows (name, step, value) of {name: (steps, values)}."""
    return [[name, int(step), value] for name, column in found.items() for step, value in zip(*column)]


def evaluation(figures: Figures, directories: Iterable[str]) -> Section:
    """The results of all evaluations in the directories."""
    rows = records.evaluation_rows([row for directory in directories
                                    for row in read_rows(directory, 'results.jsonl')])
    if not rows:
        return page.absent('results.jsonl', 'nothing was evaluated. The data may have no labels, or the run '
                           'has not ended.')
    rows.sort(key=lambda row: (row['evaluation'], row['data'], row['measure'], str(row['step'])))
    kept = ('evaluation', 'measure', 'encoder', 'value', 'data', 'split', 'step', 'num_train', 'num_test')
    numbers = [[*(row[name] for name in kept), *(row['interval'] or (None, None))] for row in rows]
    files = figures.add_csv('evaluation', [*kept, 'low', 'high'], numbers)
    columns = ('measure', 'encoder', '%', '95 % interval', 'data', 'test images', 'training images', 'step',
               'evaluation')
    return {'kind': 'evaluation', 'columns': columns, 'files': files,
            'rows': [[row['measure'], row['encoder'], f'{100 * row["value"]:.1f}', _interval(row['interval']),
                      ', '.join(filter(None, [row['data'], row['split']])), _count(row['num_test']),
                      _count(row['num_train']), _count(row['step']), row['evaluation']] for row in rows],
            'floors': [number for number, row in enumerate(rows) if row['is_floor']],
            'has_intervals': all(row['interval'] for row in rows)}


def configuration(run: Mapping[str, Any], given: ConfigDict) -> Section:
    """The fields of the run that differ from the recipe's or from the defaults.

    The recipe is the one that is given; where the run was begun with the same, it has that run's argument.
    """
    begun_with, given_name = run.get('recipe', ''), given.get('recipe', '')
    if given_name and given_name == begun_with.partition(':')[0]:
        with contextlib.suppress(ValueError, OSError):      # an argument that it takes no more
            given = load_recipe(begun_with)
    differences = [
        (name, column, [[field, *("''" if value == '' else value for value in values)] for field, *values
                        in records.differences(run, other.to_dict(), ignore=tuple(task_configs()))])
        for name, column, other in (('recipe', 'recipe', given), ('defaults', 'default', base_config()))]
    fields = '\n'.join(f'{name} = {json.dumps(value)}' for name, value in flatten(run).items())
    return {'kind': 'configuration', 'differences': differences, 'fields': fields}


def _words(name: str) -> str:
    return name.replace('_', ' ').replace('knn', 'kNN')


def _count(value: Any) -> str:
    return f'{value:,}' if isinstance(value, int) else str(value if value is not None else '')


def _interval(interval: tuple[float, float] | None) -> str:
    return '\N{EM DASH}' if interval is None else '{:.1f} to {:.1f}'.format(*(100 * np.asarray(interval)))
