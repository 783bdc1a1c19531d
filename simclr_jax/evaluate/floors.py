"""What the measurements of a run say before any training: made once, and kept in workdir/floors.json."""

from collections.abc import Callable, Mapping
import json
import os
from typing import Any

Measures = dict[str, float]


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
        self._kept: dict[str, Measures] = {}
        try:
            with open(self._path) as file:
                found = json.load(file)
            if found['settings'] == self._settings:
                self._kept = found['floors']
        except (FileNotFoundError, ValueError, KeyError, TypeError):    # none, or cut short: made anew
            pass

    def get(self, name: str, measure: Callable[[], Measures]) -> Measures:
        """The floor of this name, by `measure` where it is not known yet."""
        if name not in self._kept:
            self._kept[name] = measure()
            if self._is_lead:
                temporary = f'{self._path}.tmp'
                with open(temporary, 'w') as file:
                    json.dump({'settings': self._settings, 'floors': self._kept}, file, indent=2)
                os.replace(temporary, self._path)
        return self._kept[name]
