"""Each file of examples/ runs as a user runs it, and is short enough to be read at once."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_a_run(path, startup, tmp_path):
    environment = {**os.environ, 'PYTHONPATH': f'{startup}{os.pathsep}{ROOT}'}
    done = subprocess.run([sys.executable, f'examples/{path.name}', tmp_path / 'run'], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'config.json').exists() and 'Warning' not in done.stderr
    assert len(path.read_text().splitlines()) <= 40
