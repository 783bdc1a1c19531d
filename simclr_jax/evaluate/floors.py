"""What an encoder scores before any training: measured when it is asked for, and kept in workdir/floors.json."""

import contextlib
import functools
import json
import os
from collections.abc import Callable

from simclr_jax import storage
from simclr_jax.evaluate.accuracies import frozen_accuracies, heldout_accuracy, of_large_set
from simclr_jax.evaluate.evaluators import EveryRun, Metrics, Run, StepEncoder
from simclr_jax.evaluate.features import raw_pixels
from simclr_jax.evaluate.init_from import start_from
from simclr_jax.runlog.progress import noting_length
from simclr_jax.runtime import sharding

_HELDOUT = 'heldout_knn_accuracy'
_SETTINGS = ('encoder', 'layer', 'crop_proportion', 'resize', 'antialias', 'resize_to', 'knn_k', 'knn_temperature',
             'knn_max_images', 'linear_at_end')


class Floors(EveryRun):
    """The floors of a run; as an evaluator `knn_floor`, beside the `knn_accuracy` of `HeldOutKnn`.

    Each is measured once. Those kept for other settings are forgotten.

    Args:
        run: with labels. Its floors.json is read now, before any process writes it.
        encode: (variables, images) -> features.
        init_state: () -> the state before any training.
        note: of what is measured, and of how long it takes, if that is long.
    """

    def __init__(self, run: Run, encode: Callable, init_state: Callable, note: Callable[[str], None]):
        self.every_epochs = run.config.eval.knn_every_epochs
        self._run, self._encode, self._note = run, encode, note
        self._starts = {'random': init_state}
        if run.config.init_from:
            self._starts['init_from'] = lambda: start_from(init_state(), run.config)[0]
        assert run.test_source is not None
        self._sources = run.train_source, run.test_source
        settings = {'eval': {name: run.config.eval.get(name) for name in _SETTINGS},
                    'data': [[source.name, source.split, source.fingerprint()] for source in self._sources]}
        self._settings = json.loads(json.dumps(settings))       # as it will be read back
        self._path, self._kept = os.path.join(run.workdir, 'floors.json'), {}
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):   # none, or cut short
            found = json.loads(storage.read_bytes(self._path))
            found['settings']['eval'] = self._settings['eval'] | found['settings']['eval']      # of earlier versions
            self._kept = found['floors'] if found['settings'] == self._settings else {}

    def __call__(self, encode: StepEncoder | None, step: int) -> Metrics:
        """`knn_floor`: kNN of the encoder that training starts from, as `heldout_accuracy` has it."""
        config, source = self._run.config, self._run.train_source
        name, where = [*self._starts][-1], 'encoder of init_from' if config.init_from else 'random encoder'

        def measure():
            count = of_large_set(source, config).num_examples
            self._note(f'Measuring the {where} on {count:,} training images: the baseline of kNN.')
            return {_HELDOUT: heldout_accuracy(self._encoder(name), source, config, self._run.mesh)}

        kept = self._kept.get(name, {})
        floor = kept if _HELDOUT in kept else self._once(f'{name}, held out', measure)      # of earlier versions
        return {'knn_floor': floor[_HELDOUT]}

    def of_results(self) -> dict[str, dict[str, float]]:
        """{'raw pixels' if asked for, 'random', 'init_from' if there is one: `frozen_accuracies`}."""
        settings, num_images = self._run.config.eval, sum(source.num_examples for source in self._sources)

        def measure(encode, linear):
            return frozen_accuracies(encode(), *self._sources, self._run.config, self._run.mesh, linear=linear,
                                     advance=noting_length(num_images, self._note))

        found = {}
        if settings.pixel_floor:
            found['raw pixels'] = self._once('raw pixels', lambda: measure(lambda: raw_pixels, False))
        for name in self._starts:
            found[name] = self._once(name, functools.partial(
                measure, functools.partial(self._encoder, name), settings.linear_at_end))
        # Earlier versions kept the held-out accuracy here too.
        return {name: {key: value for key, value in accuracies.items() if key != _HELDOUT}
                for name, accuracies in found.items()}

    def of_init_from(self) -> None:
        """Measures, before training, what starts from weights that may be others afterwards, or gone.

        But all images of a large set are left to the end: a run begins after `eval.knn_max_images` at most.
        """
        self(None, 0)
        if of_large_set(self._run.train_source, self._run.config) is self._run.train_source:
            self.of_results()

    def _encoder(self, name: str) -> Callable:
        return functools.partial(self._encode, self._starts[name]().variables(self._run.config.eval.encoder))

    def _once(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The floor of this name, by `measure` where it is not known yet."""
        if name not in self._kept:
            self._kept[name] = measure()
            if sharding.is_lead():
                floors = {'settings': self._settings, 'floors': self._kept}
                storage.write_atomically(self._path, json.dumps(floors, indent=2).encode())
        return self._kept[name]
