"""Each step's metrics, read while the next step runs, so that the devices never wait for a print."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from simclr_jax.runlog.progress import duration
from simclr_jax.runlog.writer import MetricWriter

_LONG = 3600        # seconds of a run whose length is noted before there is a row
_SLOW_SHARE, _SLOW_SECONDS = 0.5, 30.0      # of a row's time and of the run: from here on waiting is noted


class LateLog:
    """Hands a step's metrics to the writer one step later, and stops a run whose loss is not finite.

    Args:
        writer: of the rows.
        every_steps: which steps have a row, beside the last one.
        waited: () -> seconds for which the loop has waited for batches so far.
        num_steps: of the run.
        layers: the paths of the parameters that the metric 'trust_ratios' [L] is of.
        judge: (step, row) -> a sentence to note, or ''.
        advice: () -> what to do about a loss that is not finite: the end of a sentence.
        faster_input: what to do where the devices wait for images for most of the time: likewise; '' is nothing.
    """

    def __init__(self, writer: MetricWriter, *, every_steps: int, num_steps: int, waited: Callable[[], float],
                 layers: Sequence[str], judge: Callable[[int, dict], str], advice: Callable[[], str],
                 faster_input: str = ''):
        self._writer, self._every_steps, self._waited = writer, every_steps, waited
        self._layers, self._judge, self._advice, self._faster_input = layers, judge, advice, faster_input
        self._num_steps, self._first_steps = num_steps, []      # when the first two of them ended
        self._pending = None
        self._once = {}

    def restart(self, step: int) -> None:
        """Counts from `step` on how long the devices wait for input: before the loop, and after a pause."""
        self._since = self._clocks(step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside out of the throughput and out of the share of waiting."""
        self.flush()
        started = time.perf_counter()
        with self._writer.pause():
            yield
        self._since[1] += time.perf_counter() - started

    def add(self, metrics: dict[str, float]) -> None:
        """Adds what was measured once to the next row."""
        self._once |= metrics

    def due(self, step: int) -> bool:
        """Whether the metrics of `step` will be written."""
        return step % self._every_steps == 0 or step == self._num_steps

    def __call__(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.flush()
        self._pending = step, metrics, self._clocks(step)

    def flush(self) -> None:
        """Writes what is due; FloatingPointError if the loss was not finite."""
        if self._pending is None:
            return
        (step, metrics, ended), self._pending = self._pending, None
        loss, norm = jax.device_get((metrics['loss'], metrics['gradient_norm']))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f'The loss is {loss} and the gradient norm {norm} at step {step}. '
                                     + self._advice())
        self._tell_length(step)
        if self.due(step):
            metrics = jax.device_get(metrics)
            ratios = metrics.pop('trust_ratios', ())
            metrics |= {f'trust_ratio/{layer}': ratio for layer, ratio in zip(self._layers, ratios)}
            waits = self._waits(ended)
            self._writer.write(step, metrics | waits | self._once)
            self._once = {}
            share = waits['input_wait_share']
            if self._faster_input and share > _SLOW_SHARE and self._waited() > _SLOW_SECONDS:
                self._writer.note(f'The devices wait for images {100 * share:.0f} % of the time: ' + self._faster_input)
                self._faster_input = ''
            sentence = self._judge(step, metrics)
            if sentence:
                self._writer.note(sentence)

    def _tell_length(self, step: int) -> None:
        """A note of how long a run takes, if it is long: the first row of a slow one comes late."""
        if len(self._first_steps) == 2:
            return
        self._first_steps.append(time.perf_counter())
        if len(self._first_steps) == 2:         # the first one was compiled
            seconds = self._first_steps[1] - self._first_steps[0]
            if seconds * (self._num_steps - step) > _LONG:
                self._writer.note(f'The second step took {seconds:.2g} s: {self._num_steps - step:,} more take about '
                                  f'{duration(seconds * (self._num_steps - step))}.')

    def _clocks(self, step: int) -> np.ndarray:
        return np.array([step, time.perf_counter(), self._waited()])

    def _waits(self, ended: np.ndarray) -> dict[str, float]:
        """For how long a step of this row waited for its batch, and which share of its time that was."""
        (steps_made, seconds, waited), self._since = ended - self._since, ended
        return {'input_wait_ms': 1000 * waited / steps_made, 'input_wait_share': waited / seconds}
