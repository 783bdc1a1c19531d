"""What a study is: a grid of runs that differ in a few fields, and what the paper says of each."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import unflatten_dict

from simclr_jax.config import ConfigDict, check_values, flatten, nearest_field


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study."""

    place: tuple[str, ...]              # its level on each axis
    overrides: Mapping[str, Any]        # dotted field -> value, over the config of the study
    paper: float | None = None          # the paper's top-1 in per cent, if it has this run

    @property
    def name(self) -> str:
        """What its directory and its row are called: 'crop+colour'."""
        place = self.place[:1] if len(set(self.place)) == 1 else self.place
        return re.sub('[ ,]+', '_', '+'.join(place)).replace('/', 'of')


@dataclasses.dataclass(frozen=True)
class Grid:
    """All runs of a study."""

    title: str
    axes: tuple[str, ...]               # what each part of a cell's place is, with its unit
    cells: tuple[Cell, ...]
    chart: str                          # matrix (two axes), lines (the last axis is numbers) or points
    source: str                         # of the paper's numbers
    layers: tuple[int, ...] = (0,)      # that are measured, as eval.layer; the first is the result
    log_x: bool = False                 # of lines

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        if len(set(names)) < len(names):
            raise ValueError(f'The study has cells of the same name: {", ".join(sorted(names))}.')

    def __repr__(self) -> str:          # the config is printed when a run starts
        return f'{len(self.cells)} cells ({" x ".join(self.axes)})'

    def levels(self, axis: int) -> list[str]:
        """The levels of an axis in the order in which the cells name them."""
        return list(dict.fromkeys(cell.place[axis] for cell in self.cells))

    def choose(self, names: Sequence[str]) -> list[Cell]:
        """The cells called so; all of them if there are no names. ValueError for a name of no cell."""
        known = {cell.name: cell for cell in self.cells}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f'study.only names {unknown[0]!r}; the cells are {", ".join(known)}.')
        return [known[name] for name in names] or list(self.cells)


def cell_config(config: ConfigDict, cell: Cell, seed: int = 0) -> ConfigDict:
    """The config of a cell's run: that of the study, its own fields, and `seed` added to the seed.

    ValueError for a field that there is not, or a value that no run could use.
    """
    one = config.copy_and_resolve_references()
    one.task = 'pretrain'
    one.study.update({'grid': None, 'only': '', 'num_seeds': 1})
    one.seed = config.seed + seed
    fields = flatten(one)
    for name in cell.overrides:
        if name not in fields and not name.startswith(('augment.view1.', 'augment.view2.')):
            raise ValueError(f'The cell {cell.name!r} sets {name!r}, which is not a field; '
                             f'did you mean {nearest_field(one, name)!r}?')
    with one.unlocked():                # a view holds only what it overrides
        one.update(unflatten_dict(dict(cell.overrides), sep='.'))
    check_values(one)
    return one
