"""Writers of a run's metrics, notes and images: each gets every row, every note and every image.

A writer is anything with the three methods of `Writer`. metrics.jsonl, log.txt, TensorBoard events and the
display are always there; `log.writers` and `pretrain(writers=...)` add others.
"""

import contextlib
import copy
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO

import jax
import numpy as np

from simclr_jax import storage
from simclr_jax.runlog.jsonl import JsonLines
from simclr_jax.runlog.progress import Display, Throughput, describe_row, plain_table

# Those that a config names by a word, which is also our module and the extra: the class, and the package it needs.
_BY_WORD = {'wandb': ('WandB', 'wandb'), 'mlflow': ('MLflow', 'mlflow'),
            'tensorboard': ('TensorBoard', 'tensorboardX')}


class Writer(Protocol):
    """Where a run's numbers go. `close()`, if there is one, is called at the end."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """A row: what was measured at `step`, NaN and infinities among it."""

    def note(self, text: str) -> None:
        """A sentence to the reader."""

    def image(self, name: str, array: np.ndarray) -> None:
        """An image, uint8 [H, W, 3], of the step of the last row."""


def find_writer(name: str, resolve: Callable[[str, str, Sequence[str]], Any]) -> Callable[..., Writer]:
    """What `log.writers` names, 'wandb', 'mlflow', 'tensorboard' (which it then must have), or a class of the user's.

    Nothing is made or written.

    Args:
        name: a word, or 'package.module:Name', which is called as Name(workdir, start_step=..., config=...), the
            config as a flat dict.
        resolve: `config.names.resolve`.

    Raises:
        ValueError: there is no such writer, or what it needs is not installed.
    """
    if name not in _BY_WORD:
        return resolve(name, 'log.writers', tuple(_BY_WORD))
    class_name, package = _BY_WORD[name]
    if not importlib.util.find_spec(package):
        raise ValueError(f"log.writers names {name!r}, which is not installed: pip install 'simclr_jax[{name}]'.")
    return getattr(importlib.import_module(f'simclr_jax.runlog.{name}'), class_name)


def check_writers(writers: Any) -> None:
    """ValueError unless these, given by Python, are writers."""
    if not isinstance(writers, list | tuple):
        raise ValueError(f'writers is {writers!r}: it takes a list of writers.')
    for writer in writers:
        has = (callable(getattr(writer, name, None)) for name in ('write', 'note', 'image'))
        if isinstance(writer, type) or not all(has):
            raise ValueError(f'writers has {writer!r}: a writer has write(step, metrics), note(text) and '
                             "image(name, array); a class is called first, or named in the config's log.writers.")


def _made(make: Callable[[], Writer]) -> Writer:
    try:
        return make()
    except Exception as error:
        name = getattr(getattr(make, 'func', make), '__name__', repr(make))
        raise ValueError(f'The writer {name} of log.writers cannot be made: {type(error).__name__}: '
                         f'{storage.first_line(error)}.') from error


class MetricWriter:
    """The only output of a training loop: it hands all on to the writers of a run.

    Every row goes to workdir/metrics.jsonl, to TensorBoard events under workdir/tensorboard (where
    tensorboardX is installed), to the display, and to the writers that are given. A run that resumes at
    `start_step` first removes the rows after it, so that no step is told twice. One of the given writers
    that raises an error gets nothing more, which is noted once, and the run continues; that the run's own
    files cannot be written (OSError) ends it.

    Args:
        workdir: directory of the run, made when missing.
        total_steps: the step at which training ends.
        start_step: the step resumed from; 0 starts the metrics anew.
        batch_size: global batch, to tell images per second.
        is_lead: whether this process writes and prints; None: whether it is the first.
        stream: where the display goes; default sys.stdout.
        writers: further ones, or functions of nothing that make one, called on the lead process alone.
    """

    def __init__(self, workdir: str | os.PathLike, *, total_steps: int, start_step: int = 0,
                 batch_size: int | None = None, is_lead: bool | None = None,
                 stream: TextIO | None = None, writers: Sequence[Writer | Callable[[], Writer]] = ()):
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._throughput = Throughput(start_step)
        self._open = jax.process_index() == 0 if is_lead is None else is_lead
        if not self._open:
            return
        self._workdir = workdir
        storage.make_dirs(workdir)
        self._given = [_made(writer) if callable(writer) and not hasattr(writer, 'write') else writer
                       for writer in writers]
        self._files = JsonLines(workdir, start_step=start_step)
        if importlib.util.find_spec('tensorboardX'):
            from simclr_jax.runlog.tensorboard import TensorBoard
            if not any(isinstance(writer, TensorBoard) for writer in self._given):
                self._given.append(TensorBoard(workdir, start_step=start_step))
        self._display = Display(stream, start_step, total_steps)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one row.

        Args:
            step: the step the row belongs to.
            metrics: {name: float or scalar jax array}; uint8 arrays [H, W, 3] go to `image`. Here the
                arrays are waited for, so hand over those of the step before and the devices stay busy.
                'images_per_second' is added when it is known.
        """
        if not self._open:
            return
        # device_get rather than float(): it is allowed under jax.transfer_guard('disallow').
        values = jax.device_get(metrics)
        images = {name: value for name, value in values.items() if np.ndim(value) == 3}
        for name, value in values.items():
            if np.ndim(value) and name not in images or np.iscomplexobj(value):
                raise ValueError(f"The metric '{name}' is {np.asarray(value).dtype} {list(np.shape(value))}: it takes "
                                 'a real scalar, or an image uint8 [H, W, 3].')
        row = {name: float(value) for name, value in values.items() if name not in images}
        steps_per_second = self._throughput(step)
        if steps_per_second and self._batch_size:
            row['images_per_second'] = self._batch_size * steps_per_second
        if row:
            self._files.write(step, row)
            self._display.row(step, describe_row(row, self._total_steps - step, steps_per_second))
            self._hand_on('write', step, row)
        for name, array in images.items():
            self.image(name, array)

    def note(self, *texts: str) -> None:
        """Tells the user a line each, equal ones once, and keeps them in workdir/log.txt."""
        for text in dict.fromkeys(texts if self._open else ()):
            self._files.note(text)
            self._display.note(text)
            self._hand_on('note', text)

    def image(self, name: str, array: np.ndarray) -> None:
        """An image, uint8 [H, W, 3], for the writers that keep images."""
        if self._open:
            self._hand_on('image', name, array)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Shows a table, and keeps it in workdir/log.txt; floats are cut to four digits."""
        if self._open:
            cells = [[f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row]
                     for row in rows]
            text = plain_table(title, columns, cells)
            self._files.note(text)
            self._display.table(title, columns, cells)
            self._hand_on('note', text)

    def publish(self) -> None:
        """Brings the files to a workdir in a bucket; a local one has every row as soon as it is written."""
        if self._open:
            storage.publish(self._workdir)

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """`with writer.pause():` leaves the time inside out of the throughput and the ETA."""
        return self._throughput.pause()

    def close(self) -> None:
        """Ends the display and closes the files; a second call does nothing."""
        if self._open:
            self._hand_on('close')
            self._open = False
            self._display.close()
            self._files.close()
            storage.publish(self._workdir)

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, kind, *exception) -> None:
        with contextlib.suppress(*(storage.StoreError,) if kind else ()):      # the first error is the one to tell of
            self.close()

    def _hand_on(self, method: str, *arguments: Any) -> None:
        for writer in self._given:
            try:        # a copy of a row: a writer may take something out of it
                getattr(writer, method, lambda *arguments: None)(*map(copy.copy, arguments))
            except Exception as error:      # whatever it is: a run of days does not end for a log
                self._given = [each for each in self._given if each is not writer]
                self.note(f'{type(writer).__name__}.{method} failed and is not called again; the run '
                          f'continues: {type(error).__name__}: {error}')
