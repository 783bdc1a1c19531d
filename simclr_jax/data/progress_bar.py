"""How far a long pass over images is: a bar on a terminal, a line a minute elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[], None]


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, is_shown: bool = True) -> Iterator[Advance]:
    """Gives a function to call after each of `total` images; shows nothing unless `is_shown`."""
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    if not is_shown:
        yield lambda: None
    elif console.is_terminal and not console.is_dumb_terminal:
        columns = (TextColumn('{task.description}', markup=False), BarColumn(bar_width=20),
                   MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
    else:
        done, last = 0, time.monotonic()

        def advance():
            nonlocal done, last
            done += 1
            if time.monotonic() - last >= 60:
                last = time.monotonic()
                print(f'{title}: {done:,}/{total:,} images', flush=True)

        print(f'{title}: {total:,} images', flush=True)
        yield advance
