"""One HTML page with everything inside it: no script, no font, no request; for a screen, a phone and paper.

Plain string templates: the pages have a dozen kinds of element, and each function here escapes what it is
given. Names that end in `html` are markup already, all other text is not.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Section(NamedTuple):
    title: str
    html: str


# Nothing may be loaded but what the page itself holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { --ink: #1b1b1b; --soft: #595959; --rule: #d9d9d9; --back: #f6f6f4; --right: #0072B2;
  --wrong: #B84A00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 900px; padding: 1.5rem 1rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead, figcaption, .note { color: var(--soft); }
.note, figcaption { font-size: .875rem; line-height: 1.45; }
.missing { background: var(--back); border-left: 4px solid var(--soft); padding: .55rem .8rem; }
.warning { background: #fff4ea; border-left: 4px solid var(--wrong); padding: .55rem .8rem; }
nav { font-size: .875rem; margin: 1rem 0; }
nav a { display: inline-block; margin-right: 1rem; padding: .2rem 0; }
a { color: #005a8c; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
.box { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .32rem .8rem .32rem 0;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th { font-weight: 600; border-bottom: 2px solid #8a8a8a; vertical-align: bottom; }
td.short { white-space: nowrap; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
tr.floor td { color: var(--soft); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85em; }
pre { white-space: pre-wrap; background: var(--back); padding: .7rem; margin: .6rem 0; }
figure { margin: .8rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: .3rem 1.2rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: #005a8c; padding: .3rem 0; }
.sheet { border-collapse: collapse; }
.sheet th, .sheet td { border: 0; padding: .15rem .3rem; text-align: center;
  font-size: .75rem; line-height: 1.25; vertical-align: top; min-width: 4.6rem; max-width: 7rem;
  overflow-wrap: anywhere; }
.sheet th { font-weight: 600; vertical-align: bottom; }
.sheet img { display: block; width: 64px; height: 64px; margin: 0 auto .15rem; image-rendering: pixelated;
  object-fit: contain; }
.query { margin: 1rem 0; border-top: 1px solid var(--rule); padding-top: .6rem; }
.query h3 { margin: 0 0 .4rem; font-weight: 400; }
.cells { display: flex; flex-wrap: wrap; gap: .5rem; }
.cell { width: 84px; font-size: .75rem; line-height: 1.25; text-align: center; }
.cell img { display: block; width: 76px; height: 76px; margin: 0 auto .2rem; object-fit: contain;
  image-rendering: pixelated; border: 4px solid #b5b5b5; background: var(--back); }
.cell.first { margin-right: .8rem; }
.cell.right img { border-color: var(--right); }
.cell.wrong img { border-color: var(--wrong); border-style: dashed; }
.right b { color: var(--right); } .wrong b { color: var(--wrong); }
.gone { display: block; width: 76px; height: 76px; margin: 0 auto .2rem; border: 1px solid var(--rule); }
footer { margin-top: 3rem; color: var(--soft); font-size: .8rem; border-top: 1px solid var(--rule); }
@media (max-width: 480px) { dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dt { margin-top: .5rem; }
  h1 { font-size: 1.4rem; } body { padding-top: 1rem; } table { font-size: .8rem; }
  th, td { padding-right: .5rem; } .cell.first { margin-right: 0; } }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav, .files, details:not([open]) { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, .query, .cell { break-inside: avoid; }
  .box { overflow: visible; } table { font-size: 7.5pt; } th, td { padding-right: .5rem; }
  figure img { min-width: 0 !important; }
  .sheet th, .sheet td { min-width: 48px; padding: .1rem; font-size: 7pt; }
  .sheet img { width: 44px; height: 44px; }
  a { color: inherit; text-decoration: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
@page { margin: 16mm; }
"""


def render(title: str, lead: str, sections: Sequence[Section], *, footer: str = '') -> str:
    """The whole page; `title`, `lead` and `footer` are text."""
    links = ''.join(f'<a href="#part{number}">{escape(section.title)}</a> '
                    for number, section in enumerate(sections) if section.title)
    body = ''.join(
        f'<section id="part{number}">'
        + (f'<h2>{escape(section.title)}</h2>' if section.title else '') + f'{section.html}</section>\n'
        for number, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
        f'<body>\n<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>\n'
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{body}</main>\n'
        f'<footer><p>{escape(footer)}</p></footer>\n</body>\n</html>\n')


def escape(text: Any) -> str:
    """Text as markup, also inside an attribute."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, kind: str = '') -> str:
    """kind: '', 'note', 'warning', or 'missing': a sentence in the place of what is not there."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f'<p>{escape(text)}</p>'


def facts(pairs: Mapping[str, Any]) -> str:
    """Names and values, one pair a line."""
    return '<dl>' + ''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>'
                            for name, value in pairs.items()) + '</dl>'


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = (),
          soft: Sequence[int] = (), caption: str = '') -> str:
    """A table that scrolls in its own box. numeric: columns set right; soft: rows in grey."""
    def cells(row, tag):
        kinds = [' class="number"' if number in numeric else ' class="short"' if len(str(cell)) < 24 else ''
                 for number, cell in enumerate(row)]
        return ''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in zip(kinds, row))

    head = f'<caption>{escape(caption)}</caption>' if caption else ''
    body = ''.join(f'<tr class="{"floor" if number in soft else ""}">{cells(row, "td")}</tr>'
                   for number, row in enumerate(rows))
    return (f'<div class="box" tabindex="0" role="region" aria-label="{escape(caption or columns[0])}">'
            f'<table>{head}<thead><tr>{cells(columns, "th")}</tr></thead><tbody>{body}</tbody></table></div>')


def figure(png: bytes, alt: str, caption: str = '', *, width: int = 0, least: int = 0,
           files: Sequence[str] = ()) -> str:
    """A picture.

    Args:
        alt: what it shows, for those who cannot see it.
        width: in CSS pixels, at most; 0 = its own.
        least: the width below which it scrolls in its own box rather than shrink.
        files: relative paths of the picture and of its numbers.
    """
    style = ';'.join(filter(None, [width and f'width:{width}px', least and f'min-width:{least}px']))
    picture = f'<img src="{data_uri(png)}" alt="{escape(alt)}" style="{style}">'
    if least:
        picture = f'<div class="box" tabindex="0" role="region" aria-label="figure">{picture}</div>'
    return f'<figure>{picture}{_below(caption, files)}</figure>'


def _below(caption: str, files: Sequence[str]) -> str:
    text = ' '.join(filter(None, [escape(caption), file_links(files)]))
    return f'<figcaption>{text}</figcaption>' if text else ''


def file_links(files: Sequence[str]) -> str:
    """Where the numbers are: links to files beside the page."""
    links = ' '.join(f'<a href="{escape(file)}">{escape(file.rsplit(".", 1)[-1].upper())}</a>'
                     for file in files)
    return links and f'<span class="files">{links}</span>'


def details(summary: str, inner_html: str) -> str:
    """What shows on request."""
    return f'<details><summary>{escape(summary)}</summary>{inner_html}</details>'


def side_by_side(parts_html: Sequence[str]) -> str:
    """Two in a row where there is room, else one below the other."""
    return '<div class="pair">' + ''.join(f'<div>{part}</div>' for part in parts_html) + '</div>'


def data_uri(data: bytes) -> str:
    """A PNG or JPEG file as an address that holds it."""
    kind = 'png' if data.startswith(b'\x89PNG') else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
