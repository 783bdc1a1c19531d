"""The compiled parts of simclr_jax; all else stands in pyproject.toml.

constraints.txt beside it pins the versions that CI ran.
"""

import setuptools


def loops():
    """Convolutions and norms at the speed of the processor. Without jaxlib's headers, XLA does them."""
    try:
        from jax.ffi import include_dir
    except ImportError:
        return []
    models = 'simclr_jax/models/cpu'
    return [setuptools.Extension(
        'simclr_jax.models.cpu._loops',
        [f'{models}/{name}.cc' for name in ('_convolution', '_norm', '_product', '_threefry')],
        optional=True, language='c++',
        depends=[f'{models}/_loops.h', f'{models}/_tiles.h', f'{models}/_winograd.h'], include_dirs=[include_dir()],
        extra_compile_args=['-std=c++17', '-O3', '-ffp-contract=fast', '-fno-math-errno',
                            '-fno-trapping-math'])]


setuptools.setup(
    # The recipes go with the package, for `simclr_jax --config=smoke`.
    packages=[*setuptools.find_packages(include=['simclr_jax', 'simclr_jax.*']),
              'simclr_jax.configs', 'simclr_jax.configs.studies'],
    package_dir={'simclr_jax.configs': 'configs'},
    package_data={'simclr_jax': ['py.typed', 'report/*.html'], 'simclr_jax.configs.studies': ['*.json']},
    # The input path. Where there is no C compiler, numpy crops and Pillow decodes.
    ext_modules=[setuptools.Extension(
        'simclr_jax.data._crop', ['simclr_jax/data/_crop.c', 'simclr_jax/data/_jpeg.c'], optional=True,
        # Equal results on every processor; nothing reads errno or floating-point exceptions.
        extra_compile_args=['-O3', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math'],
        libraries=['m']), *loops()])
