"""Where measurements go: a line of JSON each in results.jsonl, and a table for the reader."""

import json
import os

from simclr_jax.metrics import MetricWriter

_ACCURACIES = {'knn_accuracy': 'kNN top-1 %', 'linear_accuracy': 'linear top-1 %',
               'linear_top5_accuracy': 'linear top-5 %'}


def report_results(writer: MetricWriter, workdir: str, title: str, results: dict[str, dict], *,
                   is_lead: bool, **facts) -> None:
    """Appends a line for each encoder to workdir/results.jsonl and prints them as one table.

    Args:
        title: above the table.
        results: {encoder name: {accuracy name: value in [0, 1]}}.
        is_lead: other processes write nothing.
        **facts: what was measured: written into every line (data set, split, step, counts).
    """
    if not is_lead:
        return
    with open(os.path.join(workdir, 'results.jsonl'), 'a') as file:
        for encoder, accuracies in results.items():
            file.write(json.dumps({'encoder': encoder, **accuracies, **facts}) + '\n')
    names = [name for name in _ACCURACIES if any(name in accuracies for accuracies in results.values())]
    writer.table(title, ['encoder', *(_ACCURACIES[name] for name in names)],
                 [[encoder, *(_percent(accuracies.get(name)) for name in names)]
                  for encoder, accuracies in results.items()])


def _percent(share: float | None) -> str:
    return '' if share is None else f'{100 * share:.1f}'
