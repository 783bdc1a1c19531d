"""Temperature, and l2 normalisation of z (paper sec. 5.1, Table 5).

    python -m simclr_jax.main --config=configs/studies/temperature.py --workdir=DIR

Contrastive accuracy and entropy are those of the last step that was logged, over all 2N-1 candidates; the
paper's are in its own batch of 4096.
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_TEMPERATURES = {'yes': ('0.05', '0.1', '0.5', '1'), 'no': ('10', '100')}


def get_config(argument=''):
    _, config, paper = _start(argument, 'temperature')
    cells = tuple(
        Cell((normalised, temperature),
             {'method.normalize': normalised == 'yes', 'method.temperature': float(temperature)},
             paper['top1'][normalised][temperature])
        for normalised, temperatures in _TEMPERATURES.items() for temperature in temperatures)
    config.study.grid = Grid('Temperature and l2 normalisation', ('l2', 'temperature'), cells, 'lines',
                             paper['source'], log_x=True)
    return config
