"""Files for other programs: workflows, templates, the container. They name scripts and paths that exist."""

import json
import pathlib
import re
import tomllib

import pytest

import simclr_jax

yaml = pytest.importorskip('yaml')
ROOT = pathlib.Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def steps():
    return [step for path in WORKFLOWS for job in yaml.safe_load(path.read_text())['jobs'].values()
            for step in job['steps']]


def test_workflows_run_scripts_that_exist_and_install_extras_that_exist():
    text = '\n'.join(step['run'] for step in steps() if 'run' in step)
    scripts = re.findall(r'(?:\.ci|launch|benchmarks)/[\w.]+', text)
    extras = re.findall(r'EXTRAS=(\S+)|\.\[(\w+)\]', text)
    assert {'.ci/run', 'launch/environment.sh'} <= set(scripts)
    assert not [script for script in scripts if not (ROOT / script).exists()]
    named = {name for pair in extras for name in ','.join(pair).split(',') if name}
    assert named <= set(PROJECT['optional-dependencies'])


def test_workflows_test_the_pythons_that_the_package_names():
    jobs = yaml.safe_load((ROOT / '.github/workflows/test.yml').read_text())['jobs']
    named = [name.rsplit(' ', 1)[1] for name in PROJECT['classifiers'] if re.search(r':: 3\.\d+$', name)]
    assert jobs['test']['strategy']['matrix']['python'] == named


def test_workflows_may_only_read():
    assert all(yaml.safe_load(path.read_text())['permissions'] == {'contents': 'read'} for path in WORKFLOWS)


def test_templates_are_forms_with_a_required_field():
    for path in (ROOT / '.github/ISSUE_TEMPLATE').glob('[!c]*.yml'):
        form = yaml.safe_load(path.read_text())
        assert form['name'] and form['description']
        assert any(field.get('validations', {}).get('required') for field in form['body'])


def test_the_container_copies_what_exists_and_is_not_ignored():
    lines = re.findall(r'^COPY (?!--)(.+) \S+$', (ROOT / 'Dockerfile').read_text(), flags=re.MULTILINE)
    copied = [word for line in lines for word in line.split()]
    kept = (ROOT / '.dockerignore').read_text().splitlines()
    assert len(copied) > 5 and all((ROOT / path).exists() and f'!{path}' in kept for path in copied)


def test_the_development_container_sources_scripts_that_exist():
    container = json.loads((ROOT / '.devcontainer/devcontainer.json').read_text())
    sourced = re.findall(r'launch/\w+\.sh', container['postCreateCommand'])
    assert sourced and all((ROOT / path).exists() for path in sourced)


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == simclr_jax.__version__
