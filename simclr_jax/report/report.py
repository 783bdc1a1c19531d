"""`--config.task=report`: a run, or an encoder from a file, on one page."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import simclr_jax
from simclr_jax.config import ConfigDict, base_config, view_config
from simclr_jax.data import sources
from simclr_jax.data.source import Source
from simclr_jax.evaluate.pretrained import Pretrained, load_pretrained
from simclr_jax.evaluate.subject import data_options
from simclr_jax.report import page, workdir as record
from simclr_jax.report.files import write_bytes
from simclr_jax.config.tasks import task_configs

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


class _Inspected(NamedTuple):
    """What the parts that ask the network need."""

    pretrained: Pretrained
    train_source: Source
    train: Any              # learned.Split
    test: Any
    is_same: bool


def report(config: ConfigDict, workdir: str) -> str:
    """Writes workdir/report.html, and the figures and their numbers to workdir/report/; returns its path.

    What the run was comes from its workdir, `report.pretrained` or `workdir` itself; `config` says what to
    draw (its `report` block), where the data lie, and which recipe the run is compared with. Of a file of
    weights in `report.pretrained`, `config` also says which data it is shown on; results are those in
    `workdir`. A part that cannot be made is a sentence in its place.

    Raises:
        FileNotFoundError: there is no such workdir or file.
        ValueError: matplotlib or scikit-learn are missing, or a field of `report` will not do.
    """
    settings = config.report
    if settings.max_images < 2 or settings.num_queries < 1:
        raise ValueError(f'report.max_images is {settings.max_images} and report.num_queries '
                         f'{settings.num_queries}: it takes at least 2 and 1.')
    if jax.process_count() > 1:
        raise ValueError('A report is written by one process: run it without --multihost.')
    try:
        import sklearn      # noqa: F401
        from simclr_jax.report.figures import Figures
    except ImportError as error:
        raise ValueError(f'A report needs {error.name}: pip install simclr_jax[report].') from error
    path = settings.pretrained or workdir
    is_run = path == workdir or os.path.isfile(os.path.join(path, 'config.json'))
    if is_run:
        own, pretrained = record.read_config(path), None
        title = f'{(own.get("method") or {}).get("name", "A run")} on '
    else:
        pretrained = load_pretrained(path, settings.checkpoint, settings.encoder)
        own, title = pretrained.config.to_dict(), f'{pretrained.source} on '
    own_data = own.get('data') or {}
    figures = Figures(workdir)
    sections = _told_sections(figures, path, own) if is_run else [
        page.Section('The encoder', _encoder(path, own))]
    sections += [page.Section('Evaluation', _evaluation(figures, dict.fromkeys((path, workdir)))),
                 *_learned_sections(figures, config, path, pretrained)]
    if is_run:
        sections.append(page.Section('Configuration', _configuration(own, config)))
        notes = record.read_notes(path)
        if notes:
            sections.append(page.Section('What the run said', page.details(
                'log.txt', f'<pre>{page.escape(notes)}</pre>')))
    text = page.render(
        title + (own_data.get('source') or config.data.source or 'unknown data'), f'Report of {path}',
        sections,
        footer=f'Written by simclr_jax {simclr_jax.__version__}, {time.strftime("%Y-%m-%d %H:%M %Z")}. '
               'This page holds all it shows; figures and numbers are also in report/ beside it.')
    written = os.path.join(workdir, 'report.html')
    write_bytes(written, text.encode())
    print(f'{len(text) / 1e6:.1f} MB -> {written}; figures and numbers in {os.path.join(workdir, "report")}')
    return written


# ---- from the files alone ----------------------------------------------------------------------------


def _told_sections(figures, workdir: str, own: Mapping[str, Any]) -> list[page.Section]:
    """What a run said of itself."""
    rows = record.read_rows(os.path.join(workdir, 'metrics.jsonl'))
    return [page.Section('The run', _run(workdir, own, rows)),
            page.Section('Curves', _curves(figures, rows, record.read_notes(workdir)))]


def _encoder(path: str, own: Mapping[str, Any]) -> str:
    augment, encoder = own['augment'], own['encoder']
    return page.facts({
        'file': path, 'encoder': _encoder_words(encoder),
        'padding': f'convolutions {encoder["conv_padding"]}, max-pool as {encoder["max_pool"]}',
        'images': f'{augment["image_size"]} px, central {own["eval"]["crop_proportion"]:g}',
        'mean, std': f'{tuple(augment["mean"])}, {tuple(augment["std"])}',
    }) + page.paragraph('A file of weights holds no curves. The views below are those of its recipe, if it '
                        'has one, or else those of the official SimCLR code.', 'missing')


def _encoder_words(encoder: Mapping[str, Any]) -> str:
    return (f'ResNet-{encoder.get("depth", "?")}, width {encoder.get("width", "?")}, '
            f'{encoder.get("stem", "?")} stem, {encoder.get("dtype", "?")}')


def _run(workdir: str, own: Mapping[str, Any], rows: list[dict]) -> str:
    encoder, data, versions = own.get('encoder', {}), own.get('data', {}), record.read_versions(workdir)
    steps = max((row['step'] for row in rows if 'step' in row), default=None)
    packages = versions.get('packages', {})
    pairs = {
        'encoder': _encoder_words(encoder),
        'data': f'{data.get("source", "?")}, {data.get("train_split", "?")}',
        'training': f'{_count(steps)} steps of {own.get("batch_size", "?")} images' if steps else '',
        'when': record.when(rows),
        'devices': f'{versions.get("devices", "?")} x {versions.get("device_kind", "?")} '
                   f'({versions.get("backend", "?")}), {versions.get("processes", "?")} process(es)'
                   if versions else '',
        'versions': ', '.join([f'simclr_jax {versions.get("simclr_jax", "?")}',
                               f'Python {versions.get("python", "?")}',
                               *(f'{name} {value}' for name, value in packages.items())]) if versions else '',
        'platform': versions.get('platform', ''),
        'a step': ', '.join(f'{name.removeprefix(_PART).replace("_", " ")} {row[name]:.1f} ms' for row in rows
                            for name in row if name.startswith(_PART)),
    }
    shown = page.facts({name: value for name, value in pairs.items() if value})
    if not rows:
        shown += page.paragraph('No metrics.jsonl: how far the run came is not known.', 'missing')
    if not versions:
        shown += page.paragraph('No versions.json: devices and versions are not known.', 'missing')
    return shown


def _curves(figures, rows: list[dict], notes: str) -> str:
    from simclr_jax.report import charts

    names = record.measured_names(rows)
    if not names:
        return page.paragraph('No metrics were written: there are no curves.', 'missing')
    collapses = [line.split('  ', 1)[-1] for line in notes.splitlines()
                 if 'Collapse at step' in line or 'has spread again' in line]
    shown = ''.join(page.paragraph(line, 'warning') for line in collapses)
    last = 1.02 * max(row['step'] for row in rows if 'step' in row)

    def curve(title, drawn, y_label):
        found = {name: record.column(rows, name) for name in drawn}
        scale = 100 if '(%)' in y_label else 1
        figure = charts.lines({_said(name): steps for name, (steps, _) in found.items()},
                              {_said(name): scale * values for name, (_, values) in found.items()},
                              x_label='step', y_label=y_label, title=title, x_limits=(0, last))
        table = [[name, int(step), value] for name, (steps, values) in found.items()
                 for step, value in zip(steps, values)]
        file = f'curve_{re.sub("[^A-Za-z0-9_]+", "_", drawn[0])}'
        return figures.add(file, figure, ['metric', 'step', 'value'], table,
                           alt=f'{title} by step: {", ".join(map(_said, drawn))}')

    ratios = [name for name in names if name.startswith(_RATIO)]
    parts, left = [], [name for name in names
                       if 'input_wait' not in name and not name.startswith((_RATIO, _PART))]
    for title, group, y_label in _CURVES:
        drawn = [name for name in group if name in names]
        left = [name for name in left if name not in drawn]
        if drawn:
            parts.append(curve(title, drawn, y_label))
    if ratios:
        parts.append(_trust_ratios(figures, rows, ratios, last))
    shown += page.side_by_side(parts)
    if 'knn_accuracy' not in names:
        shown += page.paragraph('No kNN accuracy was measured in training: the data have no labels or no '
                                'split to measure on, or the run ended before its first evaluation.',
                                'missing')
    if left:
        shown += page.details(f'{len(left)} more measures', page.side_by_side(
            [curve(_said(name), [name], _said(name)) for name in left]))
    return shown


def _trust_ratios(figures, rows: list[dict], names: list[str], last: float) -> str:
    from simclr_jax.report import charts

    found = {name: record.column(rows, name) for name in names}
    steps = found[names[0]][0]
    alike = np.array([values for at, values in found.values() if np.array_equal(at, steps)])     # [L, P]
    drawn = {'largest': alike.max(0), 'median': np.median(alike, axis=0), 'smallest': alike.min(0)}
    figure = charts.lines(steps, drawn, x_label='step', y_label='trust ratio', log_y=True, x_limits=(0, last),
                          title=f'LARS trust ratios of {len(alike)} layers')
    table = [[name.removeprefix(_RATIO), int(step), value] for name, (at, values) in found.items()
             for step, value in zip(at, values)]
    return figures.add('curve_trust_ratios', figure, ['layer', 'step', 'trust_ratio'], table,
                       alt='Largest, median and smallest LARS trust ratio of the layers, by step')


def _evaluation(figures, directories: Iterable[str]) -> str:
    results = record.evaluation_rows([row for directory in directories
                                      for row in record.read_rows(os.path.join(directory, 'results.jsonl'))])
    if not results:
        return page.paragraph('No results.jsonl: nothing was evaluated. The data may have no labels, or the '
                              'run has not ended.', 'missing')
    results.sort(key=lambda row: (row['evaluation'], row['data'], row['measure'], str(row['step'])))
    columns = ('measure', 'encoder', '%', '95 % interval', 'data', 'test images', 'training images', 'step',
               'evaluation')
    table = [[row['measure'], row['encoder'], f'{100 * row["value"]:.1f}', _interval(row['interval']),
              ', '.join(filter(None, [row['data'], row['split']])), _count(row['num_test']),
              _count(row['num_train']), _count(row['step']), row['evaluation']] for row in results]
    kept = ('evaluation', 'measure', 'encoder', 'value', 'data', 'split', 'step', 'num_train', 'num_test')
    figures.add_csv('evaluation', [*kept, 'low', 'high'],
                    [[*(row[name] for name in kept), *(row['interval'] or (None, None))] for row in results])
    floors = [number for number, row in enumerate(results) if row['is_floor']]
    shown = page.table(columns, table, numeric=(2, 3, 5, 6, 7), soft=floors) + page.paragraph(
        'Rows in grey are floors: the same measurement of the randomly initialised encoder, and of raw '
        'pixels. Intervals are over the test set.', 'note') + (
        f'<p class="note">{page.file_links(["report/evaluation.csv"])}</p>')
    if not floors:
        shown += page.paragraph('No floor was measured beside these numbers.', 'missing')
    if not all(row['interval'] for row in results):
        shown += page.paragraph('Some of these results were written without an interval.', 'missing')
    return shown


def _configuration(own: Mapping[str, Any], given: ConfigDict) -> str:
    other_tasks = tuple(task_configs())
    rows = record.differences(own, given.to_dict(), base_config().to_dict(), ignore=other_tasks)
    changed = [(name, _shown(run), _shown(recipe)) for name, run, recipe, _ in rows if run != recipe]
    from_default = [(name, _shown(run), _shown(default)) for name, run, _, default in rows if run != default]
    shown = page.paragraph('A workdir keeps values, not the name of a recipe. The run is compared with the '
                           'recipe that this report was asked for with (--config), and with the defaults of '
                           'simclr_jax/config.py, which are those of the official SimCLR code.', 'note')
    shown += '<h3>Deviations from the recipe</h3>' + (
        page.table(('field', 'this run', 'recipe'), changed, caption='Where the run left the recipe')
        if changed else page.paragraph('None: every field is as in the recipe.'))
    shown += '<h3>Deviations from the defaults</h3>' + (
        page.table(('field', 'this run', 'default'), from_default, caption='Where the run left the defaults')
        if from_default else page.paragraph('None.'))
    return shown + page.details('Every field', f'<pre>{page.escape(record.as_lines(own))}</pre>')


# ---- from the network --------------------------------------------------------------------------------


def _learned_sections(figures, config: ConfigDict, path: str, pretrained: Pretrained | None
                      ) -> list[page.Section]:
    from simclr_jax.report import encoder_sections as learned

    try:
        inspected = _inspect(config, pretrained or load_pretrained(
            path, config.report.checkpoint, config.report.encoder))
    except (ValueError, OSError) as error:
        return [page.Section('Views, neighbours and maps', learned.missing(
            'augmentations, neighbours, map, similarities and confusion matrix', error))]
    own, settings, seed = inspected.pretrained.config, config.report, config.seed
    operations = {name: view_config(own.augment, name) for name in ('view1', 'view2')}
    used = settings.max_images / max(inspected.train_source.num_examples, settings.max_images)
    k = max(5, round(own.eval.knn_k * used))        # the same share of what there is to choose from
    gallery, similarities = _attempt(
        'augmentations and similarities', 2, lambda: learned.views_and_similarities(
            figures, inspected.pretrained, inspected.train.source, operations=operations,
            image_size=own.augment.image_size, seed=seed, sequence=own.augment.get('sequence', ())))
    nearest, confusion = _attempt('neighbours and confusion matrix', 2, lambda: learned.nearest_and_confusion(
        figures, inspected.train, inspected.test, is_same=inspected.is_same, k=k,
        temperature=own.eval.knn_temperature, num_queries=settings.num_queries, seed=seed))
    maps, = _attempt('map', 1, lambda: (learned.maps(figures, inspected.test, seed=seed,
                                                     with_tsne=settings.tsne),))
    note = page.paragraph(f'Encoder: {inspected.pretrained.source}, {inspected.pretrained.encoder} network, '
                          f'layer {settings.layer}.', 'note')
    return [page.Section('Augmentations', gallery), page.Section('Nearest neighbours', note + nearest),
            page.Section('Map of the features', maps), page.Section('Similarities of views', similarities),
            page.Section('Confusion', confusion)]


def _attempt(what: str, count: int, make: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """The `count` parts that `make` gives, or the sentence that says why there are none."""
    from simclr_jax.report.encoder_sections import missing

    try:
        return make()
    except (ValueError, OSError) as error:
        return (missing(what, error),) * count


def _inspect(config: ConfigDict, pretrained: Pretrained) -> _Inspected:
    """The network and samples of its data. ValueError or OSError: they are not to be had."""
    from simclr_jax.report import encoder_sections as learned

    settings = config.report
    own = pretrained.config
    data = own.data if own.data.source else config.data         # of a file: those that it is shown on
    where = data_options(config, own) | {
        'cache': '', 'decode_once': False,
        'max_bad_share': own.data.get('max_bad_share', config.data.max_bad_share)}
    train_source = sources.load_source(data.source, data.train_split, **where)
    test_source = sources.load_test_source(data.source, data.test_split, **where)

    def read(source):
        return learned.read_split(pretrained, source, most=settings.max_images, seed=config.seed,
                                  layer=settings.layer)

    train = read(train_source)
    return _Inspected(pretrained, train_source, train, read(test_source) if test_source else train,
                      test_source is None)


# ---- words -------------------------------------------------------------------------------------------


def _said(name: str) -> str:
    return name.replace('_', ' ').replace('knn', 'kNN')


def _shown(value: Any) -> str:
    return "''" if value == '' else str(value)


def _count(value: Any) -> str:
    return f'{value:,}' if isinstance(value, int) else str(value if value is not None else '')


def _interval(interval: tuple[float, float] | None) -> str:
    return '\N{EM DASH}' if interval is None else '{:.1f} to {:.1f}'.format(*(100 * np.asarray(interval)))
