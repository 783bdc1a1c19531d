"""What a report takes from the rows of a workdir, and its config beside others."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simclr_jax.evaluate.results import metric_title
from simclr_jax.training.workdir import compared

_NOT_THE_RUN = ('task', 'recipe', 'data.dir', 'data.download', 'data.cache_dir', 'data.num_threads', 'log')
_FLOORS = ('random', 'raw pixels')


def column(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have `name`; null (not finite) is NaN."""
    found = [(row['step'], row[name]) for row in rows
             if 'step' in row and name in row and isinstance(row[name], (int, float, type(None)))]
    steps, values = zip(*found) if found else ((), ())
    return np.array(steps, float), np.array([np.nan if value is None else value for value in values], float)


def when(rows: list[dict[str, Any]]) -> str:
    """From the first to the last row of metrics, in UTC; '' where they do not say."""
    times = [row['time'] for row in rows if isinstance(row.get('time'), (int, float))]
    if not times:
        return ''
    first, last = (datetime.datetime.fromtimestamp(time, datetime.UTC)
                   for time in (min(times), max(times)))
    return f'{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC'


# ---- results -----------------------------------------------------------------------------------------


def evaluation_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number in the lines of results.jsonl, the last line of several alike.

    Rows hold 'evaluation', 'measure', 'encoder', 'value' and 'interval' ([low, high] or None) in [0, 1],
    'data', 'split', 'step', 'num_train', 'num_test' and 'is_floor'; what a line does not say is ''.
    """
    found = {}
    for line in results:
        protocol = line.get('protocol') or {}
        encoder = str(line.get('encoder', ''))
        encoder += f', layer {protocol["layer"]}' if protocol.get('layer') else ''
        if line.get('solver', protocol.get('solver')) != protocol.get('solver'):
            encoder += f', by {line["solver"]}'         # raw pixels beside a probe trained by SGD
        row = {name: line.get(name, '') for name in ('evaluation', 'data', 'split', 'step', 'num_train')}
        for name, value in line.items():
            metric = metric_title(name)
            if not metric or not isinstance(value, (int, float)):
                continue
            key = row | {'measure': metric, 'encoder': encoder}
            found.pop(tuple(key.values()), None)
            found[tuple(key.values())] = key | {
                'value': value, 'interval': line.get(f'{name}_interval'),
                'num_test': line.get('num_test', ''), 'is_floor': line.get('encoder') in _FLOORS}
    return list(found.values())


# ---- config ------------------------------------------------------------------------------------------


def differences(run: Mapping[str, Any], *others: Mapping[str, Any], ignore: Iterable[str] = ()
                ) -> list[tuple[Any, ...]]:
    """(field, value of the run, of each other config) where they differ; 'absent' for a field not there.

    ignore: dotted names left out with all below them, beside those that are no part of a run: where its
    data lie, what it logs.
    """
    flat = [compared(config, (*_NOT_THE_RUN, *ignore)) for config in (run, *others)]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = [(name, *(config.get(name, 'absent') for config in flat)) for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]
