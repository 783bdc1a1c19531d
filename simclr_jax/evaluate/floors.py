"""What the evaluations of a run say before any training: made once, and kept in workdir/floors.json."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from simclr_jax import storage
from simclr_jax.evaluate.accuracies import frozen_accuracies
from simclr_jax.evaluate.evaluators import Run
from simclr_jax.evaluate.features import raw_pixels
from simclr_jax.evaluate.init_from import start_from
from simclr_jax.runlog.progress import noting_length
from simclr_jax.runtime import sharding

Metrics = dict[str, float]


class Floors:
    """The floors of a run, by name; those kept for other settings are forgotten.

    Args:
        workdir: of the run, which need not be there yet.
        settings: what the floors depend on beside the config that a workdir holds to: JSON values.
        is_lead: other processes write nothing. All read when this is made, before one of them writes.
    """

    def __init__(self, workdir: str, settings: Mapping[str, Any], *, is_lead: bool):
        self._path, self._is_lead = os.path.join(workdir, 'floors.json'), is_lead
        self._settings = json.loads(json.dumps(settings))       # as it will be read back
        self._kept: dict[str, Metrics] = {}
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):   # none, or cut short
            found = json.loads(storage.read_bytes(self._path))
            self._kept = found['floors'] if found['settings'] == self._settings else {}

    def get(self, name: str, make: Callable[[], Metrics]) -> Metrics:
        """The floor of this name, by `make` where it is not known yet."""
        if name not in self._kept:
            self._kept[name] = make()
            if self._is_lead:
                floors = {'settings': self._settings, 'floors': self._kept}
                storage.write_atomically(self._path, json.dumps(floors, indent=2).encode())
        return self._kept[name]


def measure_floors(run: Run, encode: Callable, init_state: Callable, note: Callable[[str], None]
                   ) -> tuple[dict[str, dict], float]:
    """({'raw pixels' if asked for, 'random', 'init_from' if there is one: accuracies}, held-out kNN of the last).

    encode: (variables, images) -> features; init_state: () -> the state before any training; note: of
    how long it takes, if that is long.
    """
    config, settings = run.config, run.config.eval
    assert run.test_source is not None
    evaluate = functools.partial(frozen_accuracies, train_source=run.train_source, test_source=run.test_source,
                                 config=config, mesh=run.mesh)
    floors = Floors(run.workdir, {
        'eval': {name: settings[name] for name in ('encoder', 'layer', 'crop_proportion', 'knn_k',
                                                   'knn_temperature', 'knn_max_images', 'linear_at_end')},
        'data': [[source.name, source.split, source.fingerprint()]
                 for source in (run.train_source, run.test_source)]}, is_lead=sharding.is_lead())
    results, heldout = {}, 0.0
    num_images = run.train_source.num_examples + run.test_source.num_examples
    if settings.pixel_floor:
        results['raw pixels'] = floors.get('raw pixels', lambda: evaluate(
            raw_pixels, linear=False, advance=noting_length(num_images, note)))
    starts = {'random': init_state}
    if config.init_from:
        starts['init_from'] = lambda: start_from(init_state(), config)[0]
    for name, make in starts.items():
        results[name] = dict(floors.get(name, lambda: evaluate(
            functools.partial(encode, make().variables(settings.encoder)), linear=settings.linear_at_end,
            held_out=True, advance=noting_length(num_images, note))))
        heldout = results[name].pop('heldout_knn_accuracy')
    return results, heldout
