"""The labels that files and data sets hold -> classes from 0, and what is to be said of it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_NONE = -1
_SHOWN = 5      # values, in a note


def as_classes(labels: Any, class_names: Sequence[str] | None = None, where: str = 'the data', *,
               known: Iterable[Any] = ()) -> tuple[np.ndarray, tuple[str, ...] | None, list[str]]:
    """(labels int32 [N] from 0, -1 for none; the names of the classes, None without labels; notes).

    Args:
        labels: N integers or strings. -1 and None are no label, and so is 255 of uint8 labels of which no
            other is greater than 253.
        class_names: if given, label i is class i of these; else classes are the values, sorted.
        where: what holds them, for messages.
        known: other labels of the same data set: a class that one split lacks still counts in it.

    Raises:
        ValueError: labels below -1 or beyond `class_names`, or neither integers nor strings.
    """
    values = _plain(labels, where)
    everyone = np.concatenate([_plain(list(known), where), values])
    notes, is_text = [], values.dtype.kind == 'U' or everyone.dtype.kind == 'U'
    if is_text:
        values, everyone = values.astype(str), everyone.astype(str)
    none = '' if is_text else _NONE
    if getattr(labels, 'dtype', None) == np.uint8 and everyone.max() == 255 and not (everyone == 254).any():
        notes.append(f'{int((values == 255).sum()):,} labels of {where} are 255: no label.')
        values, everyone = np.where(values == 255, _NONE, values), np.where(everyone == 255, _NONE, everyone)
    classes = np.unique(everyone[everyone != none])
    if not is_text and classes.size and classes[0] < 0:
        raise ValueError(f'{where} has the label {classes[0]}: labels are 0, 1, 2, ..., and -1 is no label.')
    if not classes.size:
        return np.full(len(values), _NONE, np.int32), None, notes
    if class_names is not None and is_text and set(classes) <= set(map(str, class_names)):
        number = {str(name): label for label, name in enumerate(class_names)} | {none: _NONE}
        return np.array([number[value] for value in values], np.int32), tuple(map(str, class_names)), notes
    if class_names is not None and not is_text:
        if classes[-1] >= len(class_names):
            raise ValueError(f'{where} has the label {classes[-1]}, but names {len(class_names)} classes: '
                             f'labels are 0 to {len(class_names) - 1}.')
        return values.astype(np.int32), tuple(map(str, class_names)), notes
    if not is_text and not np.array_equal(classes, np.arange(len(classes))):
        notes.append(f'The labels of {where} are {_some(classes)}: they become the classes 0 to '
                     f'{len(classes) - 1}, in this order.')
    numbers = np.searchsorted(classes, values)
    return np.where(values == none, _NONE, numbers).astype(np.int32), tuple(map(str, classes)), notes


def members(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(label, its rows, ascending) of each label of int [N] that occurs, ascending: in one sort."""
    order = np.argsort(labels, kind='stable')
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [(int(labels[rows[0]]), rows) for rows in parts if rows.size]


def _plain(labels: Any, where: str) -> np.ndarray:
    """Labels as an array of integers or strings; None is -1 or ''."""
    if isinstance(labels, Sequence):
        found = [_number(label) for label in labels]
        empty = '' if any(isinstance(label, str) for label in found) else _NONE
        labels = np.array([empty if label is None else label for label in found] or np.zeros(0, int))
    labels = np.asarray(labels)
    if labels.dtype.kind not in 'iubU' or labels.size != len(labels):
        raise ValueError(f'{where} has labels of {labels.dtype}, shape {list(labels.shape)}: expected an '
                         'integer or a string for each image.')
    labels = labels.reshape(-1)
    return labels if labels.dtype.kind == 'U' else labels.astype(np.int64)


def _number(label: Any) -> Any:
    """A label of its own, where it is an array or a tensor of one element."""
    if label is None or isinstance(label, int | str):
        return label
    array = np.asarray(label)
    return array.item() if array.size == 1 else label


def _some(values: np.ndarray) -> str:
    shown = [*map(str, values[:_SHOWN])] + ([f'..., {values[-1]}'] if len(values) > _SHOWN else [])
    return ', '.join(shown)
