"""What a study shows, with the paper's numbers beside: study.md, study.csv; with matplotlib study.png."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from simclr_jax.evaluate.results import percent
from simclr_jax.report.files import write_bytes, write_csv
from simclr_jax.studies.grid import Grid

_NAN = float('nan')
_MEASURES = {'linear_accuracy': 'linear top-1 %', 'knn_accuracy': 'kNN top-1 %'}
_LAYERS = {0: 'h', -1: 'z'}
_LAST = {'contrastive_accuracy': 'contrastive accuracy %', 'contrastive_entropy': 'entropy, nats',
         'mined_share': 'anchors mined %'}


def render(grid: Grid, records: Sequence[dict[str, Any]], directory: str) -> None:
    """Writes the table, and the figure if matplotlib is installed, of the records that there are.

    records: of `study.run_cell`, some of cells that are not finished missing. Never leaves half a file.
    """
    found = _by_place(grid, records)
    columns, rows = table(grid, found)
    write_csv(os.path.join(directory, 'study.csv'), columns, rows)
    figure = _figure(grid, found)
    if figure is not None:
        from simclr_jax.report import charts
        charts.write_png(os.path.join(directory, 'study.png'), figure)
    text = describe(grid, found, has_figure=figure is not None)
    write_bytes(os.path.join(directory, 'study.md'), text.encode())


def _by_place(grid: Grid, records: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """{place of a cell: its records, one of each seed}."""
    found = {cell.place: [] for cell in grid.cells}
    for record in records:
        found[tuple(record['place'])].append(record)
    return found


def result(grid: Grid, records: Sequence[dict[str, Any]], measure: str = '', layer: int | None = None
           ) -> np.ndarray:
    """A measure of each seed in per cent [S], without those that failed; [0] before any is finished.

    measure: '' = top-1 of the linear probe, or where there is none of kNN. layer: None = the study's first.
    """
    layer = str(grid.layers[0] if layer is None else layer)
    values = []
    for record in records:
        measures = record.get('measures', {}).get(layer, {})
        name = measure or next((name for name in _MEASURES if name in measures), '')
        if name in measures:
            values.append(100 * measures[name])
    return np.array(values)


def table(grid: Grid, found: dict) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of study.csv: a row for each cell, in per cent, NaN where there is nothing."""
    measures = [(name, heading, layer) for layer in grid.layers for name, heading in _MEASURES.items()
                if any(len(result(grid, records, name, layer)) for records in found.values())]
    lasts = [name for name in _LAST if any(name in record.get('last', {})
                                           for records in found.values() for record in records)]
    columns = [*grid.axes]
    for name, heading, layer in measures:
        suffix = f', layer {layer}' if len(grid.layers) > 1 else ''
        columns += [heading + suffix, f'{heading}{suffix}, low', f'{heading}{suffix}, high']
    columns += [*(_LAST[name] for name in lasts), 'paper top-1 %', 'seeds', 'seconds', 'status']
    rows = []
    for cell in grid.cells:
        records = found[cell.place]
        row = [*cell.place]
        for name, _, layer in measures:
            row += [_mean(result(grid, records, name, layer)), *_bounds(grid, records, name, layer)]
        row += [_mean([record['last'][name] * (1 if name == 'contrastive_entropy' else 100)
                       for record in records if name in record.get('last', {})]) for name in lasts]
        row += [cell.paper, len(records), sum(record['seconds'] for record in records) or None,
                _status(records)]
        rows.append(row)
    return columns, rows


def _mean(values: Any) -> float:
    return round(float(np.mean(values)), 3) if len(values) else _NAN


def _bounds(grid: Grid, records: Sequence[dict], measure: str, layer: int) -> tuple[float, float]:
    """The 95 % interval over the test images of one seed; of several, mean -+ one standard deviation."""
    values = result(grid, records, measure, layer)
    if len(values) > 1:
        return tuple(round(float(values.mean() + side * values.std(ddof=1)), 3) for side in (-1, 1))
    if not len(values):
        return _NAN, _NAN
    intervals = [record['intervals'][str(layer)][measure] for record in records if 'intervals' in record]
    return tuple(round(100 * bound, 3) for bound in intervals[0])


def _status(records: Sequence[dict]) -> str:
    failed = [record['failed'] for record in records if 'failed' in record]
    return f'failed: {failed[0]}' if failed else 'finished' if records else 'to do'


def describe(grid: Grid, found: dict, *, has_figure: bool) -> str:
    """The text of study.md."""
    finished = sum(bool(records) for records in found.values())
    seeds = max((len(records) for records in found.values()), default=0)
    uncertain = ('in brackets: 95 % interval over the test images, of one seed' if seeds < 2 else
                 f'mean and standard deviation of up to {seeds} seeds')
    parts = [f'# {grid.title}', f'{finished} of {len(found)} cells; {uncertain}. Paper: {grid.source}.']
    if floors := [record['random'] for records in found.values() for record in records if 'random' in record]:
        name = next(name for name in _MEASURES if name in floors[0])
        values = [100 * floor[name] for floor in floors]
        parts.append(f'The encoders before training have {min(values):.1f} to {max(values):.1f} '
                     f'{_MEASURES[name]}: the floor.')
    pairs = paper_pairs(grid, found)
    if len(pairs) > 2 and np.ptp(pairs, axis=0).all():         # a constant has no order
        order = spearmanr(*np.transpose(pairs)).statistic
        parts.append(f'Order of the {len(pairs)} cells that the paper has too, here and there: '
                     f'Spearman correlation {order:.2f}.')
    if grid.chart == 'matrix':
        parts += [f'Rows: {grid.axes[0]}; columns: {grid.axes[1]}. Here, and in the paper.',
                  _markdown(*_matrix_table(grid, found))]
    parts.append(_markdown(*_readable_table(grid, found)))
    parts.append('![](study.png)' if has_figure else
                 "No figure: matplotlib is not installed (pip install 'simclr_jax[report]').")
    return '\n\n'.join(parts) + '\n'


def paper_pairs(grid: Grid, found: dict) -> list[tuple[float, float]]:
    """(ours, the paper's) top-1 in per cent of every cell that has both."""
    return [(float(values.mean()), cell.paper) for cell in grid.cells if cell.paper is not None
            and len(values := result(grid, found[cell.place]))]


def _readable_table(grid: Grid, found: dict) -> tuple[list[str], list[list[str]]]:
    columns, rows = table(grid, found)
    kept = [index for index, name in enumerate(columns) if not name.endswith((', low', ', high'))]
    lines = []
    for cell, row in zip(grid.cells, rows):
        several = len(found[cell.place]) > 1
        line = []
        for index in kept:
            value, text = row[index], _text(row[index])
            if columns[index + 1:index + 2] == [f'{columns[index]}, low'] and value == value:
                low, high = row[index + 1:index + 3]
                text = (f'{value:.1f} ± {(high - low) / 2:.1f}' if several
                        else percent(value / 100, (low / 100, high / 100)))
            line.append(text)
        lines.append(line)
    return [columns[index] for index in kept], lines


def _text(value: Any) -> str:
    if value is None or value != value:
        return ''
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def _matrix_table(grid: Grid, found: dict) -> tuple[list[str], list[list[str]]]:
    ours, paper = _matrices(grid, found)
    rows, columns = grid.levels(0), grid.levels(1)
    lines = [[name, *(f'{_text(float(one)) or "-"} / {_text(float(other)) or "-"}'
                      for one, other in zip(*line))]
             for name, line in zip(rows, zip(ours, paper))]
    return ['', *columns], lines


def _matrices(grid: Grid, found: dict) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the paper's top-1 in per cent, [R, C] each; NaN where there is none."""
    rows, columns = grid.levels(0), grid.levels(1)
    ours, paper = np.full((2, len(rows), len(columns)), _NAN)
    for cell in grid.cells:
        where = rows.index(cell.place[0]), columns.index(cell.place[1])
        values = result(grid, found[cell.place])
        ours[where] = values.mean() if len(values) else _NAN
        paper[where] = _NAN if cell.paper is None else cell.paper
    return ours, paper


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ['---'] * len(columns), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '/') for cell in line) + ' |' for line in lines)


def _figure(grid: Grid, found: dict) -> Any:
    """The chart of the study; None without matplotlib, or before anything is measured."""
    if not any(len(result(grid, records)) for records in found.values()):
        return None
    try:
        from simclr_jax.report import charts
    except ImportError:
        return None
    if grid.chart == 'matrix':
        ours, paper = _matrices(grid, found)
        return charts.heatmap(ours, grid.levels(0), grid.levels(1), y_label=grid.axes[0],
                              x_label=grid.axes[1], title='here', unit='top-1, %',
                              beside={'paper': paper} if np.isfinite(paper).any() else None)
    series, errors, groups = {}, {}, {}
    for layer in grid.layers:
        ours = f'here, {_LAYERS.get(layer, f"layer {layer}")}' if len(grid.layers) > 1 else 'here'
        for name, cells in _series(grid).items():
            label = ', '.join(filter(None, (name, ours)))
            records = [found[cell.place] for cell in cells]
            series[label] = [_mean(result(grid, each, layer=layer)) for each in records]
            errors[label] = np.transpose([_error(grid, each, layer) for each in records])
            groups[label] = name
    for name, cells in _series(grid).items():
        if any(cell.paper is not None for cell in cells):
            label = ', '.join(filter(None, (name, 'paper')))
            series[label] = [_NAN if cell.paper is None else cell.paper for cell in cells]
            groups[label] = name
    if grid.chart == 'lines':
        x = {label: [float(cell.place[-1]) for cell in _series(grid)[name]] for label, name in groups.items()}
        return charts.lines(x, series, x_label=grid.axes[-1], y_label='top-1, %', title=grid.title,
                            log_x=grid.log_x, markers=True, size=(6.4, 4.2), errors=errors, groups=groups,
                            legend_title=', '.join(grid.axes[:-1]))
    return charts.bars([' '.join(cell.place) for cell in grid.cells], series, errors=errors,
                       y_label='top-1, %', title=grid.title)


def _series(grid: Grid) -> dict[str, list]:
    """{name: cells} of the lines, a line for each place but for its last part; all cells of bars are one."""
    if grid.chart == 'bars':
        return {'': list(grid.cells)}
    series = {}
    for cell in grid.cells:
        series.setdefault(' '.join(cell.place[:-1]), []).append(cell)
    return series


def _error(grid: Grid, records: Sequence[dict], layer: int) -> tuple[float, float]:
    """How far the error bar reaches below and above the mean, in per cent."""
    values = result(grid, records, layer=layer)
    if not len(values):
        return 0.0, 0.0
    measures = next(record for record in records if 'measures' in record)['measures'][str(layer)]
    name = next(name for name in _MEASURES if name in measures)
    low, high = _bounds(grid, records, name, layer)
    return float(values.mean()) - low, high - float(values.mean())
