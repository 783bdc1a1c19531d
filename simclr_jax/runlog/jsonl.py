"""metrics.jsonl, a row a line, and log.txt, what was said and when: written, and read again as versions.json is."""

import contextlib
import errno
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, TextIO

from simclr_jax import storage


def read_rows(workdir: str, file: str) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that are whole; [] where there is none."""
    rows = map(_parse, read_text(workdir, file).splitlines())
    return [row for row in rows if isinstance(row, dict)]


def read_versions(workdir: str) -> dict[str, Any]:
    """versions.json; {} where there is none."""
    return _parse(read_text(workdir, 'versions.json')) or {}


def read_text(workdir: str, file: str) -> str:
    """'' where there is no such file."""
    path = os.path.join(workdir, file)
    return storage.read_bytes(path).decode(errors='replace') if storage.exists(path) else ''


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:        # cut short by a kill
        return None


class JsonLines:
    """Rows as JSON in workdir/metrics.jsonl, on disk as soon as they are written, and notes in log.txt.

    Of a workdir in a bucket they are written to a local file, which `storage.publish` brings there.

    NaN and infinities become null. Rows after `start_step`, and a line that a kill cut short, are removed
    first, so that no step is written twice. A file that cannot be written is an OSError that names it.
    """

    def __init__(self, workdir: str | os.PathLike, *, start_step: int = 0):
        path, log = (pathlib.Path(storage.fetch(workdir, name)) for name in ('metrics.jsonl', 'log.txt'))
        with _named(path):
            _drop_rows_after(path, start_step)
        self._rows = open(path, 'a')
        self._log = open(log, 'a')

    def write(self, step: int, metrics: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {'step': step, 'time': round(time.time(), 3), **finite}
        _append(self._rows, json.dumps(line, allow_nan=False) + '\n')

    def note(self, text: str) -> None:
        _append(self._log, f'{time.strftime("%Y-%m-%d %H:%M:%S")}  {text}\n')

    def close(self) -> None:
        self._rows.close()
        self._log.close()


def _append(file: TextIO, text: str) -> None:
    if file.closed:         # it has failed before, which was told
        return
    with _named(file.name):
        try:
            file.write(text)
            file.flush()
        except OSError:
            with contextlib.suppress(OSError):      # or closing it later writes again, and fails in other words
                file.close()
            raise


@contextlib.contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = 'make room there' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'mend that'
        raise OSError(f'{path} cannot be written ({error.strerror}): {mend}, and start again to resume.') from error


def _drop_rows_after(path: pathlib.Path, start_step: int) -> None:
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
