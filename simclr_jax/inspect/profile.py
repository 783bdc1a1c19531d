"""Traces of training steps by jax.profiler: those that are asked for, and three for the step breakdown."""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from simclr_jax import storage
from simclr_jax.inspect import step_breakdown

_SETTLED = 10           # steps of a run before those of the breakdown: they compile, and use up read batches
_BREAKDOWN = 3          # steps


class StepProfiler:
    """Traces windows of a training loop, and tells where the traces lie and what they say.

    The lead process alone traces, and its devices stand for the others. Outside of its windows nothing is
    waited for; where one begins and where it ends, the devices are. What is computed stays the same.

    Args:
        writer: a MetricWriter.
        workdir: its subdirectory 'profile' takes the trace of `steps`.
        steps: (first, last): steps first to last - 1; () for none.
        breakdown: whether three steps are traced for the step breakdown too, soon after the start.
        start: the step resumed from.
        num_steps: of the whole run.
        is_lead: False on the processes that trace nothing.
        waited: () -> seconds in which the loop has waited for batches so far.
    """

    def __init__(self, writer, workdir: str, *, steps: tuple[int, ...], breakdown: bool, start: int,
                 num_steps: int, is_lead: bool, waited: Callable[[], float]):
        self._writer, self._waited = writer, waited
        self._directory = os.path.join(storage.local_dir(workdir), 'profile')
        self._shown = os.path.join(workdir, 'profile')
        self._annotation: Any = None            # of the step that is being traced
        self._started: Any = None               # when the trace was, in seconds
        windows = {}                            # {first step: (last step, whether it is the breakdown's)}
        if steps and steps[1] - 1 > start:
            windows[max(steps[0], start + 1)] = steps[1] - 1, False
        elif steps:
            writer.note(f'profile_steps {steps[0]},{steps[1]}: the run resumes after step {start:,}, past '
                        'them; nothing is traced.')
        first = start + 1 + _SETTLED
        if windows and first < steps[1] and steps[0] < first + _BREAKDOWN:
            first = steps[1]                    # two traces at once are not possible
        if breakdown and first + _BREAKDOWN - 1 <= num_steps:
            windows[first] = first + _BREAKDOWN - 1, True
        self._windows = windows if is_lead else {}

    def begin(self, step: int, state: Any) -> None:
        """To be called before the batch of `step` is taken, with the state before it."""
        if step in self._windows:
            self._open(step, state)
        if self._started is not None:
            self._annotation = jax.profiler.StepTraceAnnotation('train', step_num=step)
            self._annotation.__enter__()

    def end(self, step: int, state: Any) -> bool:
        """To be called after `step`, with the state after it; True if `report` has something to tell."""
        if self._started is None:
            return False
        self._annotation.__exit__(None, None, None)
        self._annotation, self._done = None, step
        if step == self._last:
            jax.block_until_ready(state)
            self._close()
        return self._started is None

    def report(self, program: Callable[[], str]) -> dict[str, float]:
        """Tells of the trace that has just ended; `program` gives the text of the compiled step.

        Returns:
            {'step_ms/PART': ms} of a breakdown, else {}.
        """
        if not self._scratch:
            self._tell_trace()
            return {}
        try:
            with self._scratch as directory:
                file, = pathlib.Path(directory).rglob('*.xplane.pb')
                trace = jax.profiler.ProfileData.from_file(str(file))
                parts = step_breakdown.step_breakdown(trace, program(), num_steps=_BREAKDOWN, seconds=self._seconds,
                                                      waited=self._waited_for)
        except Exception as error:              # whatever it is: a run of days does not end for a table
            self._writer.note(f'No step breakdown: {error!r}')
            return {}
        if not parts:
            self._writer.note('No step breakdown: the profiler saw no operation of the step on this device.')
            return {}
        self._writer.table(f'step breakdown: of steps {self._first:,} to {self._last:,}',
                           ['part', 'ms a step', '%'], step_breakdown.table(parts))
        return {f'step_ms/{name}': ms for name, ms in parts.items()}

    def __enter__(self) -> 'StepProfiler':
        return self

    def __exit__(self, *exception) -> None:
        """Ends a trace that the run did not live to end."""
        if self._started is None:
            return
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
        self._close()
        if self._scratch:
            self._scratch.cleanup()
        elif self._done:
            self._tell_trace()

    def _open(self, step: int, state: Any) -> None:
        self._first, self._done = step, 0
        self._last, is_breakdown = self._windows[step]
        self._scratch = tempfile.TemporaryDirectory(prefix='simclr_jax_trace_') if is_breakdown else None
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0         # every Python call would slow down what is measured
        jax.block_until_ready(state)
        try:
            jax.profiler.start_trace(self._scratch.name if self._scratch else self._directory,
                                     profiler_options=options)
        except RuntimeError as error:           # of this process somebody else takes a trace, say
            self._writer.note(f'Steps {step:,} to {self._last:,} are not traced: {error}')
            if self._scratch:
                self._scratch.cleanup()
            return
        self._started, self._waited_for = time.perf_counter(), self._waited()

    def _close(self) -> None:
        self._seconds = time.perf_counter() - self._started
        self._waited_for = self._waited() - self._waited_for
        self._started = None
        jax.profiler.stop_trace()

    def _tell_trace(self) -> None:
        self._writer.note(f'Steps {self._first:,} to {self._done:,} are traced in {self._shown}; to see '
                          f'them: pip install xprof, then tensorboard --logdir={self._shown}')
