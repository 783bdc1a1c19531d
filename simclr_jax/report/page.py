"""A page that holds all it shows, from page.html, which has the words and escapes all text.

Python gives it the numbers, rows and figures of each section: a dict whose 'kind' says how it is drawn.
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

Section = dict[str, Any]
_PIXELS_PER_INCH = 100      # on the page; the file has twice as many
_LARGE = 64                 # pixels a side, from which a thumbnail is a JPEG


class Cell(NamedTuple):
    """A small image with lines below it."""

    image: np.ndarray | None        # uint8 [H, W, 3], or float in [0, 1]; None where it cannot be had
    lines: tuple[str, ...] = ()
    is_right: bool | None = None    # marked by colour, border and sign; None: no judgement
    alt: str = ''                   # what it shows, for those who cannot see it


def absent(what: str, why: Any) -> Section:
    """The sentence in the place of a part that could not be made."""
    return {'kind': 'absent', 'what': what, 'why': why}


def render(title: str, lead: str, sections: Mapping[str, Section], *, footer: str = '') -> str:
    """The whole page of {heading: section}; the other arguments are text."""
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
        self.names = []         # of the tables that were written

    def add(self, name: str, figure: Figure, columns: Sequence[str], rows: Sequence[Sequence[Any]], *,
            alt: str = '', caption: str = '', dense: bool = False) -> dict[str, Any]:
        """A figure for the page. `columns` and `rows`: the numbers that were drawn.

        alt: what it shows, for those who cannot see it; dense: not to be shrunk to a phone's width.
        """
        png = charts.as_png(figure)
        storage.write_atomically(os.path.join(self._directory, f'{name}.png'), png)
        return {'png': png, 'alt': alt, 'caption': caption, 'dense': dense,
                'width': round(_PIXELS_PER_INCH * figure.get_figwidth()),
                'files': [f'report/{name}.png', *self.add_csv(name, columns, rows)]}

    def add_csv(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
        """The address of the table on the page."""
        self.names.append(name)
        storage.write_csv(os.path.join(self._directory, f'{name}.csv'), columns, rows)
        return [f'report/{name}.csv']
