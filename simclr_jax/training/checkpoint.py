"""Checkpoints of the training state, by orbax."""

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from simclr_jax import storage
from simclr_jax.training.state import TrainState
from simclr_jax.training.workdir import differences, is_committed

_ITEM = 'state'
_AWAY = ('UNAVAILABLE', 'DEADLINE_EXCEEDED')         # tensorstore's words for a store that is


def quiet_orbax_logs() -> None:
    """Drops orbax's log records: whatever fails reaches the caller as an exception anyway.

    So do the tracebacks of what was still being written when one write had failed (of a full disk, say).
    """
    for logger in (absl_logging.get_absl_logger(), logging.getLogger('asyncio')):
        logger.addFilter(_is_not_from_orbax)
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)


class _WithoutLateWrites:
    """A hook for `sys.unraisablehook`: tensorstore's threads may call back to a loop that has ended."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'):
            self._hook(unraisable)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    # asyncio tells of orbax's writing tasks in its own name: orbax's file, or the one written, is then in the message.
    text = record.pathname + record.getMessage()
    return f'{os.sep}orbax{os.sep}' not in text and '.orbax-checkpoint-tmp' not in text


class DoesNotFit(ValueError):
    """A whole checkpoint of another model or optimiser."""


class Checkpointer:
    """Saves and restores a TrainState under workdir/checkpoints/<step>.

    Saving is asynchronous: save() returns once the state is copied, so that its buffers may be
    donated at once, and a thread does the writing. A checkpoint appears under its name only when
    it is whole (it is written to a temporary directory and renamed); what a killed run left
    behind is removed when the next one starts. In a run of several processes each of them makes
    every call, and the workdir is one that all of them see.

    Args:
        workdir: directory of the run.
        keep_last: how many of the latest checkpoints are kept, at least 1.
        keep_best: how many of those with the largest `best_metric` are kept besides.
        best_metric: name of that metric among the metrics given to save().
        read_only: for looking into a workdir without touching it, also while a run writes there.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_last: int = 1, keep_best: int = 1,
                 best_metric: str = 'knn_accuracy', read_only: bool = False):
        if keep_last < 1:
            raise ValueError(f'keep_last is {keep_last}: at least 1 checkpoint must be kept')
        self._workdir = storage.absolute(workdir)
        self._directory = os.path.join(self._workdir, 'checkpoints')
        self._best_metric = best_metric
        self._read_only = read_only
        self._closed = False
        self._saving: int | None = None
        if storage.is_remote(self._workdir):
            self._prepare_bucket()
        self._unreadable = _unreadable_steps(self._directory)       # orbax raises on these
        for step, reason in self._unreadable:
            if read_only:
                raise ValueError(f'The checkpoint of step {step} in {self._workdir} is damaged ({reason}): remove it, '
                                 'or resume the run, which moves it aside.')
            self._move_aside(step)
        handler = ocp.PyTreeCheckpointHandler()
        registry = ocp.DefaultCheckpointHandlerRegistry()
        registry.add(_ITEM, ocp.args.PyTreeSave, handler)
        registry.add(_ITEM, ocp.args.PyTreeRestore, handler)
        best = BestN(get_metric_fn=self._score, n=keep_best,
                     keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self._directory,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
                cleanup_tmp_directories=not read_only,
                # In a bucket nothing is renamed: a file beside a checkpoint says that it is whole, as orbax
                # knows of gs://.
                atomicity_options=(AtomicityOptions(AtomicityMode.COMMIT_FILE)
                                   if self._workdir.startswith('s3://') else None),
                read_only=read_only))
        self._last_good = max(self._manager.all_steps(), default=None)      # of those known to be whole

    def save(self, state: TrainState, metrics: dict[str, Any] | None = None) -> bool:
        """Starts to save `state` under its own step.

        Args:
            state: its leaves are arrays on any devices, sharded or replicated.
            metrics: {name: scalar}; arrays are left out. They are kept beside the checkpoint when they hold a finite
                `best_metric`; a checkpoint without it never counts as a best one.

        Returns:
            False when there is a checkpoint at that step already, which then stays as it is.

        Raises:
            FloatingPointError: params or batch_stats hold a NaN or an infinity.
            OSError: the previous checkpoint, or this one, could not be written.
        """
        if self._read_only:
            raise PermissionError(f'{self._workdir} was opened with read_only=True: no save there')
        # Training may run under jax.transfer_guard('disallow'), which also stops orbax.
        with jax.transfer_guard('allow'):
            step = int(state.step)
            if not _all_finite((state.params, state.batch_stats)):
                raise FloatingPointError(
                    f'params or batch_stats hold a NaN or an infinity at step {step}. '
                    + self.last_good())
            self.wait()
            if step in self._manager.all_steps():
                return False
            try:
                self._manager.save(
                    step, metrics=self._finite_metrics(metrics), force=True,
                    args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(state)}))
            except (OSError, storage.StoreError) as error:
                raise self._write_error(error) from error
            self._saving = step
            return True

    @contextlib.contextmanager
    def naming_last_good(self) -> Iterator[None]:
        """Makes an OSError, which names the last good checkpoint, of a store that does not answer inside of it."""
        self.wait()
        try:
            yield
        except storage.StoreError as error:
            raise self._write_error(error) from error

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint on disk, None when there is none."""
        self.wait()
        self._last_good = max(self._manager.all_steps(), default=None)
        return self._last_good

    def last_good(self) -> str:
        """The end of a sentence about a run that diverged: where to go back to, and what to do."""
        step = self.latest_step()
        return ('No checkpoint was saved before it; ' if step is None else
                f'The last good checkpoint is that of step {step}; '
                ) + 'lower the learning rate or lengthen the warm-up, in another workdir.'

    def best_step(self) -> int | None:
        """The step of the checkpoint with the largest `best_metric`, None when there is none."""
        self.wait()
        step = self._manager.best_step()
        if step is None or math.isinf(self._score(self._manager.metrics(step))):
            return None
        return step

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Restores the state saved at `step` (default: the latest), bit for bit.

        Args:
            template: a TrainState of arrays or of jax.ShapeDtypeStruct, which gives the shapes,
                dtypes and shardings. A leaf without a sharding goes to the first device.
            step: one of the steps saved.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: the template has other leaves, shapes or dtypes than the checkpoint.
        """
        step, stored = self._stored_tree(step)
        target = jax.tree.map(_abstract, template)
        found = differences(_leaves(stored), _leaves(target), 'in the checkpoint', 'here')
        if found:
            more = f'; and {len(found) - 4} more' if len(found) > 4 else ''
            raise DoesNotFit(f'the checkpoint of step {step} in {self._workdir} does not fit this model and '
                             f'optimizer: {"; ".join(found[:4])}{more}; use the config it was trained with')
        return self._restore(step, target)

    def restore_last_whole(self, template: TrainState) -> tuple[TrainState, list[str]]:
        """The state of the last checkpoint that can be read, or `template` where there is none.

        What is damaged (a disk that was full, a copy that was cut short) is moved aside, so that its step can
        be saved again.

        Returns:
            The state, and a sentence for each checkpoint that is damaged.

        Raises:
            ValueError: a checkpoint is whole and does not fit, or none of several is whole.
        """
        self.wait()
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(template, step)
            except (DoesNotFit, storage.StoreError):
                raise
            except Exception as error:      # orbax and tensorstore have many ways to say it
                if storage.is_remote(self._workdir) and any(word in str(error) for word in _AWAY):
                    raise storage.StoreError(f'{self._workdir} does not answer ({error}): when it is back, '
                                             'the same command resumes.') from error
                reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:150]
                damaged.append((step, reason))
                continue
            for bad, _ in damaged:
                self._move_aside(bad)
            return state, [f'The checkpoint of step {bad:,} is damaged ({reason}); the run resumes from that of '
                           f'step {step:,}.' for bad, reason in self._unreadable + damaged]
        damaged += self._unreadable
        if damaged:
            names = ', '.join(str(step) for step, _ in damaged)
            raise ValueError(f'No checkpoint in {self._workdir} can be read (those of steps {names}: '
                             f'{damaged[0][1]}). Restore one, or give another --workdir.')
        return template, []

    def _prepare_bucket(self) -> None:
        from simclr_jax.training.orbax_buckets import teach_orbax
        teach_orbax(storage.patience())
        storage.exists(self._workdir)       # from here on orbax too is patient with the store
        if self._read_only:
            return
        if jax.process_index() == 0 and storage.is_dir(self._directory):
            for entry in storage.scan(self._directory):         # what a killed run left behind
                if entry.name.isdigit() and not is_committed(os.path.join(self._directory, entry.name)):
                    storage.remove(os.path.join(self._directory, entry.name))
        multihost_utils.sync_global_devices('half-written checkpoints')

    def _move_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = os.path.join(self._directory, f'damaged.{step}')
            storage.remove(aside)           # of an earlier time
            storage.replace(os.path.join(self._directory, str(step)), aside)
        multihost_utils.sync_global_devices(f'damaged {step}')
        if hasattr(self, '_manager'):
            self._manager.reload()

    def restore_encoder(self, step: int | None = None, network: str = 'online') -> dict[str, Any]:
        """Restores only {'params', 'batch_stats'} as numpy arrays, on any number of devices.

        Args:
            network: 'online', or 'target' for the network that follows it (see TrainState).

        Raises:
            FileNotFoundError: there is no checkpoint at `step` (default: the latest).
            ValueError: the run has no such network.
        """
        step, stored = self._stored_tree(step)
        if network not in ('online', 'target'):
            raise ValueError(f"network is {network!r}: it takes 'online' or 'target'.")
        if network == 'target' and 'target' not in (stored.get('method_state') or {}):
            raise ValueError(f"network is 'target': the run in {self._workdir} has no target network, only an online "
                             'one.')

        def wanted(tree):
            return {name: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree[name])
                    for name in ('params', 'batch_stats')}

        if network == 'online':
            return self._restore(step, wanted(stored), partial_restore=True)
        target = {'method_state': {'target': wanted(stored['method_state']['target'])}}
        return self._restore(step, target, partial_restore=True)['method_state']['target']

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            OSError: it could not be written. The checkpoints before it are still there.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # orbax passes on whatever its writing thread met
            if not isinstance(error, storage.StoreError):
                # The manager has forgotten the checkpoints that the failed one was to replace.
                self._manager.reload()
            raise self._write_error(error) from error
        self._last_good, self._saving = self._saving or self._last_good, None

    def close(self) -> None:
        """Waits, then frees orbax's threads; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> 'Checkpointer':
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _score(self, metrics: dict[str, float]) -> float:
        return metrics.get(self._best_metric, -math.inf)

    def _finite_metrics(self, metrics: dict[str, Any] | None) -> dict[str, float] | None:
        values = {name: float(value) for name, value in (metrics or {}).items()
                  if np.ndim(value) == 0}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        return values if self._best_metric in values else None

    def _write_error(self, error: Exception) -> OSError:
        if isinstance(error, storage.StoreError):
            good = 'none was saved before' if self._last_good is None else (
                f'the last good one is that of step {self._last_good}')
            return OSError(f'a checkpoint could not be written; {good}. {error}')
        # tensorstore chains the names of files, then the reason, then details in brackets.
        reason = str(error).rsplit('": ', 1)[-1].split(' [')[0]
        return OSError(f'a checkpoint could not be written to {self._workdir} ({reason}); the '
                       'earlier ones are intact: make room there and start again to resume')

    def _stored_tree(self, step: int | None) -> tuple[int, dict[str, Any]]:
        """The step, and shape and dtype of every leaf of the checkpoint there."""
        self.wait()
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise FileNotFoundError(
                f'There is no checkpoint in {self._workdir}: give the workdir of a run that has saved one.')
        step = steps[-1] if step is None else step
        if step not in steps:
            raise FileNotFoundError(
                f'checkpoint is {step}: {self._workdir} has checkpoints of steps {", ".join(map(str, steps))}.')
        return step, self._manager.metadata(step).item_metadata[_ITEM].tree

    def _restore(self, step: int, target: Any, **options) -> Any:
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), **options)
        with jax.transfer_guard('allow'):
            return self._manager.restore(step, args=ocp.args.Composite(**{_ITEM: args}))[_ITEM]


def _unreadable_steps(directory: str) -> list[tuple[int, str]]:
    """(step, why) of those that are empty, or whose metrics are cut short."""
    found = []
    for name, is_dir in storage.scan(directory) if storage.is_dir(directory) else ():
        path = os.path.join(directory, name)
        metrics = os.path.join(path, 'metrics', 'metrics')
        if not name.isdigit() or not is_dir or not is_committed(path):
            continue
        if not storage.scan(path):
            found.append((int(name), 'it is empty'))
        elif storage.is_file(metrics):
            try:
                json.loads(storage.read_bytes(metrics))
            except ValueError as error:
                found.append((int(name), f'its metrics: {error}'))
    return found


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(finite).all() if finite else jnp.array(True)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree: Any) -> dict[str, str]:
    return {jax.tree_util.keystr(path, simple=True, separator='/'): f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
