"""Eight simulated CPU devices for every test, set before jax is first imported; the command as users run it."""

import os
import pathlib
import subprocess
import sys

import pytest

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='session')
def command(tmp_path_factory):
    """command(*arguments, devices=1) -> (argv, keywords for subprocess) of `python -m simclr_jax.main`."""
    cache = tmp_path_factory.mktemp('compiled')

    def build(*arguments, devices=1, **environment):
        argv = [sys.executable, '-W', 'error::DeprecationWarning:simclr_jax', '-m', 'simclr_jax.main', *arguments]
        environment = {
            **os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
            'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            **environment}
        return argv, {'cwd': ROOT, 'env': environment, 'text': True, 'stdout': subprocess.PIPE,
                      'stderr': subprocess.PIPE}

    return build


@pytest.fixture(scope='session')
def run_main(command):
    """run_main(*arguments, devices=1) -> the completed process of `python -m simclr_jax.main`."""

    def run(*arguments, **keywords):
        argv, options = command(*arguments, **keywords)
        return subprocess.run(argv, timeout=300, **options)

    return run
