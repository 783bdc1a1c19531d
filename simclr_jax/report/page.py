"""A page that holds all it shows, from page.html: a section is a list of blocks, and each block a dict.

The template escapes all text. Blocks by their 'kind', which page.html draws: text (look: '', 'note',
'warning', or 'missing' for a sentence in the place of what is not there), heading, lines, links, pairs,
table, figure, queries, images; 'side by side' and 'on request' hold other blocks.
"""

import base64
import importlib.resources
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from simclr_jax import storage
from simclr_jax.report import charts
from simclr_jax.report.tables import write_csv

Block = dict[str, Any]
_PIXELS_PER_INCH = 100      # on the page; the file has twice as many
_LARGE = 64                 # pixels a side, from which a thumbnail is a JPEG


class Cell(NamedTuple):
    """A small image with lines below it."""

    image: np.ndarray | None        # uint8 [H, W, 3], or float in [0, 1]; None where it cannot be had
    lines: tuple[str, ...] = ()
    is_right: bool | None = None    # marked by colour, border and sign; None: no judgement
    alt: str = ''                   # what it shows, for those who cannot see it


def text(words: str, look: str = '') -> Block:
    return {'kind': 'text', 'text': words, 'look': look}


def missing(what: str, why: Any) -> Block:
    """The sentence in the place of a part that could not be made."""
    return text(f'No {what}: {why}', 'missing')


def heading(words: str) -> Block:
    return {'kind': 'heading', 'text': words}


def lines(words: str) -> Block:
    """Text as it stands, line by line."""
    return {'kind': 'lines', 'text': words}


def pairs(values: Mapping[str, Any]) -> Block:
    """Names and values, one pair a line; without those that are ''."""
    return {'kind': 'pairs', 'pairs': {name: value for name, value in values.items() if value != ''}}


def side_by_side(blocks: Sequence[Block]) -> Block:
    """Two in a row where there is room, else one below the other."""
    return {'kind': 'side by side', 'blocks': blocks}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = (),
          soft: Sequence[int] = (), caption: str = '') -> Block:
    """A table that scrolls in its own box. numeric: columns set right; soft: rows in grey."""
    return {'kind': 'table', 'columns': columns, 'rows': rows, 'numeric': numeric, 'soft': soft,
            'caption': caption}


def on_request(summary: str, *blocks: Block) -> Block:
    return {'kind': 'on request', 'summary': summary, 'blocks': blocks}


def render(title: str, lead: str, sections: Mapping[str, Sequence[Block]], *, footer: str = '') -> str:
    """The whole page of {heading: blocks}; a heading of '' is not shown."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(thumbnail=thumbnail, data_uri=data_uri)
    template = importlib.resources.files('simclr_jax.report').joinpath('page.html').read_text()
    return environment.from_string(template).render(title=title, lead=lead, sections=sections, footer=footer)


def thumbnail(image: np.ndarray) -> bytes:
    """An image file of at most 96 pixels a side: PNG of small images, which lose nothing, else JPEG."""
    picture, buffer = Image.fromarray(charts.as_uint8(image)), io.BytesIO()
    picture.thumbnail((96, 96), Image.Resampling.LANCZOS)
    picture.save(buffer, **({'format': 'PNG', 'optimize': True} if max(picture.size) <= _LARGE else
                            {'format': 'JPEG', 'quality': 88}))
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """A PNG or JPEG file as an address that holds it."""
    kind = 'png' if data.startswith(b'\x89PNG') else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


class Figures:
    """Writes figures and their numbers to workdir/report/, a PNG and a CSV each."""

    def __init__(self, workdir: str):
        self._directory = os.path.join(workdir, 'report')

    def add(self, name: str, figure: Figure, columns: Sequence[str], rows: Sequence[Sequence[Any]], *,
            alt: str, caption: str = '', dense: bool = False) -> Block:
        """`columns` and `rows`: the numbers that were drawn. dense: not to be shrunk to a phone's width."""
        png = self._add_png(name, figure)
        return {'kind': 'figure', 'png': png, 'alt': alt, 'caption': caption, 'dense': dense,
                'width': round(_PIXELS_PER_INCH * figure.get_figwidth()),
                'files': [f'report/{name}.png', *self.add_csv(name, columns, rows)['files']]}

    def add_images(self, name: str, rows: Sequence[Sequence[Cell]], columns: Sequence[str],
                   table_rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> Block:
        """A sheet of images, which the page shows in another form: links to its files alone."""
        self._add_png(name, charts.image_sheet(rows, heads))
        self.add_csv(name, columns, table_rows)
        return {'kind': 'links', 'files': [f'report/{name}.png', f'report/{name}.csv']}

    def add_csv(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
        write_csv(os.path.join(self._directory, f'{name}.csv'), columns, rows)
        return {'kind': 'links', 'files': [f'report/{name}.csv']}

    def _add_png(self, name: str, figure: Figure) -> bytes:
        png = charts.as_png(figure)
        storage.write_atomically(os.path.join(self._directory, f'{name}.png'), png)
        return png
