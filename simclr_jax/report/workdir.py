"""What a workdir tells of its run: metrics, results, versions, notes, and its config beside others."""

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simclr_jax.training.checkpoint import load_config
from simclr_jax.config import flatten

_NOT_THE_RUN = ('task', 'data.dir', 'data.download', 'data.cache_dir', 'data.num_threads', 'log')
_MEASURE = re.compile(r'.+_(accuracy|per_class)(_k\d+)?')
_SAID = {'knn_accuracy': 'kNN top-1', 'linear_accuracy': 'linear top-1',
         'linear_top5_accuracy': 'linear top-5', 'logistic_accuracy': 'logistic top-1',
         'logistic_per_class': 'logistic, mean per class',
         'finetune_accuracy': 'fine-tuned top-1', 'finetune_top5_accuracy': 'fine-tuned top-5'}
_FLOORS = ('random', 'raw pixels')


def read_config(workdir: str) -> dict[str, Any]:
    """config.json. FileNotFoundError where the directory is no workdir; ValueError where it is damaged."""
    try:
        return load_config(workdir)
    except json.JSONDecodeError as error:
        raise ValueError(f'{workdir}/config.json is damaged: {error}.') from error


def read_rows(path: str) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that are whole; [] where there is none."""
    rows = []
    if os.path.isfile(path):
        with open(path, errors='replace') as file:
            for line in file:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:        # cut short by a kill
                    continue
                if isinstance(row, dict):
                    rows.append(row)
    return rows


def read_versions(workdir: str) -> dict[str, Any]:
    """versions.json; {} where there is none."""
    path = os.path.join(workdir, 'versions.json')
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        try:
            return json.load(file)
        except json.JSONDecodeError:
            return {}


def read_notes(workdir: str) -> str:
    """log.txt: what the run said; '' where there is none."""
    path = os.path.join(workdir, 'log.txt')
    if not os.path.isfile(path):
        return ''
    with open(path, errors='replace') as file:
        return file.read()


def column(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have `name`; null (not finite) is NaN."""
    found = [(row['step'], row[name]) for row in rows
             if 'step' in row and name in row and isinstance(row[name], (int, float, type(None)))]
    steps, values = zip(*found) if found else ((), ())
    return np.array(steps, float), np.array([np.nan if value is None else value for value in values], float)


def measured_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every metric that a row has, in order of appearance."""
    names = dict.fromkeys(name for row in rows for name, value in row.items()
                          if isinstance(value, (int, float)) and name not in ('step', 'time'))
    return list(names)


def when(rows: list[dict[str, Any]]) -> str:
    """From the first to the last row of metrics, in UTC; '' where they do not say."""
    times = [row['time'] for row in rows if isinstance(row.get('time'), (int, float))]
    if not times:
        return ''
    first, last = (datetime.datetime.fromtimestamp(time, datetime.timezone.utc)
                   for time in (min(times), max(times)))
    return f'{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC'


# ---- results -----------------------------------------------------------------------------------------


def evaluation_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number in the lines of results.jsonl, the last line of several alike.

    Rows hold 'evaluation', 'measure', 'encoder', 'value' and 'interval' ((low, high) or None) in [0, 1],
    'data', 'split', 'step', 'num_train', 'num_test' and 'is_floor'; what a line does not say is ''.
    """
    found = {}
    for line in results:
        for measure, value, interval in _numbers(line):
            row = {'evaluation': line.get('evaluation', ''), 'measure': _said(measure),
                   'encoder': line.get('encoder', ''), 'value': value, 'interval': interval,
                   'data': line.get('data', ''), 'split': line.get('split', ''),
                   'step': line.get('step', ''), 'num_test': line.get('num_test', ''),
                   'num_train': line.get('num_train', ''), 'is_floor': line.get('encoder') in _FLOORS}
            protocol = line.get('protocol') or {}
            row['encoder'] += f', layer {protocol["layer"]}' if protocol.get('layer') else ''
            if line.get('solver', protocol.get('solver')) != protocol.get('solver'):
                row['encoder'] += f', by {line["solver"]}'      # raw pixels beside a probe trained by SGD
            key = tuple(row[name] for name in ('evaluation', 'measure', 'encoder', 'data', 'split', 'step',
                                               'num_train'))
            found.pop(key, None)
            found[key] = row
    return list(found.values())


def _numbers(line: dict[str, Any]) -> Iterable[tuple[str, float, tuple[float, float] | None]]:
    for name, value in line.items():
        if isinstance(value, (int, float)) and _MEASURE.fullmatch(name):
            interval = line.get(f'{name}_interval')
            yield name, value, tuple(interval) if interval else None


def _said(measure: str) -> str:
    name, _, k = measure.partition('_k') if re.search(r'_k\d+$', measure) else (measure, '', '')
    return _SAID.get(name, name.replace('_', ' ')) + (f', k = {k}' if k else '')


# ---- config ------------------------------------------------------------------------------------------


def differences(run: Mapping[str, Any], *others: Mapping[str, Any], ignore: Iterable[str] = ()
                ) -> list[tuple[Any, ...]]:
    """(field, value of the run, of each other config) where they differ; 'absent' for a field not there.

    ignore: dotted names left out with all below them, beside those that are no part of a run: where its
    data lie, what it logs.
    """
    def fields(config):
        plain = json.loads(json.dumps(config))          # tuples as lists, as they are read back
        return {name: value for name, value in flatten(plain).items()
                if not any(f'{name}.'.startswith(f'{prefix}.') for prefix in (*_NOT_THE_RUN, *ignore))}

    flat = [fields(config) for config in (run, *others)]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = [(name, *(config.get(name, 'absent') for config in flat)) for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def as_lines(config: Mapping[str, Any]) -> str:
    """Every field, one a line: 'encoder.depth = 18'."""
    return '\n'.join(f'{name} = {json.dumps(value)}' for name, value in flatten(config).items())
