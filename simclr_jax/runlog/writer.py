"""What a run tells: a live display, metrics.jsonl, TensorBoard events and log.txt."""

from collections.abc import Iterator, Sequence
import contextlib
import json
import math
import os
import pathlib
import socket
import sys
import time
from typing import Any, Callable, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
# Not tensorboard.summary.Writer: that imports tensorflow wherever it is installed.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter

# What the display shows of a row, in this order; a row with none of these is shown whole.
_LABELS = {
    'loss': 'loss',
    'contrastive_accuracy': 'accuracy',
    'probe_accuracy': 'probe',
    'feature_rank': 'rank',
    'knn_accuracy': 'kNN',
    'knn_floor': 'floor',
    'learning_rate': 'lr',
    'input_wait_share': 'input wait',
}


class Throughput:
    """Steps per second between two calls, without the time spent in pause().

    The first call after `start_step` only starts the clock: the steps before it paid for
    compilation.
    """

    def __init__(self, start_step: int = 0, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._step = start_step
        self._since = None
        self._paused = 0.0

    def __call__(self, step: int) -> float | None:
        """The rate since the last call; None on the first one, and when no step was done."""
        if step <= self._step:
            return None
        now = self._clock()
        seconds = 0.0 if self._since is None else now - self._since - self._paused
        rate = (step - self._step) / seconds if seconds > 0 else None
        self._step, self._since, self._paused = step, now, 0.0
        return rate

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time spent inside (an evaluation, say) out of the rate."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start


class MetricWriter:
    """The only output of a training loop.

    Every row goes to workdir/metrics.jsonl, to TensorBoard events under workdir/tensorboard, and
    to the display: a progress bar on a terminal, one plain line a row elsewhere. A run that
    resumes at `start_step` first removes the rows after it, so that no step is told twice.

    Args:
        workdir: directory of the run, made when missing.
        total_steps: the step at which training ends.
        start_step: the step resumed from; 0 starts the metrics anew.
        batch_size: global batch, to tell images per second.
        is_lead: False on all processes but one: these write and print nothing.
        stream: where the display goes; default sys.stdout.
        writers: further ones that every row and note goes to.
    """

    def __init__(self, workdir: str | os.PathLike, *, total_steps: int, start_step: int = 0,
                 batch_size: int | None = None, is_lead: bool = True,
                 stream: TextIO | None = None, writers: Sequence[Any] = ()):
        self._writers = tuple(writers) if is_lead else ()
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._throughput = Throughput(start_step)
        self._open = is_lead
        if not is_lead:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_rows_after(workdir / 'metrics.jsonl', start_step)
        self._rows = open(workdir / 'metrics.jsonl', 'a')
        self._log = open(workdir / 'log.txt', 'a')
        self._events = _Events(workdir / 'tensorboard', start_step)
        console = Console(file=stream or sys.stdout, markup=False, highlight=False, emoji=False)
        display = _Bar if console.is_terminal and not console.is_dumb_terminal else _Lines
        self._display = display(console, start_step, total_steps)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one row.

        Args:
            step: the step the row belongs to.
            metrics: {name: float or scalar jax array}. Here the arrays are waited for, so hand
                over those of the step before and the devices stay busy. NaN and infinities become
                null in metrics.jsonl. 'images_per_second' is added when it is known.
        """
        if not self._open:
            return
        # device_get rather than float(): it is allowed under jax.transfer_guard('disallow').
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        steps_per_second = self._throughput(step)
        if steps_per_second and self._batch_size:
            row['images_per_second'] = self._batch_size * steps_per_second
        now = time.time()
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        line = {'step': step, 'time': round(now, 3), **finite}
        self._rows.write(json.dumps(line, allow_nan=False) + '\n')
        self._rows.flush()
        self._events.write(step, now, row)
        for writer in self._writers:
            writer.write(step, row)
        parts = _describe(row)
        if steps_per_second:
            parts['ETA'] = 'ETA ' + _duration((self._total_steps - step) / steps_per_second)
        self._display.row(step, parts)

    def note(self, text: str) -> None:
        """Tells the user one line, and keeps it in workdir/log.txt."""
        if self._open:
            self._keep(text)
            self._display.note(text)
            for writer in self._writers:
                writer.note(text)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Shows a table, and keeps it in workdir/log.txt; floats are cut to four digits."""
        if self._open:
            cells = [[f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row]
                     for row in rows]
            self._keep(plain_table(title, columns, cells))
            self._display.table(title, columns, cells)

    def pause(self) -> contextlib.AbstractContextManager[None]:
        """`with writer.pause():` leaves the time inside out of the throughput and the ETA."""
        return self._throughput.pause()

    def close(self) -> None:
        """Ends the display and closes the files; a second call does nothing."""
        if self._open:
            self._open = False
            self._display.close()
            self._events.close()
            self._rows.close()
            self._log.close()

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _keep(self, text: str) -> None:
        self._log.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")}  {text}\n')
        self._log.flush()


class _Events:
    """A TensorBoard event file of scalars."""

    def __init__(self, directory: pathlib.Path, start_step: int):
        directory.mkdir(exist_ok=True)
        # TensorBoard reads a directory's files in the order of their names.
        name = f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}'
        self._file = open(directory / name, 'wb')
        self._records = RecordWriter(self._file)
        now = time.time()
        self._add(Event(wall_time=now, file_version='brain.Event:2'))
        # A session start makes TensorBoard forget what earlier files say from this step on.
        self._add(Event(wall_time=now, step=start_step + 1 if start_step else 0,
                        session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, now: float, row: dict[str, float]) -> None:
        event = Event(wall_time=now, step=step)
        for name, value in row.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._add(event)

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()


class _Lines:
    """The display of a log: a line a row."""

    def __init__(self, console: Console, start_step: int, total_steps: int):
        self._stream = console.file
        self._total_steps = total_steps
        if start_step:
            self.note(f'resumed at step {start_step:,}/{total_steps:,}')

    def row(self, step: int, parts: dict[str, str]) -> None:
        self.note('  '.join([f'step {step:,}/{self._total_steps:,}', *parts.values()]))

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        self.note(plain_table(title, columns, rows))

    def close(self) -> None:
        self._stream.flush()


class _Bar:
    """The display of a terminal: a progress bar that stays below the notes."""

    def __init__(self, console: Console, start_step: int, total_steps: int):
        self._parts = {}
        self._progress = Progress(
            TextColumn('step {task.completed:,.0f}/{task.total:,.0f}', markup=False),
            BarColumn(bar_width=20),
            TextColumn('{task.description}', markup=False),
            console=console, auto_refresh=False)
        self._task = self._progress.add_task('', completed=start_step, total=total_steps)
        self._progress.start()

    def row(self, step: int, parts: dict[str, str]) -> None:
        self._parts |= parts
        self._progress.update(self._task, completed=step, refresh=True,
                              description='  '.join(self._parts.values()))

    def note(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(*columns, title=title, title_justify='left')
        for row in rows:
            table.add_row(*row)
        self._progress.console.print(table)

    def close(self) -> None:
        self._progress.stop()


def _drop_rows_after(path: pathlib.Path, start_step: int) -> None:
    """Rewrites metrics.jsonl without later rows, and without a line that a kill cut short."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True) if start_step else []
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(''.join(line for line in lines if _row_step(line) <= start_step))
    os.replace(temporary, path)


def _row_step(line: str) -> float:
    try:
        return json.loads(line)['step'] if line.endswith('\n') else math.inf
    except json.JSONDecodeError:
        return math.inf


def _describe(row: dict[str, float]) -> dict[str, str]:
    """{name: 'label value'} of what the display shows of a row."""
    labels = {name: label for name, label in _LABELS.items() if name in row}
    rate = row.get('images_per_second')
    names = labels or {name: name for name in row if name != 'images_per_second'}
    parts = {name: f'{label} {row[name]:.4g}' for name, label in names.items() if name != 'input_wait_share'}
    if row.get('input_wait_share', 0.0) >= 0.01:
        parts['input_wait_share'] = f'input wait {100 * row["input_wait_share"]:.0f} %'
    if rate is not None:
        parts['images_per_second'] = f'{rate:,.{0 if rate >= 10 else 2}f} images/s'
    return parts


def _duration(seconds: float) -> str:
    """'45 s', '7 min', '1 h 23 min', '2 d 3 h'."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def plain_table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in [columns, ['-' * width for width in widths], *rows]]
    return '\n'.join([title, *lines])
