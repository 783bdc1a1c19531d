"""Batch size by epochs (paper sec. 5.2, Fig. 9, Table B.1), under both scalings of the learning rate.

    python -m simclr_jax.main --config=configs/studies/batch_size.py --workdir=DIR
    python -m simclr_jax.main --config=configs/studies/batch_size.py:scaling=sqrt --workdir=OTHER

The two scalings meet at the batch of the recipe, whose runs stand under linear: that goes with B, sqrt with
the root of B. `scaling=both` is the default. Every run has a cosine schedule of its own length.
"""

import math
import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_BATCHES = {'paper': (256, 512, 1024, 2048, 4096, 8192), 'cifar': (128, 256, 512, 1024),
            'tiny': (32, 64, 128, 256)}
_EPOCHS = {'paper': (100, 200, 400, 800), 'cifar': (50, 100, 200), 'tiny': (2, 4, 8)}


def get_config(argument=''):
    values, config, paper = _start(argument, 'batch_size', scaling='both')
    if values.scaling not in ('linear', 'sqrt', 'both'):
        raise ValueError(f'scaling={values.scaling}: it is linear, sqrt or both.')
    batches, epochs = _BATCHES[values.scale], _EPOCHS[values.scale]
    if values.smoke:
        batches = (8, 16)
    elif values.scale == 'tiny':
        config.num_train_steps = 0
    own = {'paper': 4096, 'cifar': 512, 'tiny': 128}[values.scale]
    peak = config.optimizer.learning_rate * {'linear': own / 256, 'sqrt': math.sqrt(own), 'none': 1}[
        config.optimizer.scaling]                               # at the batch of the recipe
    config.optimizer.scaling = 'none'                           # each cell has its own rate
    cells = []
    for scaling in ('linear', 'sqrt') if values.scaling == 'both' else (values.scaling,):
        for batch in batches:
            if (values.scaling, scaling, batch) == ('both', 'sqrt', own):
                continue                                        # the linear one
            share = batch / own if scaling == 'linear' else math.sqrt(batch / own)
            for number, length in enumerate(epochs):
                cells.append(Cell(
                    (scaling, f'B {batch}', str(length)),
                    {'batch_size': batch, 'num_epochs': float(length),
                     'optimizer.learning_rate': peak * share},
                    _paper_top1(paper, scaling, batch, length)))
    config.study.grid = Grid('Batch size and epochs', ('scaling', 'batch', 'epochs'), tuple(cells), 'lines',
                             f'{paper["source"]}; sqrt: {paper["sqrt"]["source"]}', log_x=True)
    return config


def _paper_top1(paper, scaling, batch, length):
    if scaling == 'sqrt':
        return paper['sqrt']['top1'] if (batch, length) == (256, 100) else None
    row = dict(zip(paper['epochs'], paper['top1'].get(str(batch), [])))
    return row.get(length)
