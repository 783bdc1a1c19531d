"""The charts of reports and studies: colour-blind-safe, with labelled axes, as PNG.

matplotlib is an extra: `pip install 'simclr_jax[report]'`. Whoever can do without figures catches the
ImportError of this module. Figures are drawn without pyplot, so that nothing is global.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design"; black last, and its yellow left out: too pale for a line.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
RIGHT, WRONG = '#0072B2', '#B84A00'
MARKERS = 'osD^vPX*<>'
_LINES = ('-', '--', '-.', ':')
_DPI = 200
_STYLE: dict[Any, Any] = {
    'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans'], 'font.size': 9, 'axes.titlesize': 10,
    'axes.titleweight': 'bold', 'axes.titlelocation': 'left', 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.grid': True, 'grid.color': '#e4e4e4', 'grid.linewidth': 0.6,
    'axes.axisbelow': True, 'axes.edgecolor': '#555555', 'axes.labelcolor': '#222222',
    'xtick.color': '#333333', 'ytick.color': '#333333', 'legend.frameon': False, 'legend.fontsize': 8,
    'legend.title_fontsize': 8, 'legend.handlelength': 3.2,
    'figure.facecolor': 'white', 'lines.linewidth': 1.6, 'lines.markersize': 4,
}


def literal(name: str) -> str:
    """A name that a user gave, for matplotlib, which takes what stands between dollars for mathematics."""
    return name.replace('$', r'\$')


@matplotlib.rc_context(_STYLE)
def lines(series: Mapping[str, tuple[Any, Any]], *, x_label: str, y_label: str, title: str = '',
          log_x: bool = False, log_y: bool = False, markers: bool = False,
          x_limits: tuple[float, float] | None = None, errors: Mapping[str, Any] | None = None,
          groups: Mapping[str, str] | None = None, legend_title: str = '', joined: bool = True,
          size: tuple[float, float] = (4.4, 3.1)) -> Figure:
    """A line for each series, or its points alone.

    Args:
        series: {name: (x [P], values [P])}, x numbers or words; NaN leaves a gap.
        x_label, y_label: with units.
        markers: a mark at each point, for few of them; a logarithmic axis then has its ticks at them.
        x_limits: of the axis; None = of the points.
        errors: {name: (below, above) [2, P]} of error bars, in the unit of the values.
        groups: {name: group} of all series: a group has one colour, and each of its series its own dashes.
        legend_title: what the names of the series are.
        joined: whether a line joins the points; else each has a mark.
        size: in inches.
    """
    figure, axes = _start(title, size)
    groups = groups or {name: name for name in series}
    of_group = {group: [name for name in series if groups[name] == group] for group in groups.values()}
    colours = dict(zip(of_group, itertools.cycle(PALETTE)))
    for number, (name, (x, values)) in enumerate(series.items()):
        few = markers or not joined or np.isfinite(values).sum() < 3        # a lone point has no line
        dashes = _LINES[of_group[groups[name]].index(name) % len(_LINES)]
        axes.errorbar(x, values, (errors or {}).get(name), color=colours[groups[name]],
                      linestyle=dashes if joined else 'none',
                      label=name, capsize=2, elinewidth=0.9,
                      marker=MARKERS[number % len(MARKERS)] if few else None)
    if log_x:
        axes.set_xscale('log')
        if markers:
            ticks = sorted({tick for x, _ in series.values() for tick in x})
            axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
            axes.set_xticks([], minor=True)
    if log_y:
        axes.set_yscale('log')
    if not joined:
        axes.tick_params('x', rotation=30)
    axes.set(xlabel=x_label, ylabel=y_label, xlim=x_limits)
    if len(series) > 1:
        figure.legend(loc='outside lower left', ncols=3, title=legend_title or None, alignment='left')
    return figure


@matplotlib.rc_context(_STYLE)
def heatmaps(panels: Mapping[str, Any], rows: Sequence[str], columns: Sequence[str], *, x_label: str,
             y_label: str, unit: str, cell_format: str = '.1f') -> Figure:
    """Matrices [R, C] as colours, side by side, each with a colour bar of its own; NaN is an empty cell.

    The numbers stand in the cells where there are at most 15 columns. panels: {title: values}; unit: what
    the colour bars are labelled with.
    """
    rows, columns = [*map(literal, rows)], [*map(literal, columns)]
    has_numbers = len(columns) <= 15
    side = 0.46 if has_numbers else max(0.06, 3.6 / len(columns))
    size = max(len(panels) * (2.0 + side * len(columns)), 3.6), 1.4 + side * len(rows)
    figure = Figure(figsize=size, layout='constrained')
    for axes, (title, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        shown = axes.imshow(values, cmap='cividis', aspect='equal')
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha='right', rotation_mode='anchor')
        axes.set_yticks(range(len(rows)), rows)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label=unit)
        bar.outline.set_visible(False)
        for (row, column), value in np.ndenumerate(values):
            if has_numbers and np.isfinite(value):
                axes.text(column, row, format(value, cell_format), ha='center', va='center', fontsize=7.5,
                          color='black' if shown.norm(value) > 0.5 else 'white')
    return figure


@matplotlib.rc_context(_STYLE)
def histogram(samples: Mapping[str, np.ndarray], *, x_label: str, limits: tuple[float, float],
              title: str = '') -> Figure:
    """The densities of several samples over the same 60 bins between the `limits`."""
    figure, axes = _start(title, (4.4, 3.1))
    for (name, values), colour, line in zip(samples.items(), PALETTE, _LINES):
        axes.hist(values, np.linspace(*limits, 61).tolist(), density=True, histtype='stepfilled', label=name,
                  facecolor=to_rgba(colour, 0.3), edgecolor=colour, linestyle=line, linewidth=1.5)
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
                     label='no label' if label < 0 else literal(class_names[int(label)]))
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


@matplotlib.rc_context(_STYLE)
def image_sheet(rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> Figure:
    """Rows of `page.Cell`s: each image with its lines below, and `heads` over the columns.

    A cell that is right or wrong says so, in colour and with a whole or a dashed border.
    """
    num_columns = max(map(len, rows))
    height = 1.1 + 0.14 * max(len(cell.lines) for row in rows for cell in row)
    figure = Figure(figsize=(1.12 * num_columns, height * len(rows) + 0.3), layout='constrained')
    grid = figure.subplots(len(rows), num_columns, squeeze=False)
    for axes, head in zip(grid[0], heads):
        axes.set_title(head, fontsize=7, loc='center', fontweight='normal')
    for row, places in zip(rows, grid):
        for axes in places[len(row):]:
            axes.set_axis_off()
        for axes, cell in zip(places, row):
            colour, line, mark = {True: (RIGHT, '-', ('+ right',)), False: (WRONG, '--', ('x wrong',)),
                                  None: ('#b5b5b5', '-', ())}[cell.is_right]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=colour, linestyle=line, linewidth=3 if mark else 1)
            if cell.image is not None:
                axes.imshow(as_uint8(cell.image), interpolation='none')
            lines = [line if len(line) <= 19 else f'{line[:8]}...{line[-8:]}' for line in cell.lines]
            axes.set_xlabel('\n'.join((*mark, *lines)), fontsize=7, parse_math=False,
                            color=colour if mark else '#1b1b1b')
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file, white behind."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format='png', dpi=_DPI)
    return buffer.getvalue()


def as_uint8(image: np.ndarray) -> np.ndarray:
    """An image of uint8, or of float in [0, 1], as uint8."""
    return image if image.dtype == np.uint8 else np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _start(title: str, size: tuple[float, float]):
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes
