"""Where measurements go: a line of JSON each in results.jsonl, and a table for the reader."""

import json
import os
from collections.abc import Mapping

from simclr_jax.evaluate.intervals import wilson_interval
from simclr_jax.runlog.writer import MetricWriter

# What a measure is called in a table; `knn_accuracy_k20` is kNN with k = 20.
_HEADINGS = {'knn_accuracy': 'kNN top-1 %', 'linear_accuracy': 'linear top-1 %',
             'linear_top5_accuracy': 'linear top-5 %', 'logistic_accuracy': 'logistic top-1 %',
             'logistic_per_class': 'logistic per class %', 'finetune_accuracy': 'fine-tuned top-1 %',
             'finetune_top5_accuracy': 'fine-tuned top-5 %'}
_K = 'knn_accuracy_k'


def report_results(writer: MetricWriter, workdir: str, title: str, results: Mapping[str, Mapping], *,
                   is_lead: bool, num_test: int,
                   intervals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
                   details: Mapping[str, Mapping] | None = None, **facts) -> None:
    """Appends a line for each encoder to workdir/results.jsonl and prints them as one table.

    Args:
        title: above the table.
        results: {encoder name: {measure: value in [0, 1]}}.
        is_lead: other processes write nothing.
        num_test: examples that each value is a mean over; gives each its 95 % interval (Wilson).
        intervals: {(encoder name, measure): interval} of the values that are no plain share.
        details: {encoder name: what else its line says}, such as the l2 that was chosen for it.
        **facts: what was measured: written into every line (data set, splits, step, counts).
    """
    if not is_lead:
        return
    rows, lines = [], []
    for encoder, values in results.items():
        bounds = {name: (intervals or {}).get((encoder, name)) or wilson_interval(value, num_test)
                  for name, value in values.items()}
        lines.append({'encoder': encoder, **values,
                      **{f'{name}_interval': list(bound) for name, bound in bounds.items()},
                      'num_test': num_test, **facts, **(details or {}).get(encoder, {})})
        rows.append((encoder, {name: percent(value, bounds[name]) for name, value in values.items()}))
    append_lines(workdir, lines)
    names = list(dict.fromkeys(name for _, cells in rows for name in cells))
    writer.table(title + '; in brackets: 95 % interval over the test images',
                 ['encoder', *map(_heading, names)],
                 [[encoder, *(cells.get(name, '') for name in names)] for encoder, cells in rows])


def append_lines(workdir: str, lines: list[Mapping]) -> None:
    """Adds whole lines of JSON to workdir/results.jsonl, all of them or, if they will not do, none."""
    text = ''.join(json.dumps(line, allow_nan=False) + '\n' for line in lines)
    with open(os.path.join(workdir, 'results.jsonl'), 'a') as file:
        file.write(text)


def percent(value: float, interval: tuple[float, float]) -> str:
    """'49.6 (47.4-51.8)': a share and its interval in per cent."""
    return f'{100 * value:.1f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})'


def _heading(name: str) -> str:
    return f'kNN (k = {name.removeprefix(_K)}) top-1 %' if name.startswith(_K) else _HEADINGS.get(name, name)
