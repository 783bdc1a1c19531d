"""What the published tables are written with: the benchmarks' JSON in, Markdown out. The standard library alone.

A cell is a template of its row, as str.format has them, with three additions:

    {flops:.2f T}       in a unit (UNITS, PARTS), and then formatted
    {resume:small}      by a function (FORMS)
    {head?:small}       empty where the row has no such name; None is an empty cell too
"""

import json
import pathlib
import re
import statistics
import string

ROOT = pathlib.Path(__file__).parent.parent
PARTS = {'%': 100, 'ms': 1000}
UNITS = {'M': 1e6, 'G': 1e9, 'T': 1e12, 'MiB': 1 << 20, 'GiB': 1 << 30}


def read(name):
    return json.loads((ROOT / 'benchmarks' / f'{name}.json').read_text())


def only(name, start=''):
    """The rows of the one entry of NAME.json whose title begins with `start`."""
    (rows,) = [entry['rows'] for title, entry in read(name).items() if title.startswith(start)]
    return rows


def small(number):
    """1.9e-6, without the zero that Python puts into an exponent."""
    return '' if number is None else '0' if number == 0 else short(number, '.1e')


def short(number, form):
    return re.sub(r'e-0', 'e-', f'{number:{form}}')


def interval(values):
    return f'{100 * values[0]:.1f} ({100 * values[1]:.1f}-{100 * values[2]:.1f})'


def seeds(values, scale=100):
    mean = f'{scale * statistics.mean(values):.1f}'
    return f'{mean} ± {scale * statistics.stdev(values):.1f}' if len(values) > 1 else mean


def sent(collectives):
    return ', '.join(f'{each["count"]} {kind}: {each["bytes"] / 1e6:.1f} MB' for kind, each in collectives.items())


FORMS = {'small': small, 'interval': interval, 'sent': sent,
         'seeds': seeds,                             # of shares; points are of per cents
         'loss': lambda number: short(number, '.3g'),
         'points': lambda values: seeds(values, 1),
         'mean': lambda values: f'{statistics.mean(values):.1f}',
         'rounded mean': lambda values: f'{statistics.mean(values):.0f}',
         'count': len,
         'yes': lambda value: 'yes' if value else '**no**'}


class _Cells(string.Formatter):

    def get_field(self, field_name, args, kwargs):
        if field_name.endswith('?'):
            return kwargs.get(field_name[:-1]), field_name
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value, format_spec):
        if value is None:
            return ''
        if format_spec in FORMS:
            return str(FORMS[format_spec](value))
        form, _, unit = format_spec.partition(' ')
        return format(value * PARTS[unit] if unit in PARTS else value / UNITS[unit] if unit else value, form)


def cell(template, row):
    return _Cells().vformat(template, (), row)


def table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return ''.join('|' + ''.join(' |' if cell == '' else f' {cell} |' for cell in line) + '\n' for line in lines)


def table_of(rows, *columns, before=()):
    """A table of `rows`, dicts, after the finished lines `before`; a column is (heading, template)."""
    return table([head for head, _ in columns],
                 [*before, *([cell(template, row) for _, template in columns] for row in rows)])
