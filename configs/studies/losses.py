"""Loss functions (paper sec. 5.1, Tables 2 and 4): NT-Xent, NT-Logistic, margin; with semi-hard mining too.

    python -m simclr_jax.main --config=configs/studies/losses.py --workdir=DIR

All on l2-normalised projections. The paper tuned rate, temperature and margin of each (App. B.10: rates 0.01
to 1, temperatures 0.1 to 1, margins 0 to 1.6) and does not say which won. Here all have the rate of the
recipe, which is NT-Xent's own, a temperature of 0.2 and a margin of 0.8: middle values of its search.
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']


def get_config(argument=''):
    _, config, paper = _start(argument, 'losses')
    runs = {'NT-Xent': {},
            'NT-Logistic': {'method.loss': 'nt_logistic', 'method.temperature': 0.2},
            'margin': {'method.loss': 'margin', 'method.margin': 0.8}}
    for name in ('NT-Logistic', 'margin'):
        runs[f'{name}, semi-hard'] = runs[name] | {'method.mining': 'semi_hard'}
    cells = tuple(Cell((name,), overrides, paper['top1'][name]) for name, overrides in runs.items())
    config.study.grid = Grid('Loss functions', ('loss',), cells, 'points', paper['source'])
    return config
