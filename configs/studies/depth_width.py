"""Depth and width of the encoder (paper sec. 4.1, Fig. 7).

python -m simclr_jax.main --config=configs/studies/depth_width.py --workdir=DIR
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_SIZES = {'paper': ((18, 34, 50, 101, 152), (1.0, 2.0, 4.0)), 'cifar': ((18, 34, 50), (0.5, 1.0, 2.0)),
          'tiny': ((10, 18), (0.0625, 0.125, 0.25))}


def get_config(argument=''):
    values, config, paper = _start(argument, 'depth_width')
    depths, widths = _SIZES[values.scale]
    cells = tuple(
        Cell((str(depth), f'{width:g}'), {'encoder.depth': depth, 'encoder.width': width},
             paper['top1'].get(str(depth), {}).get(f'{width:g}') if values.scale == 'paper' else None)
        for depth in depths for width in widths)
    config.study.grid = Grid('Depth and width of the encoder', ('depth', 'width'), cells, 'lines',
                             paper['source'], log_x=True)
    return config
