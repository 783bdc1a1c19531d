"""Strength of the colour distortion (paper sec. 3.2, Table 1): 1/8, 1/4, 1/2, 1, and 1 with blur.

    python -m simclr_jax.main --config=configs/studies/colour_strength.py --workdir=DIR

All strengths but the last without blur; AutoAugment, the paper's sixth column, is not in this program.
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_STRENGTHS = {'1/8': 1 / 8, '1/4': 1 / 4, '1/2': 1 / 2, '1': 1.0, '1 + blur': 1.0}


def get_config(argument=''):
    _, config, paper = _start(argument, 'colour_strength')
    cells = []
    for name, strength in _STRENGTHS.items():
        overrides = {f'augment.jitter.{field}': scale * strength for field, scale in (
            ('brightness', 0.8), ('contrast', 0.8), ('saturation', 0.8), ('hue', 0.2))}
        overrides['augment.blur.probability'] = 0.5 * ('blur' in name)
        cells.append(Cell((name,), overrides, paper['top1'][name]))
    config.study.grid = Grid('Strength of the colour distortion', ('strength',), tuple(cells), 'points',
                             paper['source'])
    return config
