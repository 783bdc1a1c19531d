"""Checkpoints of the training state (orbax), and the config and versions beside them."""

import importlib.metadata
import json
import logging
import math
import os
import pathlib
import platform
from typing import Any

from absl import logging as absl_logging
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

import simclr_jax
from simclr_jax.config import base_config, flatten
from simclr_jax.training.state import TrainState

_ITEM = 'state'
_PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml-collections', 'numpy',
    'tensorflow', 'tensorflow-cpu', 'tensorflow-datasets',
)


def quiet_orbax_logs() -> None:
    """Drops orbax's log records: whatever fails reaches the caller as an exception anyway."""
    for logger in (absl_logging.get_absl_logger(), logging.getLogger('asyncio')):
        logger.addFilter(_is_not_from_orbax)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    # asyncio tells of orbax's writing tasks in its own name: the file is then in the message.
    return f'{os.sep}orbax{os.sep}' not in record.pathname + record.getMessage()


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
        self._workdir = pathlib.Path(workdir).absolute()
        self._best_metric = best_metric
        self._read_only = read_only
        self._closed = False
        self._unreadable = _unreadable_steps(self._workdir / 'checkpoints')     # these orbax would not get past
        for step, reason in self._unreadable:
            if read_only:
                raise ValueError(f'The checkpoint of step {step} in {self._workdir} is damaged ({reason}): remove it, '
                                 'or have the run go on, which moves it aside.')
            self._move_aside(step)
        handler = ocp.PyTreeCheckpointHandler()
        registry = ocp.DefaultCheckpointHandlerRegistry()
        registry.add(_ITEM, ocp.args.PyTreeSave, handler)
        registry.add(_ITEM, ocp.args.PyTreeRestore, handler)
        best = BestN(get_metric_fn=self._score, n=keep_best,
                     keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self._workdir / 'checkpoints',
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._score,
                preservation_policy=AnyPreservationPolicy([LatestN(keep_last), best]),
                cleanup_tmp_directories=not read_only,
                read_only=read_only))

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
                return self._manager.save(
                    step, metrics=self._finite_metrics(metrics), force=True,
                    args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(state)}))
            except OSError as error:
                raise self._write_error(error) from error

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint on disk, None when there is none."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

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
        differences = _tree_differences(stored, target)
        if differences:
            raise DoesNotFit(
                f'the checkpoint of step {step} in {self._workdir} does not fit this model and '
                f'optimizer: {_first(differences)}; use the config it was trained with')
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
            except DoesNotFit:
                raise
            except Exception as error:      # orbax and tensorstore have many ways to say it
                reason = f'{type(error).__name__}: {error}'.partition('\n')[0][:150]
                damaged.append((step, reason))
                continue
            for bad, _ in damaged:
                self._move_aside(bad)
            return state, [f'The checkpoint of step {bad:,} is damaged ({reason}); the run goes on from that of '
                           f'step {step:,}.' for bad, reason in self._unreadable + damaged]
        damaged += self._unreadable
        if damaged:
            names = ', '.join(str(step) for step, _ in damaged)
            raise ValueError(f'No checkpoint in {self._workdir} can be read (those of steps {names}: '
                             f'{damaged[0][1]}). Restore one, or give another --workdir.')
        return template, []

    def _move_aside(self, step: int) -> None:
        directory = self._workdir / 'checkpoints'
        if jax.process_index() == 0:
            os.replace(directory / str(step), directory / f'damaged.{step}')
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
            raise ValueError(f"there is no network {network!r}: choose 'online' or 'target'.")
        if network == 'target' and 'target' not in (stored.get('method_state') or {}):
            raise ValueError(f'the run in {self._workdir} has no target network, only an online one.')

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
            # The manager has forgotten the checkpoints that the failed one was to replace.
            self._manager.reload()
            raise self._write_error(error) from error

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
                f'no checkpoint in {self._workdir}: is it the workdir of a run that has saved one?')
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise FileNotFoundError(
                f'no checkpoint of step {step} in {self._workdir}: there are those of {steps}')
        return step, self._manager.metadata(step).item_metadata[_ITEM].tree

    def _restore(self, step: int, target: Any, **options) -> Any:
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), **options)
        with jax.transfer_guard('allow'):
            return self._manager.restore(step, args=ocp.args.Composite(**{_ITEM: args}))[_ITEM]


def _unreadable_steps(directory: pathlib.Path) -> list[tuple[int, str]]:
    """(step, why) of those that are empty, or whose metrics are cut short."""
    found = []
    for path in sorted(directory.glob('*')):
        metrics = path / 'metrics' / 'metrics'
        if not path.name.isdigit() or not path.is_dir():
            continue
        if not any(path.iterdir()):
            found.append((int(path.name), 'it is empty'))
        elif metrics.exists():
            try:
                json.loads(metrics.read_text())
            except ValueError as error:
                found.append((int(path.name), f'its metrics: {error}'))
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


def _tree_differences(stored: Any, wanted: Any) -> list[str]:
    def describe(tree):
        return {jax.tree_util.keystr(path, simple=True, separator='/'):
                f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    return _differences(describe(stored), describe(wanted), 'in the checkpoint', 'here')


def _differences(old: dict, new: dict, old_name: str, new_name: str) -> list[str]:
    """One phrase for every key at which the two flat dicts differ, in the order of `new`."""
    absent = object()

    def say(value):
        return 'absent' if value is absent else repr(value)

    pairs = {key: (old.get(key, absent), new.get(key, absent)) for key in {**new, **old}}
    return [f'{key}: {say(before)} {old_name}, {say(after)} {new_name}'
            for key, (before, after) in pairs.items() if before != after]


def _first(items: list[str], count: int = 4) -> str:
    more = [f'and {len(items) - count} more'] if len(items) > count else []
    return '; '.join(items[:count] + more)


def save_config(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
    """Writes `config`, a nested dict of JSON values, to workdir/config.json (process 0 only)."""
    _write_json(pathlib.Path(workdir) / 'config.json', config)


def load_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads what save_config wrote; tuples come back as lists.

    Raises:
        FileNotFoundError: the directory has no config.json.
    """
    path = pathlib.Path(workdir) / 'config.json'
    if not path.exists():
        raise FileNotFoundError(f'no config.json in {workdir}: is it a workdir of simclr_jax?')
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): restore it, or remove it to have the next run write it '
                         'anew.') from None


def kept_dtype(workdir: str | os.PathLike) -> str:
    """The dtype of the activations of the run in `workdir`; 'auto' where there is none."""
    if not (pathlib.Path(workdir) / 'config.json').exists():
        return 'auto'
    return load_config(workdir).get('encoder', {}).get('dtype', 'auto')


def has_data(workdir: str | os.PathLike) -> bool:
    """Whether a workdir says which data it was trained on."""
    return (pathlib.Path(workdir) / 'data.json').exists()


def save_data(workdir: str | os.PathLike, source: Any) -> None:
    """Writes what is known of the training data (a `Source`) to workdir/data.json (process 0 only)."""
    _write_json(pathlib.Path(workdir) / 'data.json', _describe_data(source))


def check_data(workdir: str | os.PathLike, source: Any) -> None:
    """ValueError, with what differs, unless `source` holds the data that the workdir was trained on.

    Where they lie, and what they are called, may have changed.
    """
    path = pathlib.Path(workdir) / 'data.json'
    try:
        then = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): restore it, or remove it.') from None
    now = _describe_data(source)
    if then.get('fingerprint') == now['fingerprint']:
        return
    if then.get('num_examples') != now['num_examples']:
        what = f'{then.get("num_examples"):,} images then, {now["num_examples"]:,} now'
    elif then.get('class_names') != now['class_names']:
        what = f'{len(then.get("class_names") or ())} classes then, {len(now["class_names"] or ())} now'
    else:
        what = f'{now["num_examples"]:,} images as then, but other ones, or in another order'
    raise ValueError(f'The training data of {workdir} have changed: {what}. Restore them, or give another --workdir.')


def _describe_data(source: Any) -> dict[str, Any]:
    return {'name': source.name, 'split': source.split, 'num_examples': source.num_examples,
            'class_names': list(source.class_names) if source.class_names else None,
            'fingerprint': source.fingerprint()}


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a whole checkpoint lies in `workdir`; looks, and touches nothing."""
    return any(path.name.isdigit() for path in pathlib.Path(workdir).glob('checkpoints/*'))


def check_config(workdir: str | os.PathLike, config: dict[str, Any],
                 ignore: tuple[str, ...] = ('log',)) -> None:
    """Refuses to go on in a workdir that was made with another config; a new workdir is fine.

    A field that a later version added, and that has its default now, is no difference: defaults do what
    was done before there was a choice.

    Args:
        workdir: directory of the run.
        config: nested dict of JSON values. Tuples equal lists.
        ignore: dotted names ('log', 'data.dir') that may differ, with all below them.

    Raises:
        ValueError: it names each field that differs, with both values.
    """
    if not (pathlib.Path(workdir) / 'config.json').exists():
        return

    def compared(nested):
        return {name: value for name, value in flatten(nested).items()
                if not any(f'{name}.'.startswith(f'{prefix}.') for prefix in ignore)}

    now = compared(json.loads(json.dumps(config)))  # as it would be read back
    then = compared(load_config(workdir))
    added = {name: value for name, value in flatten(json.loads(base_config().to_json())).items()
             if name not in then and name in now}
    differences = _differences(added | then, now, 'in the workdir', 'now')
    if differences:
        raise ValueError(f'{workdir} was made with another config: {"; ".join(differences)}. '
                         'Give another --workdir, or set these fields back')


def save_versions(workdir: str | os.PathLike) -> None:
    """Writes versions.json: python, packages, platform and devices of this run (process 0)."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    _write_json(pathlib.Path(workdir) / 'versions.json', {
        'simclr_jax': simclr_jax.__version__,
        'python': platform.python_version(),
        'packages': packages,
        'platform': platform.platform(),
        'backend': jax.default_backend(),
        'device_kind': jax.devices()[0].device_kind,
        'devices': jax.device_count(),
        'local_devices': jax.local_device_count(),
        'processes': jax.process_count(),
    })


def _write_json(path: pathlib.Path, value: Any) -> None:
    """A reader, and a run killed in the middle, finds the old file or the new one."""
    text = json.dumps(value, indent=2) + '\n'
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_text(text)
    os.replace(temporary, path)
