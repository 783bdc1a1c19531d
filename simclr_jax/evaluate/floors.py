"""What the evaluations of a run say before any training: made once, and kept in workdir/floors.json."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from simclr_jax import storage
from simclr_jax.evaluate.accuracies import frozen_accuracies, heldout_accuracy, of_large_set
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
                   ) -> tuple[float, Callable[[], dict[str, Metrics]]]:
    """(held-out kNN of the encoder that training starts from, () -> the floors of the evaluation at the end).

    The latter are {'raw pixels' if asked for, 'random', 'init_from' if there is one: accuracies}. They are measured
    at once, on the same features, but of more than `eval.knn_max_images` when they are asked for: a run begins
    after so many images at most, however large its data set.

    encode: (variables, images) -> features; init_state: () -> the state before any training; note: of
    what is measured, and of how long it takes, if that is long.
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
    num_images = run.train_source.num_examples + run.test_source.num_examples
    is_large = of_large_set(run.train_source, config) is not run.train_source
    starts = {'random': init_state}
    if config.init_from:
        starts['init_from'] = lambda: start_from(init_state(), config)[0]

    def encoder(make: Callable) -> Callable:
        return functools.partial(encode, make().variables(settings.encoder))

    @functools.cache
    def of_all() -> dict[str, Metrics]:
        found = {}
        if settings.pixel_floor:
            found['raw pixels'] = floors.get('raw pixels', lambda: evaluate(
                raw_pixels, linear=False, advance=noting_length(num_images, note)))
        for name, make in starts.items():
            found[name] = floors.get(name, lambda: evaluate(
                encoder(make), linear=settings.linear_at_end, held_out=not is_large,
                advance=noting_length(num_images, note)))
        return found

    last, where = [*starts][-1], 'encoder of init_from' if config.init_from else 'random encoder'
    if is_large:
        note(f'Measuring the {where} on {settings.knn_max_images:,} training images, for the floor; on all of them, '
             'and on the test images, at the end.')
        heldout = floors.get(f'{last}, held out', lambda: {'heldout_knn_accuracy': heldout_accuracy(
            encoder(starts[last]), run.train_source, config, run.mesh)})
    else:
        note(f'Measuring the {where} on the training and test images, for the floor.')
        heldout = of_all()[last]
    floor = heldout['heldout_knn_accuracy']
    note(f'kNN of the {where}: {floor:.4f} on held-out training images, the floor')
    return floor, lambda: {name: {key: value for key, value in accuracies.items() if key != 'heldout_knn_accuracy'}
                           for name, accuracies in of_all().items()}
