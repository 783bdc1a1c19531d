"""Which examples: held-out rows for choosing, a share of the labels, and lists of file names."""

import os

import numpy as np

from simclr_jax import storage
from simclr_jax.data.labels import members

_HELD_OUT_DRAW = 0x4E1D      # tells these draws from others of the same seed
_SHOWN = 3


def heldout_rows(num_examples: int, seed: int, *, at_most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows to fit on, rows to choose on): a seeded split of range(num_examples), each sorted.

    To choose on are a tenth, at least one and at most `at_most`. ValueError below two examples.
    """
    if num_examples < 2:
        raise ValueError(f'{num_examples} labelled training image cannot be split into one part to fit and '
                         'one to choose on.')
    count = max(1, min(round(0.1 * num_examples), at_most or num_examples))
    order = np.random.default_rng([seed, _HELD_OUT_DRAW]).permutation(num_examples)
    return np.sort(order[count:]), np.sort(order[:count])


def balanced_rows(labels: np.ndarray, share: float, seed: int, num_classes: int) -> np.ndarray:
    """Sorted rows of a class-balanced share of the labelled examples, a pure function of its arguments.

    Every class gives the same number, share * N / num_classes rounded; a smaller share of one seed is
    part of a larger one. share 1 takes every labelled example, balanced or not.

    Args:
        labels: int [N], -1 for none.
        share: in (0, 1].

    Raises:
        ValueError: the share is out of range, gives no example a class, or a class has too few.
    """
    if not 0 < share <= 1:
        raise ValueError(f'finetune.label_share is {share}: it must be in (0, 1].')
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    if (counts == 0).any():
        raise ValueError(f'Class {int(counts.argmin())} of {num_classes} has no training example: '
                         'give a split that has all classes.')
    if share == 1:
        return np.flatnonzero(labels >= 0)
    each = round(share * counts.sum() / num_classes)
    if each < 1:
        raise ValueError(f'finetune.label_share {share} of {counts.sum()} labels gives less than one to each '
                         f'of {num_classes} classes: take at least {num_classes / counts.sum():.2g}.')
    if counts.min() < each:
        raise ValueError(f'Class {int(counts.argmin())} has {counts.min()} training examples, but a balanced '
                         f'share of {share} takes {each} of each class: take a smaller one.')
    rows = [np.random.default_rng([seed, label]).permutation(rows)[:each]
            for label, rows in members(labels) if label >= 0]
    return np.sort(np.concatenate(rows))


def rows_of_files(names: list[str], path: str) -> np.ndarray:
    """Sorted rows of the examples that a text file lists, one file name a line (simclr's ImageNet lists).

    A line is a path as in `names`, or the file's own name alone, where that names one example.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it names files that are not among `names`, names one twice, or none.
    """
    if not storage.is_file(path):
        raise FileNotFoundError(f'finetune.subset_file: there is no file {path}.')
    wanted = [line.strip() for line in storage.read_bytes(path).decode().splitlines() if line.strip()]
    rows = {}
    for row, name in enumerate(names):
        for known in {name, os.path.basename(name)}:
            rows.setdefault(known, []).append(row)
    unknown = [name for name in wanted if len(rows.get(name, ())) != 1]
    if unknown or not wanted:
        some = ', '.join(unknown[:_SHOWN]) + (', ...' if len(unknown) > _SHOWN else '')
        raise ValueError(f'finetune.subset_file {path} names {len(unknown)} files of {len(wanted)} that the '
                         f'training split does not have, or has twice: {some}.' if unknown else
                         f'finetune.subset_file {path} names no file.')
    found = np.array([rows[name][0] for name in wanted])
    if len(np.unique(found)) < len(found):
        raise ValueError(f'finetune.subset_file {path} names a file twice.')
    return np.sort(found)
