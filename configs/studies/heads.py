"""Projection heads (paper sec. 4.2, Fig. 8): none, linear, nonlinear, and the width of z; h against g(h).

    python -m simclr_jax.main --config=configs/studies/heads.py --workdir=DIR

Layer 0 is h, before the head; layer -1 is z = g(h), behind it.
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_WIDTHS = {'paper': (32, 64, 128, 256, 512, 1024, 2048), 'cifar': (32, 128, 512, 2048),
           'tiny': (32, 128, 512)}


def get_config(argument=''):
    values, config, paper = _start(argument, 'heads')
    widths = _WIDTHS[values.scale]
    cells = [Cell((mode, str(width)), {'head.mode': mode, 'head.out_dim': width})
             for mode in ('linear', 'nonlinear') for width in widths]
    # Without a head z is h: one run, which stands at the features' own width.
    own = {'paper': 2048, 'cifar': 512, 'tiny': 64}[values.scale]
    cells.append(Cell(('none', str(own)), {'head.mode': 'none'}))
    config.study.grid = Grid('Projection heads', ('head', 'width of z'), tuple(cells), 'lines',
                             paper['source'], layers=(0, -1), log_x=True)
    return config
