"""The processes of a run (`--multihost`), seen from one of them."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # its key-value store has no public name

from simclr_jax.runtime.watchdog import Watchdog

_RESUME = 'The same command resumes from the last checkpoint.'


class Processes:
    """All processes of a run: if one fails or hangs, all say why and end.

    Left to itself, jax would have the others wait: for minutes in a collective operation, until the
    heartbeats are missed, or for ever where these go on, and then end in tracebacks that do not name the
    cause. The processes exit with the status of the one that failed. Status 75 means that one was lost
    without a word (a host that is gone, SIGKILL), or hangs, or never came, and that the same command
    resumes from the last checkpoint.
    """

    _FAILED, _SECONDS, _LOST = 'simclr_jax/failed', 1.0, 75     # 75: EX_TEMPFAIL of sysexits.h

    def __init__(self, coordinator: str | None, num_processes: int | None, process_id: int | None, *,
                 timeout: float = 300.0, show_traceback: bool = False):
        """Joins the others. ValueError where the arguments are no set, or nothing says who the others are.

        Args:
            coordinator: host:port of process 0; None, with the next two, on a TPU pod, under Slurm or in
                Kubernetes.
            timeout: seconds that the others are waited for: to join, and in a step (runtime/watchdog.py).
            show_traceback: also of a process that was lost.
        """
        self._show_traceback = show_traceback
        given = [value is not None for value in (coordinator, num_processes, process_id)]
        if any(given) and not all(given):
            raise ValueError('--coordinator, --num_processes and --process_id go together.')
        if not timeout > 0:
            raise ValueError(f'--timeout is {timeout:g}: it takes seconds, more than 0.')
        # jax's own handler would swallow the first SIGTERM; the trainer has its own.
        jax.config.update('jax_enable_preemption_service', False)
        # jax's own limits, at which it aborts with a stack of C++ alone, come after ours.
        late = round(2 * timeout) + 60
        impatient = threading.Timer(timeout, self._not_joined, [timeout])
        impatient.daemon = True
        impatient.start()
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=late,
                                       heartbeat_timeout_seconds=late,
                                       cluster_detection_method='deactivate' if all(given) else None)
        except ValueError as error:
            if all(given):
                raise
            raise ValueError('--multihost finds no TPU pod, no Slurm job and no Kubernetes job here: '
                             'give --coordinator, --num_processes and --process_id.') from error
        finally:
            impatient.cancel()
        self._client: Any = global_state.client
        self._number = global_state.process_id
        self._name = _name()
        self._left = threading.Event()
        self._lock = threading.Lock()       # one cause is told, not two
        threading.Thread(target=self._listen, daemon=True).start()
        self._watchdog = Watchdog(self._client, self._number, global_state.num_processes, self._name, timeout=timeout,
                                  end=lambda sentence: self.fail(f'{sentence}. {_RESUME}', self._LOST),
                                  asleep=self._end_alone)

    def leave(self) -> None:
        """Stops to listen: jax may now end the connection."""
        self._watchdog.leave()
        self._left.set()
        with self._lock:
            pass

    def fail(self, sentence: str, status: int) -> NoReturn:
        """Says why this process ends, here and to the others, and ends it with `status`."""
        with self._lock:
            print(f'error: {self._name}: {sentence}', file=sys.stderr, flush=True)
            # In a thread: process 0, which keeps it, may be gone, or stopped and not answer.
            threading.Thread(target=self._tell, args=[f'{status} {self._name} failed: {sentence}'], daemon=True).start()
            time.sleep(2 * self._SECONDS)       # until all have heard it
            self._exit(status)

    def fail_unexpectedly(self, error: Exception) -> NoReturn:
        """As fail(), of an error of the program, or of a collective operation that lost a process."""
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if lost:
            time.sleep(2 * self._SECONDS)       # did another one fail? then _listen() ends this one
        if self._show_traceback or not lost:
            traceback.print_exception(error)
        sentence = f'{type(error).__name__}: {error}'.partition('\n')[0]
        self.fail(f'a process was lost, or a device failed: {sentence}' if lost else sentence,
                  self._LOST if lost else 1)

    def _tell(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._client.key_value_set(f'{self._FAILED}/{self._number}', text)

    def _not_joined(self, timeout: float) -> None:
        """Ends this process, which waits for the others to join: jax would abort."""
        address, number = global_state.coordinator_address, global_state.process_id
        if number == 0:
            sentence = (f'waited {timeout:g} s for the others, and not all have joined at {address}. Start each with '
                        'the same --coordinator and --num_processes, and a --process_id of its own')
        elif address and _answers(address):
            sentence = f'waited {timeout:g} s for the others, and not all have joined process 0 at {address}'
        else:
            sentence = f'process 0 has not answered at {address} for {timeout:g} s: start it, or open the port'
        self._end_alone(sentence)

    def _end_alone(self, sentence: str) -> NoReturn:
        """Ends this process at once: there is nobody to tell."""
        print(f'error: {_name()}: {sentence}.', file=sys.stderr, flush=True)
        os._exit(self._LOST)

    def _listen(self) -> None:
        while not self._left.wait(self._SECONDS):
            try:
                failed = self._client.key_value_dir_get(self._FAILED)
            except jax.errors.JaxRuntimeError:
                return          # process 0 is gone: jax ends this one
            with self._lock:
                if failed and not self._left.is_set():
                    status, cause = failed[0][1].split(' ', 1)
                    print(f'error: {self._name}: stopped because {cause}', file=sys.stderr, flush=True)
                    self._exit(int(status))

    def _exit(self, status: int) -> NoReturn:
        if self._number == 0:       # last: jax aborts the others, with a stack trace, if it goes first
            time.sleep(4 * self._SECONDS)
        sys.stdout.flush()
        os._exit(status)        # sys.exit would wait for the others to leave in good order


def _name() -> str:
    return f'process {global_state.process_id} of {global_state.num_processes} ({socket.gethostname()})'


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=2).close()
    except OSError:
        return False
    return True
