"""Commands and snippets of README.md and docs/: Python runs, shell commands are parsed as by the program.

A block that cannot be run says so above itself: `<!-- not run: REASON -->`.
"""

import pathlib
import re
import runpy
import shlex
import tomllib

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import simclr_jax
from simclr_jax import config as recipes

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks/RESULTS.md',
         *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$',
                   re.MULTILINE | re.DOTALL)
# Not fields: placeholders, and one that docs/odd_data.md names because it is not there.
PLACEHOLDERS = {'FIELD', 'TASK.pretrained', 'pretrained'}
FIELDS = recipes.flatten(recipes.base_config())
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, kind):
    return [match['code'] for match in BLOCK.finditer(page.read_text())
            if match['kind'] == kind and not match['why']]


@each_page
def test_blocks_are_of_a_kind_that_is_checked(page):
    assert {match['kind'] for match in BLOCK.finditer(page.read_text())} <= {'bash', 'python', 'text'}


@pytest.fixture(scope='module')
def place(tmp_path_factory, run_main):
    """A directory with runs/mine, a run of three steps."""
    path = tmp_path_factory.mktemp('place')
    done = run_main('--config=configs/folder.py:smoke', '--config.num_train_steps=3',
                    f'--workdir={path}/runs/mine')
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'python')],
                         ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_runs(page, place, monkeypatch):
    monkeypatch.chdir(place)
    random = np.random.default_rng(0)
    z1, z2 = random.normal(size=(2, 8, 16)).astype('float32')
    names = {'simclr_jax': simclr_jax, 'recipes': recipes, 'config': recipes.base_config(),
             'images': random.integers(0, 255, (2, 40, 48, 3), 'uint8'), 'key': jax.random.key(0),
             'z1': z1, 'z2': z2}
    for code in blocks(page, 'python'):
        exec(compile(code, str(page), 'exec'), names)


def commands(code):
    """The words of each command, without assignments of variables before it."""
    for line in code.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r'\w+=', words[0]):
            assert not words[0].startswith('EXTRAS=') or set(words[0][7:].split(',')) <= extras()
            words.pop(0)
        if words:
            yield words


def extras():
    return set(tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'])


def check_main(arguments):
    """As the program: the config exists, its argument and fields too, and values have their types."""
    (named,) = [word.removeprefix('--config=') for word in arguments if word.startswith('--config=')]
    path, _, argument = recipes.recipe_path(named).partition(':')
    values = flags.FlagValues()
    config = runpy.run_path(path)['get_config'](argument)
    words = ['main', *(word for word in arguments if not word.startswith('--config='))]
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=words)
    for name in ('workdir', 'coordinator', 'num_processes', 'process_id'):
        flags.DEFINE_string(name, None, '', flag_values=values)
    flags.DEFINE_bool('multihost', False, '', flag_values=values)
    assert values(words) == ['main']


def check_script(path, arguments):
    """The file exists and knows the options."""
    text = (ROOT / path).read_text()
    options = [word.partition('=')[0] for word in arguments if word.startswith('--') and word != '--']
    assert all(option in text for option in options), (path, options)


def check_command(words):
    program, *arguments = words
    if words[:3] == ['python', '-m', 'simclr_jax.main'] or program == 'simclr_jax':
        return check_main(arguments[2:] if program == 'python' else arguments)
    if program in ('launch/local.sh', 'launch/gpu.sh'):
        first = next((i for i, word in enumerate(arguments) if word.startswith('--config')), 0)
        check_script(program, arguments[:first])        # its own options come first
        return check_main([word for word in arguments[first:] if word != '--dry-run']) if arguments else None
    if program.startswith('launch/'):
        return check_script(program, [])
    if program == 'python' and arguments[0].startswith(('benchmarks/', 'tests/', 'examples/')):
        own, _, passed_on = ' '.join(arguments[1:]).partition(' -- ')
        return check_script(arguments[0], own.split())
    if words[:2] == ['pip', 'install']:
        assert set(','.join(re.findall(r'\[(.*?)\]', ' '.join(arguments))).split(',')) <= {*extras(), ''}
        return
    pytest.fail(f'{words} is of no kind that is checked: mark the block as not run')


@each_page
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in blocks(page, 'bash'):
        for words in commands(code):
            check_command(words)


@each_page
def test_fields_and_scripts_in_running_text_exist(page):
    for code in re.findall(r'`([^`\n]+)`', BLOCK.sub('', page.read_text())):
        for name in set(re.findall(r'--config\.([\w.]*\w)', code)) - PLACEHOLDERS:
            assert name in FIELDS or any(field.startswith(f'{name}.') for field in FIELDS), code
        if re.match(r'python (benchmarks|tests)/', code):
            check_command(shlex.split(code))
