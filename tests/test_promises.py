"""Promises about the tree itself: who imports whom, and what the README says."""

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
    'train.py': ['methods', 'steps', 'data', 'optim', 'schedules', 'sharding', 'checkpoint', 'metrics',
                 'config', 'evaluate', 'models.network', 'inputs', 'augment_fields', 'task_configs',
                 'profile', 'interruption'],
    'inputs.py': ['data', 'device_augment', 'sharding'],
    'device_augment.py': ['device_ops', 'augment_fields'], 'device_ops.py': [], 'augment_fields.py': [],
    'evaluate/': ['inputs', 'data', 'models', 'optim', 'schedules', 'sharding', 'checkpoint', 'metrics',
                  'config', 'steps', 'evaluate', 'weights'],
    'encoder.py': ['evaluate.pretrained', 'models.network', 'steps', 'device_augment', 'sharding',
                   'checkpoint'],
    'augmentations.py': ['device_augment', 'augment_fields', 'config'],
    'weights/': ['weights', 'models', 'config', 'steps', 'evaluate', 'device_augment', 'sharding', 'metrics'],
    'evaluate/search.py': ['data', 'sharding', 'metrics', 'config', 'evaluate', 'report'],
    'report/': ['report', 'evaluate', 'inputs', 'data', 'device_augment', 'augment_fields', 'models.network',
                'sharding', 'checkpoint', 'config', 'task_configs'],
    'methods/': ['methods', 'objectives', 'models.network', 'schedules'],
    'study.py': ['train', 'studies', 'evaluate', 'steps', 'data', 'sharding', 'checkpoint', 'config'],
    'studies/': ['studies', 'report', 'evaluate.results', 'config'],
    'steps.py': ['train_state'],
    'checkpoint.py': ['train_state', 'config'],
    'models/': ['models'],
    'data/host_augment.py': ['data.kernels', 'data.draws', 'augment_fields'],
    'data/': ['data', 'augment_fields'],
    'bench_input.py': ['inputs', 'train', 'steps', 'schedules', 'sharding', 'config', 'metrics', 'data'],
    'plan.py': ['inputs', 'train', 'compiled', 'schedules', 'sharding', 'config', 'metrics'],
    'objectives/': ['objectives'], 'schedules.py': [], 'sharding.py': [], 'train_state.py': [],
    'models/norm.py': ['models.loops'], 'models/loops.py': [], 'models/convolution.py': ['models.loops'],
    'config.py': ['task_configs'], 'task_configs.py': [], 'metrics.py': [],
    'interruption.py': ['sharding'], 'profile.py': ['step_breakdown'], 'step_breakdown.py': [],
    'compile_cache.py': [],
    'optim.py': [], 'compiled.py': [], 'processes.py': [],
}


# The files of weights that are TensorFlow's own.
TENSORFLOW_FILES = ('simclr_jax/weights/savedmodel.py', 'simclr_jax/weights/official.py')


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
    if name.startswith('simclr_jax/data/'):
        assert not roots & {'jax', 'flax', 'optax', 'orbax', 'ml_collections'}
    elif name in TENSORFLOW_FILES:
        assert not top_level_roots(MODULES[name]) & {'tensorflow'}      # only where it is asked for
    else:
        assert not roots & {'tensorflow', 'tensorflow_datasets'}


def test_only_sharding_names_the_mesh_axis():
    holders = [name for name, path in MODULES.items()
               if re.search(r"""(PartitionSpec|\bP)\(\s*['"]|_AXIS = """, path.read_text())]
    assert holders == ['simclr_jax/sharding.py']


def test_the_light_modules_load_without_tensorflow():
    code = ('import sys, simclr_jax.methods, simclr_jax.optim, simclr_jax.checkpoint, simclr_jax.metrics, '
            'simclr_jax.data.sources, simclr_jax.data.order; sys.exit("tensorflow" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_the_readme_names_only_files_that_exist():
    text = (ROOT / 'README.md').read_text()
    named = set(re.findall(r'\b(?:configs|launch|benchmarks|tests)/\w+\.(?:py|sh|md)', text))
    assert {'configs/smoke.py', 'launch/local.sh', 'launch/test.sh'} <= named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_recipe_stands_in_the_readme():
    text = (ROOT / 'README.md').read_text()
    assert all(f'`{path.name}' in text for path in (ROOT / 'configs').glob('*.py'))
