"""Pretraining that goes on from weights at hand: a workdir, or any file that `load_pretrained` reads."""

import dataclasses
from typing import Any

import jax
import numpy as np

from simclr_jax.config import ConfigDict
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.training.state import TrainState


def start_from(state: TrainState, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """The state at step 0 with the encoder of `config.init_from`, and its head where it fits; and notes.

    A target network gets them too. Everything else, the optimiser's state and the schedule, starts anew.

    Raises:
        ValueError, FileNotFoundError: there are no such weights, or the encoder is another one.
    """
    given = load_pretrained(config.init_from)
    notes = [f'The run starts from {given.source} ({config.init_from}).']
    parts = ['encoder']
    if 'head' in state.params:
        if _shapes(given.variables, 'head') == _shapes(state.variables(), 'head'):
            parts.append('head')
        else:
            notes.append('Its projection head has another shape than that of this run, which starts from a random one.')
    wanted, found = _shapes(state.variables(), 'encoder'), _shapes(given.variables, 'encoder')
    if wanted != found:
        name = next(name for name in sorted(wanted | found) if wanted.get(name) != found.get(name))
        raise ValueError(f'The encoder of init_from={config.init_from} is not that of this run: {name} is '
                         f'{found.get(name, "absent")} there and {wanted.get(name, "absent")} here; set the '
                         f'encoder fields to its own ({_fields(given.config)}).')
    for field in ('mean', 'std'):
        if not np.allclose(given.config.augment[field], config.augment[field]):
            notes.append(f'Its pixels had augment.{field} {tuple(given.config.augment[field])}; those of '
                         f'this run have {tuple(config.augment[field])}.')

    def filled(variables: Any) -> dict:
        return {kind: tree | {part: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding),
                                                 given.variables[kind][part], tree[part])
                              for part in parts if part in tree} for kind, tree in variables.items()}

    online = filled(state.variables())
    method_state = state.method_state
    if 'target' in method_state:
        method_state = method_state | {'target': filled(method_state['target'])}
    return dataclasses.replace(state, params=online['params'], batch_stats=online['batch_stats'],
                               method_state=method_state), notes


def _shapes(variables: Any, part: str) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
            for kind in ('params', 'batch_stats')
            for path, leaf in jax.tree_util.tree_leaves_with_path({kind: variables[kind].get(part, {})})}


def _fields(config: ConfigDict) -> str:
    return ', '.join(f'{name}={value}' for name, value in config.encoder.items()
                     if name in ('name', 'depth', 'width', 'stem', 'sk_ratio', 'project_first'))
