"""SIGINT and SIGTERM, as a question that a training loop asks after its steps."""

import signal

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.runtime import sharding


class Interruption:
    """Turns SIGINT and SIGTERM into a question that the loop asks; a second Ctrl-C acts at once."""

    def __init__(self, mesh: jax.sharding.Mesh, every_steps: int):
        self._mesh, self._every_steps = mesh, every_steps
        self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
        self._signal = self._asked = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._receive)
                        for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        del frame
        self._signal = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def arrived(self, step: int) -> bool:
        """Whether to stop after `step`, the same in every process.

        Several processes ask each other, so not after every step, and read the answer a step later: it is
        there by then, and no device waits for it.
        """
        if jax.process_count() == 1:
            return self._signal is not None
        asked, self._asked = self._asked, None
        if step % self._every_steps == 0:
            mine = np.full(len(self._mesh.local_devices), self._signal is not None)
            self._asked = self._any(sharding.put_batch(self._mesh, mine))
        return asked is not None and bool(jax.device_get(asked))

    def leave(self, writer, step: int) -> None:
        """Says so and exits with the status of a process that the signal ended."""
        number = self._signal or signal.SIGTERM      # it may have come to another process
        writer.note(f'Stopped by {signal.Signals(number).name} after step {step:,}; the state is saved, '
                    'and the same command resumes from there.')
        raise SystemExit(128 + number)
