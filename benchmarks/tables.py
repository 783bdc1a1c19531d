"""Writes the published tables from the JSON that the benchmarks left.

    python benchmarks/tables.py             # writes them into README.md, docs/*.md and benchmarks/RESULTS.md
    python benchmarks/tables.py --check     # writes nothing; exit status 1 names what is stale

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is a function of tables_learning.py
or tables_cost.py. The standard library alone.
"""

import argparse
import re
import sys

import tables_cost
import tables_learning
from table_cells import ROOT

PAGES = (ROOT / 'README.md', ROOT / 'benchmarks/RESULTS.md', *sorted((ROOT / 'docs').glob('*.md')))
MARKED = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- /table -->)', re.DOTALL)
MAKERS = {**vars(tables_learning), **vars(tables_cost)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a table is stale')
    arguments = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text()
        for whole in MARKED.finditer(text):
            made = f'{whole[1]}{MAKERS[whole[2]]()}{whole[3]}'
            if made != whole[0]:
                stale.append(f'{page.relative_to(ROOT)}: {whole[2]}')
                text = text.replace(whole[0], made)
        if not arguments.check:
            page.write_text(text)
    if arguments.check and stale:
        sys.exit('Stale, run python benchmarks/tables.py: ' + ', '.join(stale))
    print('\n'.join(stale) or 'All tables are as the JSON has them.')


if __name__ == '__main__':
    main()
