"""Eight simulated CPU devices for every test, set before jax is imported; the command as users run it."""

import contextlib
import gc
import importlib.metadata
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import pytest

gc.set_threshold(50_000)        # as in the command
os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile more than they compute: little optimisation, in one piece (a fifth less than in 32), XLA's older
# emitters, which compile a step in a third of the time, and nothing is compiled twice. Eight simulated devices
# on a busy machine may wait long for each other, which XLA takes for a deadlock.
FAST = ('--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 '
        '--xla_cpu_collective_call_terminate_timeout_seconds=600')
if importlib.metadata.version('jaxlib').startswith('0.10.'):        # later ones know the old emitters no more
    FAST += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{FAST} --xla_force_host_platform_device_count=8'
if 'PYTEST_XDIST_WORKER' not in os.environ:     # its workers share the one of the process that starts them
    cache = tempfile.TemporaryDirectory(prefix='simclr_jax_tests_')     # removed when pytest ends
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
# The tests' arrays are small, and two files run at a time: further threads of numpy, scipy and torch would only
# wait for each other, in L-BFGS for 20 times as long as it computes.
os.environ |= {'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1'}
# torch's triton and tensorflow each bring an LLVM: a process that loads both crashes. No test needs triton.
sys.modules['triton'] = None

# Where the tests run in the background it is ignored, and so by the shells they start, which cannot trap it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).parent.parent
# Half a minute or more each, of compilations and starts of processes: begun first, so that none runs alone at the end.
SLOW = ('test_buckets.py', 'test_configs.py', 'test_pod.py', 'test_encoders.py', 'test_examples.py', 'test_resume.py',
        'test_transformations.py', 'test_train.py', 'test_nt_xent.py', 'test_notebooks.py', 'test_devices.py',
        'test_benchmark_train_step.py', 'test_report.py')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


_WARNINGS = """
import warnings
for module in ('simclr_jax', 'jax', 'flax', 'optax', 'orbax', '__main__'):
    warnings.filterwarnings('error', category=DeprecationWarning, module=module)
"""


@pytest.fixture(scope='session')
def startup(tmp_path_factory):
    """A directory for PYTHONPATH that makes deprecations errors."""
    path = tmp_path_factory.mktemp('startup')
    (path / 'sitecustomize.py').write_text(_WARNINGS)         # -W cannot name a package with all below it
    return path


@pytest.fixture(scope='session')
def command(startup):
    """command(*arguments, devices=1) -> (argv, keywords for subprocess) of `python -m simclr_jax.main`."""
    def build(*arguments, devices=1):
        environment = {
            **os.environ, 'XLA_FLAGS': f'{FAST} --xla_force_host_platform_device_count={devices}',
            'PYTHONPATH': str(startup)}
        return [sys.executable, '-m', 'simclr_jax.main', *arguments], {
            'cwd': ROOT, 'env': environment, 'text': True, 'stdout': subprocess.PIPE,
            'stderr': subprocess.PIPE}

    return build


@pytest.fixture(scope='session')
def forked(startup):
    """forked(arguments, env=environment) -> the completed process of python with them, see tests/forking.py."""
    ours, theirs = socket.socketpair()
    server = subprocess.Popen([sys.executable, '-m', 'tests.forking', str(theirs.fileno())], cwd=ROOT,
                              pass_fds=[theirs.fileno()], env={**os.environ, 'PYTHONPATH': str(startup)})
    theirs.close()
    one_at_a_time = threading.Lock()

    def call(arguments, *, env, cwd=ROOT):
        with tempfile.TemporaryFile('w+') as output, tempfile.TemporaryFile('w+') as error:
            end, status = os.pipe()
            with one_at_a_time:
                socket.send_fds(ours, [json.dumps([list(map(str, arguments)), env, str(cwd)]).encode()],
                                [output.fileno(), error.fileno(), status])
                assert ours.recv(1), 'tests/forking.py has ended'
            os.close(status)
            with open(end) as file:
                status = int(file.read())
            texts = [file.seek(0) or file.read() for file in (output, error)]
            return subprocess.CompletedProcess(arguments, status, *texts)

    yield call
    ours.close()
    server.wait()


@pytest.fixture(scope='session')
def run_main(command, forked):
    """run_main(*arguments, devices=1, signalled='') -> the completed process of the program, see `command`.

    `signalled` is what tests/signals.py sends it, as in '9 5': SIGKILL once it has logged step 5.
    """
    def run(*arguments, signalled='', **options):
        if signalled:
            arguments = *arguments, "--config.log.writers=('tests.signals:Send',)"
        (_, *arguments), keywords = command(*arguments, **options)
        return forked(arguments, env={**keywords['env'], 'SIGNAL': signalled})

    return run


@pytest.fixture(scope='session')
def on_one_device():
    """A context: what pretrain() and the tasks do in this process, they do on one device: in half the time."""
    @contextlib.contextmanager
    def context():
        import jax

        from simclr_jax.runtime import sharding
        make_mesh = sharding.make_mesh
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, 'make_mesh', lambda devices=None: make_mesh(jax.devices()[:1]))
            patch.setattr(jax, 'device_count', lambda: 1)
            yield

    return context


@pytest.fixture(scope='module')
def one_device(on_one_device):
    """All of a file `on_one_device`, what does not need several."""
    with on_one_device():
        yield


@pytest.fixture(scope='session')
def stores(tmp_path_factory):
    """{'gs', 's3': a proxy before an emulator on loopback}, see tests/stores.py; skipped without the emulators."""
    from tests import stores
    with stores.running(tmp_path_factory.mktemp('cache')) as proxies:
        yield proxies
