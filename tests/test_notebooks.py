"""The notebooks of examples/ run from top to bottom at tiny sizes; what is stored in them shows pictures."""

import json
import os
import pathlib

import pytest

nbformat = pytest.importorskip('nbformat', reason="pip install '.[test]'")
nbclient = pytest.importorskip('nbclient', reason="pip install '.[test]'")
ROOT = pathlib.Path(__file__).parent.parent
# What each takes the place of: its cell with the tag `parameters`.
TINY = {'neighbours': "FOLDER, NUM_DRAWN, NUM_STEPS, WORKDIR = '', 300, 2, 'runs/tiny'",
        'own_loop': 'NUM_STEPS, BATCH_SIZE, NUM_IMAGES = 2, 16, 64',
        'to_pytorch': "WORKDIR, NUM_STEPS = 'runs/tiny', 2"}
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def pictures(notebook):
    return [output for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
            if 'image/png' in output.get('data', {})]


@each_notebook
def test_a_notebook_runs_and_shows_pictures(path, tmp_path, monkeypatch):
    if path.stem == 'to_pytorch':
        pytest.importorskip('timm', reason="pip install '.[export]'")
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1'))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
    monkeypatch.setenv('JUPYTER_CONFIG_DIR', str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
    parameters.source = TINY[path.stem]
    nbclient.NotebookClient(notebook, timeout=240, kernel_name='python3',
                            resources={'metadata': {'path': str(tmp_path)}}).execute()
    assert pictures(notebook)


@each_notebook
def test_what_a_notebook_stores_is_small_and_whole(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert path.stat().st_size < 300_000 and pictures(notebook)
    assert all(cell.execution_count for cell in code)               # run from top to bottom, nothing left out
    stored = json.dumps([cell.outputs for cell in code])
    assert 'Traceback' not in stored and 'Warning' not in stored and str(pathlib.Path.home()) not in stored
