"""Promises about the tree itself: who imports whom."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / 'simclr_jax').rglob('*.py')}

# Part of the tree -> what of ours it may import; '' stands for everything.
ALLOWED = {
    'main.py': [''],
    'train.py': ['methods', 'training', 'views', 'data', 'evaluate', 'runlog', 'runtime', 'config', 'models.network',
                 'inspect.profile'],
    'encoder.py': ['evaluate', 'weights', 'views', 'models', 'training', 'runtime'],
    'storage.py': [],
    'config/': ['config'],
    'runtime/': ['runtime'],
    'runlog/': ['runlog'],
    'objectives/': ['objectives'],
    'methods/': ['methods', 'objectives', 'models.network', 'training.schedules', 'config.names'],
    'models/': ['models'], 'models/network.py': ['models', 'config.names'], 'models/norm.py': ['models.normalize'],
    'models/normalize.py': ['models.cpu'], 'models/cpu/': ['models.cpu'],
    'training/': ['training'], 'training/checkpoint.py': ['training.state', 'config'],
    'views/': ['views'], 'views/ops.py': [], 'views/fields.py': [], 'views/draws.py': ['views.fields'],
    'views/presets.py': ['views', 'config'], 'views/host.py': ['views', 'data.crop'],
    'data/': ['data', 'views', 'storage', 'config.names'], 'data/batches.py': ['data', 'views', 'runtime'],
    'evaluate/': ['data', 'models', 'training', 'views', 'config', 'runtime', 'runlog', 'weights', 'evaluate'],
    'evaluate/search.py': ['data', 'runtime', 'runlog', 'config', 'evaluate', 'report', 'storage'],
    'weights/': ['weights', 'models', 'config', 'training', 'evaluate', 'views', 'runtime', 'runlog'],
    'inspect/': ['inspect', 'train', 'data', 'views', 'training', 'runtime', 'config', 'runlog'],
    'report/': ['report', 'evaluate', 'data', 'views', 'models.network', 'runtime', 'training', 'config',
                'storage'],
    'studies/': ['studies', 'report', 'train', 'evaluate', 'data', 'training', 'runtime', 'config',
                 'storage'],
}


# The files of weights that are TensorFlow's own.
TENSORFLOW_FILES = ('simclr_jax/weights/write/savedmodel.py', 'simclr_jax/weights/read/official.py')


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


@pytest.mark.parametrize('name', [name for name in MODULES if not name.endswith('__init__.py')
                                  or name.startswith('simclr_jax/methods')])
def test_a_module_imports_only_what_the_architecture_allows(name):
    inside = name.removeprefix('simclr_jax/')
    rule = max((part for part in ALLOWED if inside.startswith(part)), key=len)
    ours = [module.removeprefix('simclr_jax.') for module in imports(MODULES[name])
            if module.startswith('simclr_jax.') and module != 'simclr_jax.__version__']
    forbidden = [module for module in ours if not any(matches(module, allowed) for allowed in ALLOWED[rule])]
    assert not forbidden


@pytest.mark.parametrize('name', MODULES)
def test_tensorflow_lives_in_data_and_jax_does_not(name):
    roots = {module.split('.')[0] for module in imports(MODULES[name])}
    if name in ('simclr_jax/views/host.py', 'simclr_jax/views/host_colour.py', 'simclr_jax/views/draws.py') or (
            name.startswith('simclr_jax/data/') and name != 'simclr_jax/data/batches.py'):
        assert not roots & {'jax', 'flax', 'optax', 'orbax', 'ml_collections'}
    elif name in TENSORFLOW_FILES:
        assert not top_level_roots(MODULES[name]) & {'tensorflow'}      # only where it is asked for
    else:
        assert not roots & {'tensorflow', 'tensorflow_datasets'}


def test_only_sharding_names_the_mesh_axis():
    holders = [name for name, path in MODULES.items()
               if re.search(r"""(PartitionSpec|\bP)\(\s*['"]|_AXIS = """, path.read_text())]
    assert holders == ['simclr_jax/runtime/sharding.py']


def test_the_light_modules_load_without_tensorflow():
    code = ('import sys, simclr_jax.methods, simclr_jax.training.optimizers, simclr_jax.training.checkpoint, simclr_jax.runlog.writer, '
            'simclr_jax.data.sources, simclr_jax.data.order; sys.exit("tensorflow" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
