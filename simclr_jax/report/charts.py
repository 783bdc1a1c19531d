"""The charts of reports and studies: colour-blind-safe, with labelled axes, and written as PNG.

matplotlib is an extra: `pip install simclr_jax[report]`. Whoever can do without figures catches the
ImportError of this module. Figures are drawn without pyplot, so that nothing is global.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simclr_jax.report.files import write_bytes

# Okabe and Ito (2008), "Color Universal Design"; black last, and its yellow left out: too pale for a line.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
RIGHT, WRONG = '#0072B2', '#D55E00'
MARKERS = 'osD^vPX*<>'
_LINES = ('-', '--', '-.', ':')
_DPI = 200
_STYLE = {
    'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans'], 'font.size': 9, 'axes.titlesize': 10,
    'axes.titleweight': 'bold', 'axes.titlelocation': 'left', 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.grid': True, 'grid.color': '#e4e4e4', 'grid.linewidth': 0.6,
    'axes.axisbelow': True, 'axes.edgecolor': '#555555', 'axes.labelcolor': '#222222',
    'xtick.color': '#333333', 'ytick.color': '#333333', 'legend.frameon': False, 'legend.fontsize': 8,
    'legend.title_fontsize': 8, 'legend.handlelength': 3.2,
    'figure.facecolor': 'white', 'lines.linewidth': 1.6, 'lines.markersize': 4,
}


@matplotlib.rc_context(_STYLE)
def lines(x: Sequence[float] | Mapping[str, Sequence[float]], series: Mapping[str, Any], *, x_label: str,
          y_label: str, title: str = '', references: Mapping[str, float] | None = None, log_x: bool = False,
          log_y: bool = False, markers: bool = False, x_limits: tuple[float, float] | None = None,
          errors: Mapping[str, Any] | None = None, groups: Mapping[str, str] | None = None,
          legend_title: str = '', size: tuple[float, float] = (4.4, 3.1)) -> Figure:
    """A line for each series over one field.

    Args:
        x: the points [P] of all series, or {name: its own points}.
        series: {name: values [P], or [S, P] of S seeds}. Seeds are drawn as their mean and a band of one
            standard deviation on either side (ddof 1); NaN leaves a gap.
        x_label, y_label: with units.
        references: {name: height} of dashed horizontal lines: floors, a paper's number.
        markers: a mark at each point, for few of them; a logarithmic axis then has its ticks at them.
        x_limits: of the axis; None = of the points.
        errors: {name: (below, above) [2, P]} of error bars, in the unit of the values.
        groups: {name: group} of all series: a group has one colour, and each of its series its own dashes.
        legend_title: what the names of the series are.
        size: in inches.
    """
    figure, axes = _start(title, size)
    looks, ticks = _looks(series, groups), set()
    for number, (name, values) in enumerate(series.items()):
        points = np.asarray(x[name] if isinstance(x, Mapping) else x, float)
        ticks.update(points.tolist())
        middle, deviation = mean_and_deviation(values)
        colour, line = looks[name]
        few = markers or np.isfinite(middle).sum() < 3          # a lone point has no line
        axes.plot(points, middle, line, color=colour, label=name,
                  marker=MARKERS[number % len(MARKERS)] if few else None)
        if errors and name in errors:
            axes.errorbar(points, middle, errors[name], fmt='none', ecolor=colour, capsize=2, elinewidth=0.9)
        if deviation is not None:
            axes.fill_between(points, middle - deviation, middle + deviation, color=colour, alpha=0.2,
                              linewidth=0)
    for number, (name, height) in enumerate((references or {}).items()):
        axes.axhline(height, color='#555555', linestyle=_LINES[1 + number % 3], linewidth=1.1, label=name)
    if log_x:
        axes.set_xscale('log')
        if markers:
            axes.set_xticks(sorted(ticks), [f'{tick:g}' for tick in sorted(ticks)])
            axes.set_xticks([], minor=True)
    if log_y:
        axes.set_yscale('log')
    axes.set(xlabel=x_label, ylabel=y_label, xlim=x_limits)
    if len(series) + len(references or {}) > 1:
        figure.legend(loc='outside lower left', ncols=3, title=legend_title or None, alignment='left')
    return figure


@matplotlib.rc_context(_STYLE)
def bars(groups: Sequence[str], series: Mapping[str, Any], *, y_label: str, x_label: str = '',
         title: str = '', errors: Mapping[str, Any] | None = None,
         references: Mapping[str, float] | None = None, size: tuple[float, float] | None = None) -> Figure:
    """Grouped bars: one group for each of `groups`, one bar in it for each series.

    Args:
        series: {name: values [G]}, or [S, G] of S seeds, whose standard deviation is then the error.
            NaN leaves a bar out.
        errors: {name: half-widths [G], or (below, above) [2, G]} of error bars, in the unit of the values.
        references: {name: height} of dashed lines.
        size: in inches; None = by the number of groups.
    """
    figure, axes = _start(title, size or (max(4.4, 1.2 + 0.28 * len(groups) * (len(series) + 1)), 3.0))
    axes.grid(axis='x', visible=False)
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        middle, deviation = mean_and_deviation(values)
        error = (errors or {}).get(name, deviation)
        place = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        axes.bar(place, middle, 0.92 * width, color=PALETTE[number % len(PALETTE)], label=name, yerr=error,
                 capsize=2, error_kw={'linewidth': 0.9, 'ecolor': '#222222'})
    for name, height in (references or {}).items():
        axes.axhline(height, color='#555555', linestyle='--', linewidth=1.1, label=name)
    turned = sum(map(len, groups)) > 12 * axes.figure.get_figwidth()
    axes.set_xticks(range(len(groups)), groups, rotation=35 * turned, ha='right' if turned else 'center')
    axes.set(xlabel=x_label, ylabel=y_label)
    if len(series) + len(references or {}) > 1:
        figure.legend(loc='outside lower left', ncols=4)
    return figure


@matplotlib.rc_context(_STYLE)
def heatmap(values: Any, rows: Sequence[str], columns: Sequence[str], *, x_label: str = '',
            y_label: str = '', title: str = '', unit: str = '', cell_format: str = '.1f',
            beside: Mapping[str, Any] | None = None, cells: bool | None = None) -> Figure:
    """A matrix [R, C] as colours with its numbers in the cells; NaN is an empty cell.

    Args:
        unit: what the colour bars are labelled with.
        beside: {title: another matrix [R, C]}, drawn to the right with a colour bar of its own: a paper's.
        cells: whether the numbers are written; None = where there are at most 15 columns.
    """
    panels = {title: values, **(beside or {})}
    cells = len(columns) <= 15 if cells is None else cells
    side = 0.46 if cells else max(0.06, 3.6 / max(len(columns), 1))
    width = len(panels) * (2.0 + side * len(columns))
    figure = Figure(figsize=(max(width, 3.6), 1.4 + side * len(rows)), layout='constrained')
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        _draw_matrix(figure, axes, np.asarray(panel, float), rows, columns, name, unit,
                     cell_format if cells else '')
        axes.set(xlabel=x_label, ylabel=y_label)
    return figure


@matplotlib.rc_context(_STYLE)
def histogram(samples: Mapping[str, np.ndarray], *, x_label: str, title: str = '', bins: int = 60,
              limits: tuple[float, float] | None = None, size: tuple[float, float] = (4.4, 3.1)) -> Figure:
    """The densities of several samples over the same bins; `limits`: of the axis, None = of the samples."""
    figure, axes = _start(title, size)
    joined = np.concatenate([np.ravel(values) for values in samples.values()])
    edges = np.histogram_bin_edges(joined, bins, limits)
    for number, (name, values) in enumerate(samples.items()):
        axes.hist(np.ravel(values), edges, density=True, color=PALETTE[number], alpha=0.3)
        axes.hist(np.ravel(values), edges, density=True, color=PALETTE[number], histtype='step',
                  linestyle=_LINES[number % len(_LINES)], linewidth=1.5, label=name)
    axes.set(xlabel=x_label, ylabel='density')
    figure.legend(loc='outside lower left', ncols=2)
    return figure


@matplotlib.rc_context(_STYLE)
def scatter(points: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = (), *,
            x_label: str, y_label: str, title: str = '', size: tuple[float, float] = (4.4, 4.8)) -> Figure:
    """Points [N, 2], each class in a colour and mark of its own; more than 20 classes have no legend.

    labels: int [N] into `class_names`; -1, and None for all, is drawn grey.
    """
    figure, axes = _start(title, size)
    axes.grid(False)
    labels = np.full(len(points), -1) if labels is None else np.asarray(labels)
    for label in np.unique(labels):
        chosen = points[labels == label]
        mark = MARKERS[max(label, 0) // len(PALETTE) % len(MARKERS)]
        axes.scatter(*chosen.T, s=8, marker=mark, linewidths=0, alpha=0.75,
                     color='#777777' if label < 0 else PALETTE[label % len(PALETTE)],
                     label='no label' if label < 0 else class_names[label])
    axes.set(xlabel=x_label, ylabel=y_label)
    if 1 < len(np.unique(labels)) <= 20:
        figure.legend(loc='outside lower left', ncols=3, markerscale=1.6)
    return figure


@matplotlib.rc_context(_STYLE)
def thumbnail_map(points: np.ndarray, images: Sequence[np.ndarray], *, x_label: str, y_label: str,
                  title: str = '', size: tuple[float, float] = (7.2, 6.0)) -> Figure:
    """Images uint8 [H, W, 3] at points [N, 2], those left out that would lie over an earlier one."""
    figure, axes = _start(title, size)
    axes.grid(False)
    low, span = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-12)
    axes.set_xlim(low[0] - 0.04 * span[0], low[0] + 1.04 * span[0])
    axes.set_ylim(low[1] - 0.04 * span[1], low[1] + 1.04 * span[1])
    half, taken = np.array([0.018, 0.018 * size[0] / size[1]]), []
    for place, image in zip((points - low) / span, images):
        if all((np.abs(place - other) > 2 * half).any() for other in taken):
            taken.append(place)
            left, bottom = low + (place - half) * span
            right, top = low + (place + half) * span
            axes.imshow(image, extent=(left, right, bottom, top), aspect='auto', zorder=2)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def mean_and_deviation(values: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and standard deviation (ddof 1) over the seeds of [S, P]; of [P], the values and None."""
    values = np.asarray(values, float)
    if values.ndim == 1:
        return values, None
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None


# ---- files -------------------------------------------------------------------------------------------


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file, white behind."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format='png', dpi=_DPI)
    return buffer.getvalue()


def write_png(path: str, figure: Figure) -> bytes:
    """Writes the figure to `path`, whole or not at all, and returns the file's bytes."""
    data = as_png(figure)
    write_bytes(path, data)
    return data


# ---- parts -------------------------------------------------------------------------------------------


def _start(title: str, size: tuple[float, float]):
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _looks(names, groups: Mapping[str, str] | None) -> dict[str, tuple[str, str]]:
    """{name: (colour, dashes)}: by number, or by group and number within it."""
    known, looks = {}, {}
    for number, name in enumerate(names):
        members = known.setdefault(groups[name] if groups else number, [])
        members.append(name)
        place = list(known).index(groups[name]) if groups else number
        dashes = len(members) - 1 + place // len(PALETTE)
        looks[name] = PALETTE[place % len(PALETTE)], _LINES[dashes % len(_LINES)]
    return looks


def _draw_matrix(figure, axes, values, rows, columns, title, unit, cell_format) -> None:
    shown = axes.imshow(values, cmap='cividis', aspect='equal')
    axes.grid(False)
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(rows)), rows)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(unit)
    bar.outline.set_visible(False)
    finite = values[np.isfinite(values)]
    middle = (finite.min() + finite.max()) / 2 if len(finite) else 0.0
    for (row, column), value in np.ndenumerate(values):
        if cell_format and np.isfinite(value):
            axes.text(column, row, format(value, cell_format), ha='center', va='center', fontsize=7.5,
                      color='black' if value > middle else 'white')
