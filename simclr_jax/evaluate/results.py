"""Where results go: a line of JSON each in results.jsonl, and a table for the reader."""

import json
import os
import re
from collections.abc import Iterable, Mapping

from simclr_jax import storage
from simclr_jax.evaluate.intervals import wilson_interval
from simclr_jax.runlog.writer import MetricWriter
from simclr_jax.runtime import sharding

_METRIC = re.compile(r'(.+?)_(accuracy|top5_accuracy|per_class)(?:_k(\d+))?')
_SHARES = {'accuracy': 'top-1', 'top5_accuracy': 'top-5', 'per_class': 'per class'}


def metric_title(name: str) -> str:
    """'kNN (k = 20) top-1' of 'knn_accuracy_k20'; '' of what is no share of right answers."""
    match = _METRIC.fullmatch(name)
    if not match:
        return ''
    classifier, share, k = match.groups()
    words = {'knn': 'kNN', 'finetune': 'fine-tuned'}.get(classifier, classifier.replace('_', ' '))
    return words + (f' (k = {k}) ' if k else ' ') + _SHARES[share]


def report_results(writer: MetricWriter, workdir: str, title: str, results: Mapping[str, Mapping], *,
                   num_test: int, details: Mapping[str, Mapping] | None = None, **provenance) -> None:
    """Appends a line for each encoder to workdir/results.jsonl and prints them as one table: the first process does.

    Args:
        title: above the table.
        results: {encoder name: {metric: value in [0, 1]}}.
        num_test: examples that each value is a mean over; gives each its 95 % interval (Wilson).
        details: {encoder name: what else its line says}, such as the l2 that was chosen for it.
        **provenance: what was evaluated: written into every line (data set, splits, step, counts).
    """
    if not sharding.is_lead():
        return
    intervals = {encoder: {name: wilson_interval(value, num_test) for name, value in values.items()}
                 for encoder, values in results.items()}
    append_lines(workdir, [
        {'encoder': encoder, **values,
         **{f'{name}_interval': list(interval) for name, interval in intervals[encoder].items()},
         'num_test': num_test, **provenance, **(details or {}).get(encoder, {})}
        for encoder, values in results.items()])
    names = list(dict.fromkeys(name for values in results.values() for name in values))
    writer.table(title + '; in brackets: 95 % interval over the test images',
                 ['encoder', *(f'{metric_title(name)} %' for name in names)],
                 [[encoder, *(percent(values[name], intervals[encoder][name]) if name in values else ''
                              for name in names)] for encoder, values in results.items()])


def append_lines(workdir: str, lines: Iterable[Mapping]) -> None:
    """Adds whole lines of JSON to workdir/results.jsonl, all of them or, if they will not do, none."""
    text = ''.join(json.dumps(line, allow_nan=False) + '\n' for line in lines)
    storage.append(os.path.join(workdir, 'results.jsonl'), text.encode())


def percent(value: float, interval: tuple[float, float]) -> str:
    """'49.6 (47.4-51.8)': a share and its interval in per cent."""
    return f'{100 * value:.1f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})'
