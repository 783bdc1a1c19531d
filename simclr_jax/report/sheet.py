"""Sheets of small images: a query and its neighbours, or an image and what each operation makes of it."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simclr_jax.report import page

_SIDE, _WIDTH, _BORDER, _LINE = 96, 112, 5, 13      # of the PNG sheet, in pixels
_RIGHT, _WRONG, _NEUTRAL = '#0072B2', '#B84A00', '#b5b5b5'
_LARGE = 64                                         # pixels a side, from which a thumbnail is a JPEG
SIGNS = {True: '\N{CHECK MARK}', False: '\N{MULTIPLICATION X}', None: ''}


class Cell(NamedTuple):
    image: np.ndarray | None        # uint8 [H, W, 3]; None where it cannot be had
    caption: tuple[str, ...] = ()   # lines
    is_right: bool | None = None    # marked by colour, border and sign; None: no judgement
    alt: str = ''                   # what it shows


def thumbnail(image: np.ndarray, side: int = _SIDE) -> bytes:
    """An image file no larger than `side` pixels: PNG of small images, which lose nothing, else JPEG.

    image: uint8 [H, W, 3], or float in [0, 1].
    """
    picture, buffer = _picture(image), io.BytesIO()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(buffer, **({'format': 'PNG', 'optimize': True} if max(picture.size) <= _LARGE else
                            {'format': 'JPEG', 'quality': 88}))
    return buffer.getvalue()


def cell_html(cell: Cell, kind: str = '') -> str:
    """One image with its lines below."""
    mark = {True: 'right', False: 'wrong', None: ''}[cell.is_right]
    picture = ('<span class="gone"></span>' if cell.image is None else
               f'<img src="{page.data_uri(thumbnail(cell.image))}" alt="{page.escape(cell.alt)}">')
    sign = f'<b>{SIGNS[cell.is_right]} {mark}</b><br>' if mark else ''
    lines = '<br>'.join(map(page.escape, cell.caption))
    return f'<div class="cell {mark} {kind}">{picture}{sign}{lines}</div>'


def queries_html(rows: Sequence[tuple[str, Cell, Sequence[Cell]]]) -> str:
    """(title, query, its neighbours) below each other; the neighbours wrap to the width there is."""
    return ''.join(
        f'<div class="query"><h3>{page.escape(title)}</h3><div class="cells">{cell_html(query, "first")}'
        + ''.join(map(cell_html, neighbours)) + '</div></div>' for title, query, neighbours in rows)


def grid_html(columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    """A table of images under column heads; it scrolls in its own box."""
    def cell(item):
        lines = '<br>'.join(map(page.escape, item.caption))
        address = page.data_uri(thumbnail(item.image))
        return f'<td><img src="{address}" alt="{page.escape(item.alt)}">{lines}</td>'

    head = ''.join(f'<th scope="col">{page.escape(name)}</th>' for name in columns)
    body = ''.join('<tr>' + ''.join(map(cell, row)) + '</tr>' for row in rows)
    return (f'<div class="box" tabindex="0" role="region" aria-label="{page.escape(caption)}">'
            f'<table class="sheet"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def as_png(rows: Sequence[Sequence[Cell]], columns: Sequence[str] = ()) -> bytes:
    """The rows of cells as one image; `columns` are heads over them."""
    font = ImageFont.load_default(10)
    head = _LINE * max((len(name.split('\n')) for name in columns), default=0) + (6 if columns else 0)
    heights = [_SIDE + 2 * _BORDER + 8 + _LINE * max(len(_lines(cell)) for cell in row) for row in rows]
    sheet = Image.new('RGB', (_WIDTH * max(map(len, rows)), head + sum(heights)), 'white')
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(columns):
        _write(draw, font, number, 4, name.split('\n'))
    top = head
    for row, height in zip(rows, heights):
        for number, cell in enumerate(row):
            _draw_cell(sheet, draw, font, cell, number, top)
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


def _draw_cell(sheet, draw, font, cell: Cell, number: int, top: int) -> None:
    colour = {True: _RIGHT, False: _WRONG, None: _NEUTRAL}[cell.is_right]
    left = number * _WIDTH + (_WIDTH - _SIDE) // 2 - _BORDER
    side = _SIDE + 2 * _BORDER
    draw.rectangle((left, top, left + side - 1, top + side - 1), fill='#f6f6f4', outline=colour,
                   width=_BORDER if cell.is_right is not None else 1)
    if cell.image is not None:
        picture = _picture(cell.image)
        scale = _SIDE / max(picture.size)
        size = tuple(max(1, round(length * scale)) for length in picture.size)
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.resize(size, resample),
                    (left + _BORDER + (_SIDE - size[0]) // 2, top + _BORDER + (_SIDE - size[1]) // 2))
    _write(draw, font, number, top + side + 2, _lines(cell),
           colour if cell.is_right is not None else '#1b1b1b')


def _lines(cell: Cell) -> list[str]:
    mark = {True: ['+ right'], False: ['x wrong'], None: []}[cell.is_right]
    return mark + list(cell.caption)


def _write(draw, font, number: int, top: int, lines: Sequence[str], colour: str = '#1b1b1b') -> None:
    for row, line in enumerate(lines):
        line = line if len(line) <= 19 else f'{line[:8]}...{line[-8:]}'
        middle = number * _WIDTH + _WIDTH // 2
        draw.text((middle, top + row * _LINE), line, fill=colour, font=font, anchor='ma')


def _picture(image: np.ndarray) -> Image.Image:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Image.fromarray(image)
