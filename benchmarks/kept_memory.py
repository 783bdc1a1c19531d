"""What `keep_freed_memory` saves and costs on a CPU: processor time, page faults and peak memory of a step.

    python benchmarks/kept_memory.py --rounds=3

Runs of the command with and without it, in turns, on the embedded shapes: a ResNet-18 on 128 images of 32 px, of
16 and of 64 channels. `Usage`, an evaluator, notes what the system counts of the process.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile

import jax

ROOT = pathlib.Path(__file__).parents[1]
FIRST, LAST = 4, 16         # steps between which is measured: the program is compiled, the memory taken


class Usage:
    """{'processor_seconds', 'page_faults', 'peak_mib'} of the process up to a step."""

    every_steps = 4

    def __call__(self, encode, step):
        jax.block_until_ready(encode.state.step)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {'processor_seconds': used.ru_utime + used.ru_stime, 'page_faults': float(used.ru_minflt),
                'peak_mib': used.ru_maxrss / 1024}


def run(width: float, keep: bool) -> dict[str, float]:
    """Of a step: milliseconds of processor time and page faults; of the run: its peak in MiB."""
    with tempfile.TemporaryDirectory() as workdir:
        subprocess.run(
            [sys.executable, '-m', 'simclr_jax.main', '--config=configs/smoke.py:smoke', f'--workdir={workdir}',
             '--config.batch_size=128', '--config.encoder.depth=18', f'--config.encoder.width={width}',
             f'--config.num_train_steps={LAST}', '--config.data.test_split=none', '--config.log.every_steps=4',
             '--config.eval.evaluators=("benchmarks.kept_memory:Usage",)', f'--config.keep_freed_memory={keep}'],
            cwd=ROOT, check=True, capture_output=True, env=os.environ | {'PYTHONPATH': str(ROOT)})
        rows = {row['step']: row for row in map(json.loads, open(f'{workdir}/metrics.jsonl'))
                if 'processor_seconds' in row}
    first, last = rows[FIRST], rows[LAST]
    return {'processor ms': 1000 * (last['processor_seconds'] - first['processor_seconds']) / (LAST - FIRST),
            'page faults': (last['page_faults'] - first['page_faults']) / (LAST - FIRST),
            'peak MiB': last['peak_mib']}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--widths', type=float, nargs='+', default=(0.25, 1.0))
    arguments = parser.parse_args()
    for width in arguments.widths:
        found = {False: [], True: []}
        for _ in range(arguments.rounds):
            for keep, rows in found.items():
                rows.append(run(width, keep))
        for keep, rows in found.items():
            medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            print(f'{round(64 * width)} channels, {"kept" if keep else "given back"}: '
                  + ', '.join(f'{name} {value:,.0f}' for name, value in medians.items()), flush=True)


if __name__ == '__main__':
    main()
