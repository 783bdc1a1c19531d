"""Promises of checkpoint.py: what was saved comes back, and nothing good is ever lost."""

import logging
import os
import signal
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from simclr_jax.training import checkpoint
from simclr_jax.training.checkpoint import Checkpointer
from simclr_jax.training.state import TrainState


def make_state(step, size=8, seed=0):
    random = np.random.default_rng(seed + step)
    kernel = jnp.asarray(random.standard_normal((size, 4)), jnp.float32)
    params = {'encoder': {'kernel': kernel, 'half': kernel.astype(jnp.bfloat16)}}
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        batch_stats={'encoder': {'mean': jnp.asarray(random.standard_normal(4), jnp.float32)}},
        opt_state=optax.adam(1e-3).init(params),
        method_state={'queue': kernel[:2], 'empty': {}, 'none': None})


def same_bits(left, right):
    def same(a, b):
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        jax.tree.leaves(jax.tree.map(same, left, right)))


def test_a_state_sharded_over_eight_devices_comes_back_bit_for_bit_where_it_was(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    replicated, split = (NamedSharding(mesh, spec)
                         for spec in (PartitionSpec(), PartitionSpec('data')))
    state = jax.tree.map(
        lambda leaf: jax.device_put(leaf, split if leaf.shape[:1] == (8,) else replicated),
        make_state(3))
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(state)
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(template)
    assert same_bits(restored, state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, state))


def test_a_checkpoint_of_eight_devices_is_readable_on_one(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    state = make_state(3)
    one_device = jax.eval_shape(lambda: make_state(0))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(jax.device_put(state, NamedSharding(mesh, PartitionSpec())))
        restored = checkpointer.restore(one_device)
        encoder = checkpointer.restore_encoder(3)
    assert same_bits(restored, state)
    assert restored.step.sharding == SingleDeviceSharding(jax.devices()[0])
    assert same_bits(encoder, jax.tree.map(np.asarray, {
        'params': state.params, 'batch_stats': state.batch_stats}))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(encoder))


def test_donating_the_state_right_after_save_does_not_change_the_checkpoint(tmp_path):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    state = jax.device_put(make_state(1, size=300_000),
                           NamedSharding(mesh, PartitionSpec()))
    saved = jax.tree.map(np.array, state)
    train_step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state),
                         donate_argnums=0)
    with Checkpointer(tmp_path) as checkpointer:
        with jax.transfer_guard('disallow'):
            checkpointer.save(state)
        after = jax.block_until_ready(train_step(state))
        assert state.params['encoder']['kernel'].is_deleted()
        assert same_bits(checkpointer.restore(after), saved)


def test_the_last_and_the_best_are_kept_also_by_a_run_that_resumes(tmp_path):
    accuracies = {1: 0.2, 2: 0.9, 3: 0.3, 4: None, 5: float('nan'), 6: 0.4}
    for steps in ((1, 2, 3), (4, 5, 6)):
        with Checkpointer(tmp_path, keep_last=2) as checkpointer:
            for step in steps:
                accuracy = accuracies[step]
                checkpointer.save(make_state(step), accuracy and {'knn_accuracy': accuracy})
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert (checkpointer.best_step(), checkpointer.latest_step()) == (2, 6)
        assert same_bits(checkpointer.restore(make_state(0), 2), make_state(2))
        with pytest.raises(FileNotFoundError, match=r'checkpoint is 4: .* has checkpoints of steps 2, 5, 6\.$'):
            checkpointer.restore(make_state(0), 4)


def test_a_checkpoint_without_the_metric_is_never_the_best(tmp_path):
    with Checkpointer(tmp_path, keep_last=3) as checkpointer:
        assert checkpointer.best_step() is None
        checkpointer.save(make_state(1))
        checkpointer.save(make_state(2), {'loss': 0.1})
        assert checkpointer.best_step() is None
        checkpointer.save(make_state(3), {'knn_accuracy': jnp.float32(0.1), 'loss': 9.0})
        assert checkpointer.best_step() == 3
    with Checkpointer(tmp_path, best_metric='other', read_only=True) as checkpointer:
        assert checkpointer.best_step() is None


def test_saving_a_step_twice_is_harmless_and_an_older_step_may_be_saved_later(tmp_path):
    with Checkpointer(tmp_path, keep_last=3) as checkpointer:
        assert checkpointer.save(make_state(2))
        assert not checkpointer.save(make_state(2, seed=7))
        assert same_bits(checkpointer.restore(make_state(0)), make_state(2))
        assert checkpointer.save(make_state(1))
        assert same_bits(checkpointer.restore(make_state(0), 1), make_state(1))
        assert checkpointer.latest_step() == 2


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('part', ['params', 'batch_stats'])
def test_a_state_that_is_not_finite_never_replaces_a_good_checkpoint(tmp_path, part, bad):
    state = make_state(2)
    spoiled = jax.tree.map(lambda leaf: leaf.at[0].set(bad), getattr(state, part))
    with Checkpointer(tmp_path, keep_last=1) as checkpointer:
        checkpointer.save(make_state(1))
        with pytest.raises(FloatingPointError, match='NaN or an infinity at step 2'):
            checkpointer.save(state.replace(**{part: spoiled}))
        assert checkpointer.latest_step() == 1


def test_a_template_that_does_not_fit_is_refused_by_name(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(make_state(1, size=8))
        with pytest.raises(ValueError, match=r"params/encoder/kernel: 'float32\[8, 4\]' in the "
                                             r"checkpoint, 'float32\[9, 4\]' here"):
            checkpointer.restore(make_state(1, size=9))
        double = make_state(1).replace(step=np.zeros((), np.int64))
        with pytest.raises(ValueError, match=r"step: 'int32\[\]' in .*, 'int64\[\]' here"):
            checkpointer.restore(double)
        with pytest.raises(ValueError, match=r"method_state/queue: 'float32\[2, 4\]' in .* absent"):
            checkpointer.restore(make_state(1).replace(method_state={}))


def test_a_workdir_without_checkpoints_says_so_and_reading_it_creates_nothing(tmp_path):
    with Checkpointer(tmp_path / 'absent', read_only=True) as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(FileNotFoundError, match='no checkpoint in .*absent'):
            checkpointer.restore(make_state(0))
    assert not (tmp_path / 'absent').exists()


def test_only_a_starting_run_cleans_leftovers_a_reader_does_not(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(make_state(1))
    leftover = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    (leftover / 'state.orbax-checkpoint-tmp').mkdir(parents=True)
    with Checkpointer(tmp_path, read_only=True) as checkpointer:
        assert checkpointer.latest_step() == 1
        assert same_bits(checkpointer.restore(make_state(0)), make_state(1))
        with pytest.raises(PermissionError, match='read_only'):
            checkpointer.save(make_state(4))
    assert leftover.exists()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1
        checkpointer.save(make_state(3))
    assert not leftover.exists()


@pytest.fixture
def run(forked, tmp_path):
    """run(lines) -> the process of its own that ran these lines of Python, with this file's names at hand."""
    def run(lines):
        (tmp_path / 'lines.py').write_text('from tests.training.test_checkpoint import *\n' + textwrap.dedent(lines))
        return forked([tmp_path / 'lines.py'], env=dict(os.environ))

    return run


def test_a_run_killed_while_it_saves_leaves_the_last_good_checkpoint(run, tmp_path):
    killed = run(f'''
        checkpointer = Checkpointer({str(tmp_path)!r}, keep_last=1)
        checkpointer.save(make_state(1))
        checkpointer.wait()
        checkpointer.save(make_state(2, size=500_000))
        os.kill(os.getpid(), signal.SIGKILL)
    ''')
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp').exists()
    with Checkpointer(tmp_path, keep_last=1) as checkpointer:
        assert checkpointer.latest_step() == 1
        assert same_bits(checkpointer.restore(make_state(0)), make_state(1))
        checkpointer.save(make_state(2))
    assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['2']


def test_a_write_error_is_one_clear_error_and_earlier_checkpoints_stay(run, tmp_path):
    done = run(f'''
        import resource
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        checkpoint.quiet_orbax_logs()
        checkpointer = Checkpointer({str(tmp_path)!r}, keep_last=1)
        checkpointer.save(make_state(1, size=4096))
        checkpointer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
        checkpointer.save(make_state(2, size=4096))
        try:
            checkpointer.save(make_state(3, size=4096))
        except OSError as error:
            print(error)
        print(checkpointer.latest_step())
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        restored = checkpointer.restore(make_state(0, size=4096))
        print(same_bits(restored, make_state(1, size=4096)))
        checkpointer.save(make_state(4, size=4096))
        print(checkpointer.latest_step())
        checkpointer.close()
    ''')
    assert done.returncode == 0, done.stderr
    message, *rest = done.stdout.splitlines()
    assert message.startswith(f'a checkpoint could not be written to {tmp_path} (Failed to write ')
    assert 'File too large); the earlier ones are intact' in message
    assert rest == ['1', 'True', '4']
    assert 'ERROR' not in done.stderr


def test_orbax_says_nothing_once_it_is_quiet(tmp_path, caplog):
    checkpoint.quiet_orbax_logs()
    with caplog.at_level(logging.DEBUG):
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.save(make_state(1))
        Checkpointer(tmp_path, read_only=True).close()
    assert not [record for record in caplog.records if record.name == 'absl']
