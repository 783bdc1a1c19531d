"""What README.md and the pages of docs/ state about files, links, messages and names."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import simclr_jax

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', ROOT / 'benchmarks/RESULTS.md',
         *sorted((ROOT / 'docs').glob('*.md'))]
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page):
    """The text of a page without its fenced blocks."""
    return re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    headings = re.findall(r'^#+ (.*)', prose(page), flags=re.MULTILINE)
    return {re.sub(r'\s', '-', re.sub(r'[^\w\s-]', '', heading).strip().lower()) for heading in headings}


@each_page
def test_local_links_and_their_anchors_exist(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_files_that_a_page_names_exist(page):
    named = re.findall(r'\b((?:configs|launch|benchmarks|tests|examples|simclr_jax)/[\w/]*\w\.'
                       r'(?:py|sh|md|json))\b', page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_readme_leads_to_every_page():
    linked = re.findall(r'\]\((docs/\w+\.md)\)', (ROOT / 'README.md').read_text())
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES if page.parent.name == 'docs'}
    assert pages - set(linked) == {'docs/index.md'}


def test_every_recipe_stands_in_the_readme_and_no_other():
    text = (ROOT / 'README.md').read_text()
    table = text.partition('<!-- recipes -->')[2].partition('<!-- /recipes -->')[0]
    first_cells = re.findall(r'^\| (`\w+\.py`.*?) \|', table, flags=re.MULTILINE)
    listed = set(re.findall(r'`(\w+\.py)`', ' '.join(first_cells)))
    assert listed == {path.name for path in (ROOT / 'configs').glob('*.py')}


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 130


def messages():
    """Every string of the package, fields of f-strings as '...', split where the fields are."""
    for path in (ROOT / 'simclr_jax').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield ''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_page_are_messages_of_the_package():
    known = '\n'.join(messages())
    page = (ROOT / 'docs/troubleshooting.md').read_text()
    headed = re.findall(r'^\*\*`(.+?)`\*\*', page, flags=re.MULTILINE)
    parts = [part.strip() for message in headed for part in message.split('...')]
    assert len(headed) > 10 and not [part for part in parts if part not in known]


def test_the_api_page_has_every_public_name():
    text = (ROOT / 'docs/api.md').read_text()
    named = set(re.findall(r'^(?:::: |## )simclr_jax\.(\w+)', text, flags=re.MULTILINE))
    assert named >= set(simclr_jax.__all__)


def test_extras_of_the_readme_are_those_of_the_package():
    extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    table = (ROOT / 'README.md').read_text().partition('| extra | for |')[2].partition('\n\n')[0]
    rows = re.findall(r'^\| (`.+?`) \|', table, flags=re.MULTILINE)
    named = set(re.findall(r'`([\w-]+)`', ' '.join(rows)))
    assert named == set(extras) - {'test', 'benchmarks', 'docs'}


def test_published_tables_are_those_of_the_json():
    done = subprocess.run([sys.executable, 'benchmarks/tables.py', '--check'], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_every_json_of_the_benchmarks_is_published_or_named():
    named = ' '.join(page.read_text() for page in PAGES)
    assert not [path.name for path in (ROOT / 'benchmarks').glob('*.json') if path.name not in named]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocstrings', reason="pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', tmp_path / 'site'],
        cwd=ROOT, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / 'site').rglob('*.html'))
    elsewhere = re.compile(r'(?:src|rel="stylesheet" href)="(https?:[^"]+)')
    assert len(pages) > 20 and not [found for page in pages for found in elsewhere.findall(page.read_text())]
