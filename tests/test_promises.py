"""Promises about the tree itself: who imports whom."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / 'simclr_jax').rglob('*.py')}

# Part of the tree -> what of ours it may import beside itself, by "Who may import whom" in
# docs/architecture.md; '' stands for everything. config.names reads 'package.module:Name', for every door.
ALLOWED = {
    'main.py': [''],
    'train.py': ['methods', 'training', 'views', 'data', 'evaluate', 'runlog', 'runtime', 'inspect.profile',
                 'config', 'models.building', 'models.network', 'storage'],
    'encoder.py': ['evaluate', 'weights', 'views', 'models', 'training', 'runtime'],
    'methods/': ['objectives', 'models.network', 'training.schedules', 'config.names'],
    'training/': ['storage'],
    'models/': ['config.names'],
    'evaluate/': ['data', 'models', 'training', 'views', 'weights', 'config', 'runtime', 'runlog', 'storage'],
    'weights/': ['models', 'views.resize', 'storage'],
    'inspect/': ['train', 'data', 'views', 'training', 'config', 'runtime', 'runlog', 'storage'],
    'report/': ['evaluate', 'data', 'views', 'training', 'config', 'runlog', 'runtime', 'storage'],
    'studies/': ['train', 'report', 'evaluate', 'data', 'training', 'config', 'runlog', 'runtime', 'storage'],
    'data/': ['views', 'storage', 'config.names'],
    'views/': [], 'objectives/': [], 'runlog/': ['storage'], 'runtime/': ['storage', 'buckets'],
    'config/': [], 'storage.py': ['buckets'], 'buckets.py': ['storage'],
}
# A single module -> what it may import beyond that, and why.
EXCEPTIONS = {
    'views/from_config.py': ['config'],                 # turns the config's block `augment` into views
    'config/recipes.py': ['views.fields'],          # the constants of each method's views
    'views/host.py': ['data.compiled'],                 # the compiled crop is the input path's, and a view's
    'data/batches.py': ['runtime.sharding'],        # the seam from the host to the devices
    'evaluate/search.py': ['report'],               # its answer is a page of pictures
    'report/images.py': ['models.network'],         # the crops as the network sees them
    'weights/write/export.py': ['evaluate.pretrained', 'evaluate.results', 'config', 'runtime', 'runlog'],      # a task
    'weights/write/programs.py': ['training.steps'],       # the very function that evaluations call
}
# Parts of a folder that can be read and used alone -> all that they may import.
ALONE = {
    'models/norm.py': ['models.cpu'], 'models/cpu/': ['models.cpu'],
    'views/resize.py': [], 'views/fields.py': ['views.resize'], 'views/ops.py': ['views.resize'],
    'views/draws.py': ['views.fields'],
    'training/steps.py': ['training.state', 'training.leaves'], 'training/leaves.py': [],
    'training/checkpoint.py': ['training.state', 'training.workdir', 'training.orbax_buckets', 'storage'],
    'training/workdir.py': ['config', 'storage'],              # a config that is kept is compared field by field
}


# The files of weights that are TensorFlow's own.
TENSORFLOW_FILES = ('simclr_jax/weights/write/programs.py', 'simclr_jax/weights/read/official.py')


def imports(path):
    """Dotted names of all that a module imports, wherever in it the import stands."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f'{node.module}.{alias.name}' for alias in node.names]
    return names


def top_level_roots(path):
    """The packages that are imported with the module."""
    body = ast.parse(path.read_text()).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in body if isinstance(node, ast.ImportFrom)]
    return {name.split('.')[0] for name in names}


def matches(name, prefix):
    return not prefix or f'{name}.'.startswith(f'{prefix}.')


def longest(rules, inside):
    return max((part for part in rules if inside.startswith(part)), key=len, default=None)


@pytest.mark.parametrize('name', [name for name in MODULES if not name.endswith('__init__.py')
                                  or name.startswith('simclr_jax/methods')])
def test_a_module_imports_only_what_the_architecture_allows(name):
    inside = name.removeprefix('simclr_jax/')
    alone = longest(ALONE, inside)
    if alone:
        allowed = ALONE[alone]
    else:
        rule = longest(ALLOWED, inside)
        allowed = [*ALLOWED[rule], rule.strip('/'), *EXCEPTIONS.get(inside, [])]
    ours = [module.removeprefix('simclr_jax.') for module in imports(MODULES[name])
            if module.startswith('simclr_jax.') and module != 'simclr_jax.__version__']
    assert not [module for module in ours if not any(matches(module, prefix) for prefix in allowed)]


def test_an_exception_is_needed():
    unused = {inside: prefix for inside, prefixes in EXCEPTIONS.items() for prefix in prefixes
              if not any(matches(module.removeprefix('simclr_jax.'), prefix)
                         for module in imports(MODULES[f'simclr_jax/{inside}']))}
    assert not unused


@pytest.mark.parametrize('folder', ['simclr_jax', 'configs', 'examples', 'benchmarks', 'tests'])
def test_private_names_stay_in_their_module(folder):
    """No `module._name`, and no `from module import _name`, of another module of ours."""
    found = []
    for path in (ROOT / folder).rglob('*.py'):
        tree, modules = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and matches(node.module or '', 'simclr_jax'):
                modules |= {alias.asname or alias.name for alias in node.names}
                found += [f'{path}:{node.lineno}' for alias in node.names if alias.name.startswith('_')]
            elif isinstance(node, ast.Import):
                modules |= {alias.asname for alias in node.names if alias.name.startswith('simclr_jax.')}
        found += [f'{path}:{node.lineno}: {node.value.id}.{node.attr}' for node in ast.walk(tree)
                  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                  and node.value.id in modules and re.match('_[^_]', node.attr)
                  and node.attr not in ('_replace', '_asdict', '_fields')]       # of named tuples
    assert not found


@pytest.mark.parametrize('name', MODULES)
def test_tensorflow_lives_in_data_and_jax_does_not(name):
    roots = {module.split('.')[0] for module in imports(MODULES[name])}
    host = ('simclr_jax/views/host', 'simclr_jax/views/draws', 'simclr_jax/data/')
    if name.startswith(host) and name != 'simclr_jax/data/batches.py':
        assert not roots & {'jax', 'flax', 'optax', 'orbax', 'ml_collections'}
    elif name in TENSORFLOW_FILES:
        assert not top_level_roots(MODULES[name]) & {'tensorflow'}      # only where it is asked for
    else:
        assert not roots & {'tensorflow', 'tensorflow_datasets'}


def test_only_sharding_names_the_mesh_axis():
    holders = [name for name, path in MODULES.items()
               if re.search(r"""(PartitionSpec|\bP)\(\s*['"]|_AXIS = """, path.read_text())]
    assert holders == ['simclr_jax/runtime/sharding.py']


def test_every_odd_kind_of_data_has_a_test_that_exists():
    page = (ROOT / 'docs' / 'odd_data.md').read_text()
    named = re.findall(r'^\|.* <!-- ([\w/]+\.py)::(\w+) --> \|$', page, re.MULTILINE)
    assert len(named) >= 61
    missing = [f'{path}::{test}' for path, test in named if not any(        # a file may have another name by now
        f'\ndef {test}(' in file.read_text() for file in (ROOT / 'tests' / path).parent.glob('*.py'))]
    assert not missing
