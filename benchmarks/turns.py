"""Contenders that are processes of their own and take turns, so that the noise of a machine hits all alike.

The standard library alone: a contender may run under another interpreter. It is a program that calls `serve`;
all others wait on their pipes while it has its turn.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

KEPT = 'BENCHMARK_KEEPS_FREED_MEMORY'       # environment variable: set, contenders give no memory back
LONGEST = 3600.0    # seconds that an answer may take: PyTorch's threads have been seen to wait for each other for ever


class Failed(Exception):
    """A contender ended without an answer, or gave none in time; its last words."""


class Contender:
    """A process that answers requests, one at a time.

    Attributes:
        ready: what it said when it was ready, {} before.
        seconds: from the start of the process until then.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]):
        self._command, self._environment = command, {**os.environ, **environment}
        self._process, self._log = None, None
        self.ready, self.seconds = {}, 0.0

    def start(self) -> dict[str, Any]:
        """Starts the process and waits until it is ready; raises Failed."""
        started = time.perf_counter()
        self._log = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            self._command, env=self._environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log)
        self.ready = self._answer()
        self.seconds = time.perf_counter() - started
        return self.ready

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """The answer of the handler called `request`; raises Failed, after which the process is gone."""
        try:
            self._process.stdin.write(json.dumps([request, arguments]) + '\n')
            self._process.stdin.flush()
        except BrokenPipeError:
            pass                                            # its last words say why
        return self._answer()

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is None:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._process = None

    def _answer(self):
        hangs = threading.Timer(LONGEST, self._process.kill)
        hangs.start()
        for line in self._process.stdout:                   # libraries may print, too
            if line.startswith('ANSWER '):
                hangs.cancel()
                return json.loads(line.removeprefix('ANSWER '))
        hangs.cancel()
        self._process.wait()
        self._log.seek(0)
        words = [line for line in self._log.read().splitlines() if line.strip()][-3:]
        self.close()
        raise Failed(' '.join(words) or 'it ended without a word')


def keep_freed_memory() -> None:
    """As the field of that name, where `KEPT` asks for it; to be called before a library starts its threads."""
    if os.environ.get(KEPT):
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
        from simclr_jax.runtime import memory  # needs the standard library alone

        if not memory.keep_freed_memory():
            raise Failed('freed memory cannot be kept here')


def serve(ready: dict[str, Any], handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Says `ready` and the 'cpu_seconds' so far; then answers requests, by the handler of that name."""
    _say(ready | {'cpu_seconds': time.process_time()})
    for line in sys.stdin:
        request, arguments = json.loads(line)
        _say(handlers[request](**arguments))


def _say(answer):
    print('ANSWER ' + json.dumps(answer), flush=True)


def timed(run: Callable[[], Any]) -> dict[str, Any]:
    """{'seconds', 'cpu_seconds': of all threads of this process, 'result'} of `run`."""
    started, cpu_started = time.perf_counter(), time.process_time()
    result = run()
    return {'cpu_seconds': time.process_time() - cpu_started, 'seconds': time.perf_counter() - started,
            'result': result}


def seconds_a_call(call: Callable[[int], Any], budget: float) -> float:
    """Seconds of one of the calls that `call(count)` makes and waits for; `budget` seconds of them."""
    once = timed(lambda: call(1))['seconds']
    count = max(1, int(budget / max(once, 1e-6)))
    return min(once, timed(lambda: call(count))['seconds'] / count)


def reset_peak() -> None:
    """Lets `peak_resident` count from now on, where the system can."""
    try:
        pathlib.Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pass


def peak_resident() -> int:
    """Bytes of memory that this process had at most."""
    try:
        lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    except OSError:                                         # no /proc: macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1])
