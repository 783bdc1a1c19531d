"""What is computed of an encoder while it trains: evaluators, those of a user and those of every run.

An evaluator is called as `evaluator(encode, step)` and returns {name: scalar, or an image uint8 [H, W, 3]}.
`encode` takes images [B, H, W, 3], float in [0, 1] or uint8, to features [B, D] float32, and has the `state`
after the step and the `batch` of it. Attributes that an evaluator may have:

    every_epochs    how often it is called (0: only at the end); else eval.evaluators_every_epochs
    every_steps     instead: its metrics go into a row of the log, the first after every so many steps, and the last;
                    arrays of the device are read there later
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from simclr_jax.config import ConfigDict, names
from simclr_jax.data.source import Source
from simclr_jax.evaluate.accuracies import heldout_accuracy
from simclr_jax.evaluate.health import make_health
from simclr_jax.models.network import Network
from simclr_jax.training.state import TrainState
from simclr_jax.training.steps import OF_ROWS, jit_seldom

Metrics = Mapping[str, float | jax.Array | np.ndarray]
_RESERVED = (*OF_ROWS, 'knn_accuracy', 'knn_floor')     # of the run, measured at a step or not


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
            arguments = (run,) if any(parameter.default is parameter.empty for parameter in
                                      inspect.signature(evaluator).parameters.values()) else ()
            evaluator = evaluator(*arguments)
        found.append(evaluator)
    if not isinstance(given, list | tuple):
        raise ValueError(f'evaluators is {given!r}: it takes a list of functions (encode, step) -> metrics.')
    found += given
    for evaluator in found:
        if isinstance(evaluator, type) or not callable(evaluator):
            raise ValueError(f'The evaluator {evaluator!r} cannot be called: it is a function (encode, step) '
                             '-> metrics.')
        for name, least in (('every_steps', 1), ('every_epochs', 0)):
            value = getattr(evaluator, name, least)
            if not (isinstance(value, int | float) and least <= value < math.inf
                    and (least == 0 or isinstance(value, int))):
                raise ValueError(f'The evaluator {_name_of(evaluator)} has {name} {value!r}: it takes a '
                                 f'{"whole " * least}number, {least} or more.')
    return found


def split_by_schedule(evaluators: Sequence[Evaluator], default_every_epochs: float
                      ) -> tuple[list[EveryStepsEvaluator], list[tuple[Evaluator, float]]]:
    """(evaluators of rows, [(evaluator, every so many epochs)])."""
    of_rows = [each for each in evaluators if isinstance(each, EveryStepsEvaluator)]
    of_epochs = [(each, getattr(each, 'every_epochs', default_every_epochs)) for each in evaluators
                 if not isinstance(each, EveryStepsEvaluator)]
    return of_rows, of_epochs


class Joined:
    """Joins what the evaluators of a run measure to its metrics, each under a name of its own: none is lost.

    The names of `EveryRun` are the same for every method: an objective's 'alignment' then is 'objective/alignment',
    and that of a user's evaluator Mine, or a name that another evaluator gave first, 'Mine/alignment'.
    """

    def __init__(self):
        self._first: dict[str, Any] = {}        # that gave a name
        self._named: list[Any] = []             # evaluators that stand before a name

    def __call__(self, metrics: Metrics, evaluator: Evaluator, encode: StepEncoder, step: int, *,
                 beside: Collection[str] = ()) -> dict[str, Any]:
        """`metrics` and those of evaluator(encode, step). `beside`: further names that the step has.

        ValueError: it gives something else than {name: real scalar, or image uint8 [H, W, 3]}.
        """
        if isinstance(evaluator, EveryRun):
            measured = evaluator(encode, step)
            self._first |= dict.fromkeys(measured, evaluator)
            return {**measured, **{f'objective/{name}' if name in measured else name: value
                                   for name, value in metrics.items()}}
        with jax.transfer_guard('allow'):       # it may bring images of its own
            measured, found = evaluator(encode, step), dict(metrics)
        for name, value in _checked(measured, evaluator).items():
            taken = name in _RESERVED or name in beside or name in metrics
            if taken or self._first.setdefault(name, evaluator) is not evaluator:
                name = f'{self._label(evaluator)}/{name}'
            found[name] = value
        return found

    def _label(self, evaluator: Evaluator) -> str:
        """Its name, and a number from the second of a name on."""
        if not any(each is evaluator for each in self._named):
            self._named.append(evaluator)
        alike = [each for each in self._named if _name_of(each) == _name_of(evaluator)]
        number = next(number for number, each in enumerate(alike, 1) if each is evaluator)
        return _name_of(evaluator) + (f'_{number}' if number > 1 else '')


def _name_of(evaluator: Any) -> str:
    return getattr(evaluator, '__name__', type(evaluator).__name__)


def _checked(measured: Any, evaluator: Evaluator) -> Metrics:
    what = f'The evaluator {_name_of(evaluator)} gives'
    if not isinstance(measured, Mapping):
        raise ValueError(f'{what} {type(measured).__name__}: it takes {{name: scalar, or an image uint8 [H, W, 3]}}.')
    for name, value in measured.items():
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        is_image = array.ndim == 3 and array.dtype == np.uint8 and array.shape[2] == 3
        if not isinstance(name, str) or not is_image and (array.ndim or array.dtype.kind not in 'biufV'):
            raise ValueError(f'{what} {name!r} as {array.dtype} {list(array.shape)}: it takes a name, and a real '
                             'scalar or an image uint8 [H, W, 3].')
    return measured
