"""Tables that a reader never finds half written."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from simclr_jax import storage


def write_csv(path: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table to `path`, whole or not at all; NaN and None are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([['' if cell is None or cell != cell else cell for cell in row] for row in rows])
    storage.write_atomically(path, text.getvalue().encode())
