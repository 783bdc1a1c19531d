"""Runs of the command for the benchmarks: train, read what it wrote, keep a table as JSON."""

import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parent.parent


def train(workdir: pathlib.Path, *options: str) -> dict[str, Any]:
    """`python -m simclr_jax.main OPTIONS --workdir=WORKDIR`, or what an earlier call left there.

    Returns {'results': {encoder: row of results.jsonl}, 'metrics': rows of metrics.jsonl, 'seconds',
    'cpu_seconds', 'output': the lines that it printed}.
    """
    finished = workdir / 'benchmark.json'
    if not finished.exists():
        started, used = time.time(), _children()
        command, lines = [sys.executable, '-m', 'simclr_jax.main', f'--workdir={workdir}', *options], []
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(line, end='', flush=True)
                lines.append(line.rstrip())
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        finished.write_text(json.dumps({'seconds': round(time.time() - started),
                                        'cpu_seconds': round(_children() - used), 'output': lines}))
    rows = _lines(workdir / 'results.jsonl')
    return {'results': {row['encoder']: row for row in rows}, 'metrics': _lines(workdir / 'metrics.jsonl'),
            **json.loads(finished.read_text())}


def final_state(workdir: pathlib.Path, step: int) -> list[np.ndarray]:
    """Every array of the checkpoint of `step`, whatever devices saved it."""
    path, checkpointer = workdir / 'checkpoints' / str(step) / 'state', ocp.PyTreeCheckpointer()
    # As numpy arrays: the devices that saved it are not those of this process.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                            checkpointer.metadata(path).item_metadata.tree)
    return jax.tree.leaves(checkpointer.restore(path, restore_args=as_numpy))


def keep(name: str, title: str, rows: Any) -> None:
    """Puts `rows` under `title` into benchmarks/NAME.json, with machine and versions."""
    path = ROOT / 'benchmarks' / f'{name}.json'
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[title] = {'machine': f'{os.cpu_count()} cores {platform.machine()}', 'jax': jax.__version__,
                   'device': jax.devices()[0].device_kind, 'python': platform.python_version(), 'rows': rows}
    path.write_text(json.dumps(kept, indent=2) + '\n')


def _children() -> float:
    """Processor seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
