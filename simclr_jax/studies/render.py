"""What a study shows, with the paper's numbers beside: study.md, study.csv; with matplotlib study.png."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from simclr_jax import storage
from simclr_jax.evaluate.results import metric_title
from simclr_jax.studies.grid import Grid

_NAN = float('nan')
_METRICS = ('linear_accuracy', 'knn_accuracy')
_LAYERS = {0: 'h', -1: 'z'}
_LAST = {'contrastive_accuracy': 'contrastive accuracy %', 'contrastive_entropy': 'entropy, nats',
         'mined_share': 'anchors mined %'}
Records = Sequence[Mapping[str, Any]]       # of one cell, one of each seed; see `study.run_cell`
Found = Mapping[tuple[str, ...], Records]   # by the place of the cell


class Estimate(NamedTuple):
    """An accuracy in per cent: of one seed with its 95 % interval over the test images, of several their mean
    -+ one standard deviation; NaN before any is finished.
    """

    mean: float = _NAN
    low: float = _NAN
    high: float = _NAN
    num_seeds: int = 0

    def __str__(self) -> str:
        if not self.num_seeds:
            return ''
        return f'{self.mean:.1f} ' + (f'({self.low:.1f}-{self.high:.1f})' if self.num_seeds == 1 else
                                      f'± {(self.high - self.low) / 2:.1f}')


def render(grid: Grid, records: Records, directory: str) -> None:
    """Writes the table, and the figure if matplotlib is installed, of the records that there are.

    Some of cells that are not finished may be missing. Never leaves half a file.
    """
    found = {cell.place: [record for record in records if tuple(record['place']) == cell.place]
             for cell in grid.cells}
    columns = _columns(grid, found)
    flat = {}
    for name, values in columns.items():
        flat[name] = values
        if isinstance(values[0], Estimate):
            flat |= {name: [value.mean for value in values], f'{name}, low': [value.low for value in values],
                     f'{name}, high': [value.high for value in values]}
    storage.write_csv(os.path.join(directory, 'study.csv'), list(flat), list(zip(*flat.values())))
    figure = _figure(grid, found)
    if figure is not None:
        from simclr_jax.report.charts import as_png
        storage.write_atomically(os.path.join(directory, 'study.png'), as_png(figure))
    text = _describe(grid, found, columns, has_figure=figure is not None)
    storage.write_atomically(os.path.join(directory, 'study.md'), text.encode())


def _estimate(records: Records, layer: int, metrics: Sequence[str] = _METRICS) -> Estimate:
    """Of the first of `metrics` that the records have: top-1 of the linear probe, or else of kNN."""
    finished = [record for record in records if str(layer) in record.get('measures', {})]
    for name in metrics:
        values = [100 * record['measures'][str(layer)][name] for record in finished
                  if name in record['measures'][str(layer)]]
        if len(values) == 1:
            bounds = 100 * np.array(finished[0]['intervals'][str(layer)][name])
        elif values:
            bounds = np.mean(values) + np.std(values, ddof=1) * np.array([-1, 1])
        else:
            continue
        mean, low, high = (round(float(value), 3) for value in (np.mean(values), *bounds))
        return Estimate(mean, low, high, len(values))
    return Estimate()


def _columns(grid: Grid, found: Found) -> dict[str, list[Any]]:
    """{heading: a value for each cell}: places, `Estimate`s, what the log says last, the paper's, status."""
    columns: dict[str, list[Any]] = {name: [cell.place[axis] for cell in grid.cells]
                                     for axis, name in enumerate(grid.axes)}
    for layer in grid.layers:
        for name in _METRICS:
            estimates = [_estimate(records, layer, [name]) for records in found.values()]
            if any(estimate.num_seeds for estimate in estimates):
                of_layer = f', layer {layer}' if len(grid.layers) > 1 else ''
                columns[f'{metric_title(name)} %{of_layer}'] = estimates
    for name, heading in _LAST.items():
        scale = 1 if name == 'contrastive_entropy' else 100
        values = [[scale * record['last'][name] for record in records if name in record.get('last', {})]
                  for records in found.values()]
        if any(values):
            columns[heading] = [round(float(np.mean(one)), 3) if one else _NAN for one in values]
    failed = [next((record['failed'] for record in records if 'failed' in record), '')
              for records in found.values()]
    return columns | {
        'paper top-1 %': [cell.paper for cell in grid.cells],
        'seeds': [len(records) for records in found.values()],
        'seconds': [sum(record['seconds'] for record in records) or None for records in found.values()],
        'status': [f'failed: {words}' if words else 'finished' if records else 'to do'
                   for words, records in zip(failed, found.values())]}


# ---- study.md ----------------------------------------------------------------------------------------


def _describe(grid: Grid, found: Found, columns: Mapping[str, list], *, has_figure: bool) -> str:
    seeds = max(map(len, found.values()), default=0)
    uncertain = ('in brackets: 95 % interval over the test images, of one seed' if seeds < 2 else
                 f'mean and standard deviation of up to {seeds} seeds')
    parts = [f'# {grid.title}', f'{sum(map(bool, found.values()))} of {len(found)} cells; {uncertain}. '
                                f'Paper: {grid.source}.']
    if floors := [record['random'] for records in found.values() for record in records if 'random' in record]:
        name = next(name for name in _METRICS if name in floors[0])
        values = [100 * floor[name] for floor in floors]
        parts.append(f'The encoders before training have {min(values):.1f} to {max(values):.1f} '
                     f'{metric_title(name)} %.')
    ours = [_estimate(records, grid.layers[0]) for records in found.values()]
    pairs = [(estimate.mean, cell.paper) for estimate, cell in zip(ours, grid.cells)
             if estimate.num_seeds and cell.paper is not None]
    if len(pairs) > 2 and np.ptp(pairs, axis=0).all():         # a constant has no order
        order = spearmanr(*np.transpose(pairs))[0]
        parts.append(f'Order of the {len(pairs)} cells that the paper has too, here and there: '
                     f'Spearman correlation {order:.2f}.')
    if grid.chart == 'matrix':
        both = [[f'{_text(ours) or "-"} / {_text(paper) or "-"}' for ours, paper in zip(*row)]
                for row in zip(*_matrices(grid, found))]
        parts += [f'Rows: {grid.axes[0]}; columns: {grid.axes[1]}. Here, and in the paper.',
                  _markdown(['', *grid.levels(1)], [[name, *row] for name, row in zip(grid.levels(0), both)])]
    parts.append(_markdown(columns, zip(*columns.values())))
    parts.append('![](study.png)' if has_figure else
                 "No figure: matplotlib is not installed (pip install 'simclr_jax[report]').")
    return '\n\n'.join(parts) + '\n'


def _text(value: Any) -> str:
    if value is None or value != value:
        return ''
    return f'{value:.1f}' if isinstance(value, float) else str(value)


def _markdown(columns: Any, rows: Any) -> str:
    lines = [columns, ['---'] * len(columns), *rows]
    return '\n'.join('| ' + ' | '.join(_text(cell).replace('|', '/') for cell in line) + ' |'
                     for line in lines)


def _matrices(grid: Grid, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Ours and the paper's top-1 in per cent, [R, C] each; NaN where there is none."""
    ours, paper = np.full((2, len(grid.levels(0)), len(grid.levels(1))), _NAN)
    for cell in grid.cells:
        place = grid.levels(0).index(cell.place[0]), grid.levels(1).index(cell.place[1])
        ours[place] = _estimate(found[cell.place], grid.layers[0]).mean
        paper[place] = _NAN if cell.paper is None else cell.paper
    return ours, paper


# ---- study.png ---------------------------------------------------------------------------------------


def _figure(grid: Grid, found: Found) -> Any:
    """The chart of the study; None without matplotlib, or before any cell is finished."""
    if not any(_estimate(records, grid.layers[0]).num_seeds for records in found.values()):
        return None
    try:
        from simclr_jax.report import charts
    except ImportError:
        return None
    if grid.chart == 'matrix':
        ours, paper = _matrices(grid, found)
        return charts.heatmaps({'here': ours} | ({'paper': paper} if np.isfinite(paper).any() else {}),
                               grid.levels(0), grid.levels(1), y_label=grid.axes[0], x_label=grid.axes[1],
                               unit='top-1, %')
    joined = grid.chart == 'lines'
    lines = {}          # one for each place but for its last part; all cells of points are one
    for cell in grid.cells:
        lines.setdefault(' '.join(cell.place[:-1]) if joined else '', []).append(cell)
    series, errors, groups = {}, {}, {}
    for layer in grid.layers:
        ours = f'here, {_LAYERS.get(layer, f"layer {layer}")}' if len(grid.layers) > 1 else 'here'
        for name, cells in lines.items():
            label = ', '.join(filter(None, (name, ours)))
            mean, low, high, _ = np.transpose([_estimate(found[cell.place], layer) for cell in cells])
            series[label], errors[label], groups[label] = mean, np.nan_to_num([mean - low, high - mean]), name
    for name, cells in lines.items():
        if any(cell.paper is not None for cell in cells):
            label = ', '.join(filter(None, (name, 'paper')))
            series[label], groups[label] = np.array([cell.paper for cell in cells], float), name
    x = {label: [float(cell.place[-1]) if joined else ' '.join(cell.place) for cell in lines[name]]
         for label, name in groups.items()}
    return charts.lines({label: (x[label], values) for label, values in series.items()}, title=grid.title,
                        x_label=', '.join(grid.axes[-1:] if joined else grid.axes), y_label='top-1, %',
                        log_x=grid.log_x, markers=True, joined=joined, size=(6.4, 4.2), errors=errors,
                        groups=groups if joined else None,
                        legend_title=', '.join(grid.axes[:-1]) if joined else '')
