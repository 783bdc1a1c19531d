"""What is computed of an encoder while it trains: evaluators, those of a user and those of every run.

An evaluator is called as `evaluator(encode, step)` and returns {name: scalar, or an image uint8 [H, W, 3]}.
`encode` takes images [B, H, W, 3], float in [0, 1] or uint8, to features [B, D] float32, and has the `state`
after the step and the `batch` of it. Attributes that an evaluator may have:

    every_epochs    how often it is called (0: only at the end); else eval.evaluators_every_epochs
    every_steps     instead: its metrics go into a row of the log, the first after every so many steps, and the last;
                    arrays of the device are read there later
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from simclr_jax.config import ConfigDict, names
from simclr_jax.data.source import Source
from simclr_jax.evaluate.accuracies import heldout_accuracy
from simclr_jax.evaluate.health import make_health
from simclr_jax.models.network import Network
from simclr_jax.training.state import TrainState
from simclr_jax.training.steps import jit_seldom

Metrics = Mapping[str, float | jax.Array | np.ndarray]


class Evaluator(Protocol):
    """Measures the encoder after a step: names and scalars, or images, for the log."""

    def __call__(self, encode: 'StepEncoder', step: int) -> Metrics: ...


@runtime_checkable
class EveryStepsEvaluator(Evaluator, Protocol):
    """One whose metrics go into rows of the log."""

    every_steps: int        # 1 or more


class EveryRun:
    """An evaluator that every run has."""


class StepEncoder(NamedTuple):
    """The encoder after a step, and what else the step leaves to be looked at."""

    encode: Callable[[Any, jax.typing.ArrayLike], jax.Array]    # (variables, images) -> features
    state: TrainState
    batch: Mapping[str, jax.Array]                  # as it came to the devices, see data/batches.py
    network: str = 'online'                         # or 'target'

    def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
        return self.encode(self.state.variables(self.network), images)


class Run(NamedTuple):
    """What an evaluator that a config names may know of its run."""

    config: ConfigDict
    workdir: str
    mesh: jax.sharding.Mesh
    train_source: Source
    test_source: Source | None
    is_measurable: bool         # whether both splits have labels


class HeldOutKnn(EveryRun):
    """`knn_accuracy` on held-out training images, what checkpoints are chosen by."""

    def __init__(self, run: Run):
        self._run, self.every_epochs = run, run.config.eval.knn_every_epochs

    def __call__(self, encode: StepEncoder, step: int) -> Metrics:
        accuracy = heldout_accuracy(encode, self._run.train_source, self._run.config, self._run.mesh)
        return {'knn_accuracy': accuracy}


class Health(EveryRun):
    """The health of the representation on the views of the step, which `prepare` makes (evaluate/health.py)."""

    def __init__(self, network: Network, prepare: Callable[[dict, jax.Array], dict], every_steps: int):
        health = make_health(network)

        def of_step(state: TrainState, batch: dict) -> Metrics:
            views = prepare(batch, state.step - 1)
            return health(state.variables(), views['view1'], views['view2'])

        self._health, self.every_steps = jit_seldom(of_step), every_steps

    def __call__(self, encode: StepEncoder, step: int) -> Metrics:
        return self._health(encode.state, encode.batch)


def make_evaluators(run: Run, given: Sequence[Evaluator] = ()) -> list[Evaluator]:
    """Those that `eval.evaluators` names, and those that are given.

    A name is that of a function (encode, step), or of a class, which is called with the `Run`, or with
    nothing where it takes no argument.

    Raises:
        ValueError: no such name, or nothing that can be called.
    """
    found = []
    for name in run.config.eval.evaluators:
        evaluator = names.resolve(name, 'eval.evaluators')
        if inspect.isclass(evaluator):
            arguments = (run,) if inspect.signature(evaluator).parameters else ()
            evaluator = evaluator(*arguments)
        found.append(evaluator)
    found += given
    for evaluator in found:
        if not callable(evaluator):
            raise ValueError(f'The evaluator {evaluator!r} cannot be called: it is a function (encode, step) '
                             '-> metrics.')
    return found


def split_by_schedule(evaluators: Sequence[Evaluator], default_every_epochs: float
                      ) -> tuple[list[EveryStepsEvaluator], list[tuple[Evaluator, float]]]:
    """(evaluators of rows, [(evaluator, every so many epochs)])."""
    of_rows = [each for each in evaluators if isinstance(each, EveryStepsEvaluator)]
    of_epochs = [(each, getattr(each, 'every_epochs', default_every_epochs)) for each in evaluators
                 if not isinstance(each, EveryStepsEvaluator)]
    return of_rows, of_epochs


def joined(metrics: Metrics, evaluator: Evaluator, encode: StepEncoder, step: int) -> dict[str, Any]:
    """`metrics` and what the evaluator measures; of a name that both have, the run's own keeps it, and neither is lost.

    So the names of `EveryRun` are the same for every method: an objective's 'alignment' then is
    'objective/alignment', and that of a user's evaluator Mine is 'Mine/alignment'.
    """
    measured = evaluator(encode, step)
    if isinstance(evaluator, EveryRun):
        first, then, taken, source = measured, metrics, measured, 'objective'
    else:
        first, then, taken = metrics, measured, (*metrics, 'knn_accuracy', 'knn_floor')     # measured now, or not
        source = getattr(evaluator, '__name__', type(evaluator).__name__)
    return {**first, **{f'{source}/{name}' if name in taken else name: value for name, value in then.items()}}
