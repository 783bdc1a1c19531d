"""Composition of augmentations (paper sec. 3.1, Fig. 5): 7 operations, alone and in ordered pairs, 49 cells.

    python -m simclr_jax.main --config=configs/studies/augmentations.py --workdir=DIR
    python -m simclr_jax.main --config=configs/studies/augmentations.py:scale=cifar --workdir=DIR

The first operation is the row, the second the column; on the diagonal stands one alone. As in the paper only
ONE branch is changed: the other is the image itself. ImageNet's images are first cropped and resized, the two
branches alike; those of the other sets are of one size already, and whole.

What the operations are, where the paper does not say: crop has a flip with it, colour is jitter (in 80 %)
and grey (in 20 %) as in the full recipe, the others are made always: cutout of half the side, noise of
standard deviation 0.1, blur of sigma 0.1 to 2, rotation by 90, 180 or 270 degrees.
"""

import pathlib
import runpy

from simclr_jax.studies.grid import Cell, Grid

_start = runpy.run_path(str(pathlib.Path(__file__).parent / 'common.py'))['start']
_PARTS = {'crop': ('crop', 'flip'), 'colour': ('jitter', 'grey')}           # of the others: themselves
_ALWAYS = ('crop', 'cutout', 'sobel', 'noise', 'blur', 'rotate')


def get_config(argument=''):
    values, config, paper = _start(argument, 'augmentations')
    augment = config.augment
    view2 = {name: {'probability': 1.0} for name in _ALWAYS}
    view2 |= {name: {'probability': augment[name].probability} for name in ('flip', 'jitter', 'grey')}
    augment.view2 = view2
    for name in ('jitter', 'grey', 'blur'):
        augment[name].probability = 0.0                                     # of the other branch
    if values.scale != 'paper' or values.smoke:
        augment.crop.probability = augment.flip.probability = 0.0
    levels = paper['levels']
    cells = []
    for first, row in zip(levels, paper['top1']):
        for second, top1 in zip(levels, row):
            names = [first] if first == second else [first, second]
            sequence = tuple(op for name in names for op in _PARTS.get(name, (name,)))
            cells.append(Cell((first, second), {'augment.sequence': sequence}, top1))
    config.study.grid = Grid('Composition of augmentations', ('first operation', 'second operation'),
                             tuple(cells), 'matrix', paper['source'])
    return config
