"""Each file of examples/ runs as a user runs it, and is short enough to be read at once."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OWN_LOOP = ROOT / 'examples' / 'own_loop.py'
EXAMPLES = sorted(set((ROOT / 'examples').glob('*.py')) - {OWN_LOOP})


def _run(path, argument, startup):
    environment = {**os.environ, 'PYTHONPATH': f'{startup}{os.pathsep}{ROOT}'}
    done = subprocess.run([sys.executable, f'examples/{path.name}', argument], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'Warning' not in done.stderr
    return done


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_a_run(path, startup, tmp_path):
    _run(path, tmp_path / 'run', startup)
    assert (tmp_path / 'run' / 'config.json').exists()
    assert len(path.read_text().splitlines()) <= 40


def test_the_parts_alone_make_a_training_loop(startup):
    lines = _run(OWN_LOOP, '3', startup).stdout.splitlines()
    assert lines[0].startswith('step 0: loss ') and lines[-1].startswith('kNN trained ')
    assert len([line for line in OWN_LOOP.read_text().splitlines() if line]) <= 60
