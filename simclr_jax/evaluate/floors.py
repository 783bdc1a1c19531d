"""What the evaluations of a run say before any training: made once, and kept in workdir/floors.json."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from simclr_jax import storage

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
