"""The first run of a newcomer, whole: configs/smoke.py, its linear evaluation, and the run without colour.

    python benchmarks/smoke.py [--workdir=DIR] [smoke linear no_colour]

Adds seconds, processor seconds, accuracies with their intervals and what the command printed to
benchmarks/smoke.json, from which benchmarks/tables.py writes README.md and docs/getting_started.md. Some
6 minutes on two cores; nothing else should run beside it.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile

from runs import ROOT, train

RUNS = {'smoke': ('--config=configs/smoke.py',),
        'linear': ('--config=configs/smoke.py', '--config.task=linear', '--config.linear.pretrained={smoke}'),
        'no_colour': ('--config=configs/smoke.py:no_colour',)}
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def processor():
    """The name of the processor, as the system has it, and its widest vectors: AMD EPYC (AVX-512)."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        name = next(line.partition(': ')[2] for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
    flags = next((line.split() for line in lines if line.startswith('flags')), [])
    widest = next((word for flag, word in (('avx512f', 'AVX-512'), ('avx2', 'AVX2')) if flag in flags), '')
    return f'{name} ({widest})' if widest else name


def versions(packages=PACKAGES):
    """Of Python and of those packages that are installed."""
    found = {'python': platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('runs', nargs='*', help=f'of {", ".join(RUNS)}; default: all')
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    workdir = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    path = ROOT / 'benchmarks/smoke.json'
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.runs or RUNS:
        run = train(workdir / name, *(option.format(smoke=workdir / 'smoke') for option in RUNS[name]))
        accuracies = [row['contrastive_accuracy'] for row in run['metrics'] if 'contrastive_accuracy' in row]
        kept[name] = {
            'date': datetime.date.today().isoformat(), 'machine': f'{os.cpu_count()} cores, {processor()}',
            'versions': versions(), 'seed': 0, 'seconds': run['seconds'], 'cpu_seconds': run['cpu_seconds'],
            'contrastive_accuracy': accuracies[-1] if accuracies else None,
            'encoders': {encoder: {measure: [row[f'{measure}_accuracy'], *row[f'{measure}_accuracy_interval']]
                                   for measure in ('knn', 'linear') if f'{measure}_accuracy' in row}
                         for encoder, row in run['results'].items()},
            'output': run.get('output', [])}
        path.write_text(json.dumps(kept, indent=1) + '\n')
        print(json.dumps({**kept[name], 'output': '...'}, indent=1))


if __name__ == '__main__':
    main()
