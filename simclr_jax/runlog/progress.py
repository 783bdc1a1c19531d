"""The display of a run: a progress bar on a terminal, one plain line a row elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn
from rich.table import Column, Table

# What the display shows of a row, in this order; a row with none of these is shown whole.
_LABELS = {
    'loss': 'loss',
    'contrastive_accuracy': 'accuracy',
    'probe_accuracy': 'probe',
    'feature_rank': 'rank',
    'knn_accuracy': 'kNN',
    'knn_floor': 'baseline',
    'learning_rate': 'lr',
    'input_wait_share': 'input wait',
}
_LONG = 120         # seconds of encoding whose length is noted
# What a bar shows first, whose end a narrow terminal cuts off.
_FIRST = ('ETA', 'loss', 'contrastive_accuracy', 'knn_accuracy', 'knn_floor')


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


class Display:
    """What `stream` (default: sys.stdout) shows of a run: on a terminal a bar below the notes, else a line a row."""

    def __init__(self, stream: TextIO | None, start_step: int, total_steps: int):
        console = Console(file=stream or sys.stdout, markup=False, highlight=False, emoji=False)
        self._total_steps, self._parts = total_steps, {}
        self._stream, self._bar = console.file, None
        if console.is_terminal and not console.is_dumb_terminal:
            steps = Column(width=len(f'step {total_steps:,}/{total_steps:,}'))
            rest = Column(no_wrap=True, overflow='ellipsis', ratio=1)       # what a narrow terminal cuts off
            self._bar = Bar(TextColumn('step {task.completed:,.0f}/{task.total:,.0f}', table_column=steps),
                            BarColumn(bar_width=12, table_column=Column(width=12)),
                            TextColumn('{task.description}', markup=False, table_column=rest),
                            console=console, auto_refresh=False, expand=True)
            self._task = self._bar.add_task('', completed=start_step, total=total_steps)
            self._bar.start()
        elif start_step:
            self.note(f'resumed at step {start_step:,}/{total_steps:,}')

    def row(self, step: int, parts: dict[str, str]) -> None:
        if self._bar is None:
            self.note('  '.join([f'step {step:,}/{self._total_steps:,}', *parts.values()]))
            return
        self._parts |= parts
        shown = [self._parts[name] for name in sorted(
            self._parts, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))]
        self._bar.update(self._task, completed=step, refresh=True, description='  '.join(shown))

    def note(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        if self._bar is None:
            self.note(plain_table(title, columns, rows))
            return
        table = Table(*columns, title=title, title_justify='left')
        for row in rows:
            table.add_row(*row)
        self._bar.console.print(table)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def describe_row(row: dict[str, Any], steps_left: int, steps_per_second: float | None) -> dict[str, str]:
    """{name: 'label value'} of what the display shows of a row, the time that is left among it."""
    labels = {name: label for name, label in _LABELS.items() if name in row}
    rate = row.get('images_per_second')
    names = labels or {name: name for name in row if name != 'images_per_second'}
    parts = {name: f'{label} {row[name]:.4g}' for name, label in names.items() if name != 'input_wait_share'}
    if row.get('input_wait_share', 0.0) >= 0.01:
        parts['input_wait_share'] = f'input wait {100 * row["input_wait_share"]:.0f} %'
    if rate is not None:
        parts['images_per_second'] = f'{rate:,.{0 if rate >= 10 else 2}f} images/s'
    if steps_per_second:
        parts['ETA'] = 'ETA ' + duration(steps_left / steps_per_second)
    return parts


def noting_length(num_images: int, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
                  ) -> Callable[[], None]:
    """To be called after each of `num_images` that are encoded: notes once how long they take, if that is long."""
    done, started, is_known = 0, 0.0, False

    def advance():
        nonlocal done, started, is_known
        done, now = done + 1, clock()
        if done == 1:               # of the first batch, which was compiled
            started = now
        elif not is_known and now - started > 1.0:      # the calls of a batch come together, at its end
            seconds, is_known = (now - started) * num_images / (done - 1), True
            if seconds > _LONG:
                note(f'Reading and encoding {num_images:,} images takes about {duration(seconds)}.')

    return advance


def duration(seconds: float) -> str:
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
    """A table as text: a title, the columns, a rule, the rows."""
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in [columns, ['-' * width for width in widths], *rows]]
    return '\n'.join([title, *lines])
