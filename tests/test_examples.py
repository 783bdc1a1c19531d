"""Each file of examples/ runs as a user runs it, and is short enough to be read at once."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
OWN_LOOP = ROOT / 'examples' / 'own_loop.py'
EXAMPLES = sorted(set((ROOT / 'examples').glob('*.py')) - {OWN_LOOP})


@pytest.fixture
def run(forked, command):
    def run(path, argument):
        done = forked([f'examples/{path.name}', argument], env=command()[1]['env'])
        assert done.returncode == 0, done.stderr
        assert 'Warning' not in done.stderr
        return done

    return run


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_leaves_a_run(path, run, tmp_path):
    run(path, tmp_path / 'run')
    assert (tmp_path / 'run' / 'config.json').exists()
    assert len(path.read_text().splitlines()) <= 40


def test_the_parts_alone_make_a_training_loop(run):
    lines = run(OWN_LOOP, '3').stdout.splitlines()
    assert lines[0].startswith('step 0: loss ') and lines[-1].startswith('kNN trained ')
    assert len([line for line in OWN_LOOP.read_text().splitlines() if line]) <= 60
