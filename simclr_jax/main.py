"""The command: `python -m simclr_jax.main --config=configs/smoke.py --workdir=DIR`."""

import contextlib
import os
import runpy
import socket
import sys
import threading
import time
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from simclr_jax.config import ConfigDict, check_values, describe, flatten, nearest_field

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A recipe of configs/, such as configs/smoke.py or configs/cifar10.py:depth=50. '
    'Any field can be overridden: --config.batch_size=256.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run keeps its checkpoints, metrics and results. '
    'The same command with the same workdir goes on from the last checkpoint.')
_MULTIHOST = flags.DEFINE_bool(
    'multihost', False, 'Join the other processes first (jax.distributed). A TPU pod and Slurm say '
    'which these are; elsewhere give the three options below, to all the same but for process_id.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')
_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Show where an error came from.')


def main(argv: list[str]) -> None:
    """Runs `config.task`; what a user can mend ends in one sentence and exit status 1."""
    processes = None
    try:
        if len(argv) > 1:
            raise ValueError(f'Unexpected argument {argv[1]!r}: options are written --name=value.')
        config = _CONFIG.value
        check_values(config)
        task = _task(config.task)
        import jax    # only now: a mistyped option is told at once

        from simclr_jax.checkpoint import quiet_orbax_logs
        quiet_orbax_logs()
        if not flags.FLAGS['verbosity'].present:
            logging.set_verbosity(logging.WARNING)      # or jax tells of every backend that is not there
        if config.task == 'plan':
            from simclr_jax.plan import prepare
            prepare(config)         # before jax looks for devices
        if _MULTIHOST.value:
            processes = _Processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if jax.process_index() == 0:
            print(describe(config), end='\n\n', flush=True)
        task(config, os.path.abspath(os.path.expanduser(_WORKDIR.value)))
    except KeyboardInterrupt:
        if processes:
            processes.fail('interrupted', 130)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError) as error:
        if _TRACEBACK.value:
            traceback.print_exc()
        if processes:
            processes.fail(str(error), 1)
        sys.exit(f'error: {error}')
    except Exception as error:
        if not processes:
            raise
        processes.fail_unexpectedly(error)
    finally:
        if processes:
            processes.leave()


def _task(name: str):
    """The function (config, workdir) behind a task; ValueError names the known ones."""
    if name == 'pretrain':
        from simclr_jax.train import pretrain
        return pretrain
    if name == 'linear':
        from simclr_jax.evaluate.linear import linear
        return linear
    if name == 'plan':
        from simclr_jax.plan import plan
        return plan
    raise ValueError(f'task is {name!r}; the tasks are pretrain, linear and plan.')


class _Processes:
    """The processes of a run, seen from one of them: if one fails, all say why and end within seconds.

    Left to itself, jax would have the others wait: for minutes in a collective operation, until the
    heartbeats are missed, and then end in tracebacks that do not name the cause. The processes exit
    with the status of the one that failed. Status 75 means that one was lost without a word (a host
    that is gone, SIGKILL), and that the same command goes on from the last checkpoint.
    """

    _FAILED, _SECONDS, _LOST = 'simclr_jax/failed', 1.0, 75     # 75: EX_TEMPFAIL of sysexits.h

    def __init__(self, coordinator: str | None, num_processes: int | None, process_id: int | None):
        import jax
        from jax._src.distributed import global_state    # its key-value store has no public name

        given = [value is not None for value in (coordinator, num_processes, process_id)]
        if any(given) and not all(given):
            raise ValueError('--coordinator, --num_processes and --process_id go together.')
        # jax's own handler would swallow the first SIGTERM; the trainer has its own.
        jax.config.update('jax_enable_preemption_service', False)
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id,
                                       cluster_detection_method='deactivate' if all(given) else None)
        except ValueError as error:
            raise ValueError(f'--multihost finds no TPU pod and no Slurm job here ({error}); give '
                             '--coordinator, --num_processes and --process_id.') from error
        self._client, self._number = global_state.client, global_state.process_id
        self._name = f'process {self._number} of {global_state.num_processes} ({socket.gethostname()})'
        self._left = threading.Event()
        self._lock = threading.Lock()       # one cause is told, not two
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """Stops to listen: jax may now end the connection."""
        self._left.set()
        with self._lock:
            pass

    def fail(self, sentence: str, status: int) -> NoReturn:
        """Says why this process ends, here and to the others, and ends it with `status`."""
        with self._lock:
            print(f'error: {self._name}: {sentence}', file=sys.stderr, flush=True)
            with contextlib.suppress(RuntimeError):     # process 0, which keeps it, may be gone
                self._client.key_value_set(f'{self._FAILED}/{self._number}',
                                           f'{status} {self._name} failed: {sentence}')
            time.sleep(2 * self._SECONDS)       # until all have heard it
            self._exit(status)

    def fail_unexpectedly(self, error: Exception) -> NoReturn:
        """As fail(), of an error of the program, or of a collective operation that lost a process."""
        import jax
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if lost:
            time.sleep(2 * self._SECONDS)       # did another one fail? then _listen() ends this one
        if _TRACEBACK.value or not lost:
            traceback.print_exception(error)
        sentence = f'{type(error).__name__}: {error}'.partition('\n')[0]
        self.fail(f'a process was lost, or a device failed: {sentence}' if lost else sentence,
                  self._LOST if lost else 1)

    def _listen(self) -> None:
        import jax
        while not self._left.wait(self._SECONDS):
            with self._lock:
                try:
                    failed = self._client.key_value_dir_get(self._FAILED)
                except jax.errors.JaxRuntimeError:
                    return          # process 0 is gone: jax ends this one
                if failed and not self._left.is_set():
                    status, cause = failed[0][1].split(' ', 1)
                    print(f'error: {self._name}: stopped, for {cause}', file=sys.stderr, flush=True)
                    self._exit(int(status))

    def _exit(self, status: int) -> NoReturn:
        if self._number == 0:       # last: jax aborts the others, with a stack trace, if it goes first
            time.sleep(4 * self._SECONDS)
        sys.stdout.flush()
        os._exit(status)        # sys.exit would wait for the others to leave in good order


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's own parser, after a look at the config and its overrides for better messages."""
    try:
        named = [item.partition('=')[2] for item in argv if item.startswith('--config=')]
        if named:
            _check_overrides(_load_config(named[-1]), argv)
        return flags.FLAGS(argv)
    except (ValueError, OSError, flags.Error) as error:
        sys.exit(f'error: {error}')


def _load_config(named: str) -> ConfigDict:
    path, _, argument = named.partition(':')
    if not os.path.isfile(path):
        raise FileNotFoundError(f'No config file {path}: the recipes are in configs/, '
                                'and paths are relative to the current directory.')
    return runpy.run_path(path)['get_config'](argument)


def _check_overrides(config: ConfigDict, argv: list[str]) -> None:
    fields = flatten(config)
    for item in argv:
        name = item.removeprefix('--config.').partition('=')[0]
        known = name in fields or any(field.startswith(f'{name}.') for field in fields)
        if item.startswith('--config.') and not known:
            near = nearest_field(config, name)
            hint = f'did you mean {near!r}?' if near else 'simclr_jax/config.py lists them.'
            raise ValueError(f'The config has no field {name!r}; {hint}')


def run() -> None:
    """The console entry point."""
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main, flags_parser=_parse_flags)


if __name__ == '__main__':
    run()
