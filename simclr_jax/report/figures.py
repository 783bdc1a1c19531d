"""The figures of a page: each also a PNG and a CSV file beside it."""

import os
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from simclr_jax.report import charts, page
from simclr_jax.report.files import write_bytes, write_csv

_PIXELS_PER_INCH = 100      # on the page; the file has twice as many
_WIDE = 560                 # a dense figure is no narrower than this: it scrolls in a box on a phone


class Figures:
    """Writes figures and their numbers to workdir/report/, and gives them back as markup."""

    def __init__(self, workdir: str):
        self._workdir = workdir
        os.makedirs(os.path.join(workdir, 'report'), exist_ok=True)

    def add(self, name: str, figure: Figure, columns: Sequence[str], rows: Sequence[Sequence[Any]], *,
            alt: str, caption: str = '', dense: bool = False) -> str:
        """`columns` and `rows`: the numbers that were drawn. dense: not to be shrunk to a phone's width."""
        png = charts.write_png(self._path(f'{name}.png'), figure)
        self.add_csv(name, columns, rows)
        width = round(_PIXELS_PER_INCH * figure.get_figwidth())
        return page.figure(png, alt, caption, width=width, least=min(_WIDE, width) if dense else 0,
                           files=[f'report/{name}.png', f'report/{name}.csv'])

    def add_csv(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        write_csv(self._path(f'{name}.csv'), columns, rows)

    def add_image(self, name: str, png: bytes) -> None:
        """A sheet, which the page shows in another form."""
        write_bytes(self._path(f'{name}.png'), png)

    def _path(self, file: str) -> str:
        return os.path.join(self._workdir, 'report', file)
