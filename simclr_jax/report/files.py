"""Files that a reader never finds half written."""

import csv
import io
import os
from collections.abc import Sequence
from typing import Any


def write_csv(path: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes a table to `path`, whole or not at all; NaN and None are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    writer.writerows([['' if cell is None or cell != cell else cell for cell in row] for row in rows])
    write_bytes(path, text.getvalue().encode())


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file under a temporary name first, so that a reader never finds half of it."""
    temporary = os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}.tmp')
    with open(temporary, 'wb') as file:
        file.write(data)
    os.replace(temporary, path)
