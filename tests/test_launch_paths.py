"""The launchers leave the directory from which they are called: paths of the options are relative to it."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize('script, options', [('local.sh', []), ('gpu.sh', ['--no-install', '--cpu-devices', '1'])])
def test_paths_are_relative_to_where_a_script_is_called(script, options, tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\n[ "$2" != simclr_jax.main ] || echo "$PWD $PYTHONPATH"\n')
    python.chmod(0o755)
    environment = os.environ | {'PYTHON': str(python), 'NO_INSTALL': '1', 'PYTHONPATH': ''}
    done = subprocess.run(['bash', ROOT / 'launch' / script, *options, '--workdir=run'], cwd=tmp_path, text=True,
                          env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{tmp_path} {ROOT}\n'
