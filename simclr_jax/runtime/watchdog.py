"""Who keeps the others waiting: what each process of a run does, told to all, and judged by each."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_KEYS = 'simclr_jax/doing'


class Doing(NamedTuple):
    """What a process does.

    Attributes:
        place: how far it has come; the same of two processes that do the same.
        what: as in 'step 12', on a line.
        patience: the timeout is so many times longer; inf for none.
        since: by the clock of the process that looks, as is the next.
        heard: when the process last gave a sign of life.
        name: of the process, with its host.
    """

    place: float
    what: str
    patience: float
    since: float
    heard: float
    name: str = ''


_here = Doing(0, 'the start', math.inf, time.monotonic(), 0.0)
_watchdog: 'Watchdog | None' = None


def at(place: float, what: str, patience: float = 1.0) -> None:
    """Says what this process does from now on, see `Doing`.

    Where the process has been stopped for so long that the others have given it up it ends here, so that it
    writes nothing more.
    """
    global _here
    if _watchdog:
        _watchdog.check_awake()
    _here = Doing(place, what, patience, time.monotonic(), 0.0)


def verdict(now: float, mine: Doing, others: Mapping[int, Doing], *, timeout: float, silence: float) -> str:
    """Why this process waits in vain; '' if it does not, or not long enough.

    Args:
        mine: what this process does.
        others: what the others do, by process.
        timeout: seconds that a thing may take, times the largest patience of all; for ever where that of this
            process is inf.
        silence: seconds without a sign of life after which a process counts as stopped or lost.
    """
    lost = {number: other for number, other in others.items() if now - other.heard > silence}
    if 0 in lost:               # it keeps what the others say: without it none is heard
        lost = {0: lost[0]}
    if lost:
        return f'waited in {mine.what} for ' + '; '.join(
            f'{other.name}, not heard of for {now - other.heard:.0f} s (last in {other.what}): it is stopped, or its '
            'host or network is lost' for other in lost.values())
    waited = now - mine.since
    patience = max((other.patience for other in others.values() if other.patience < math.inf), default=1.0)
    if waited <= timeout * max(mine.patience, patience):
        return ''
    behind = [other for other in others.values() if other.place < mine.place]
    if behind:
        return f'waited {waited:.0f} s in {mine.what} for ' + '; '.join(
            f'{other.name}, which is alive and stuck in {other.what}' for other in behind)
    if any(other.place > mine.place for other in others.values()):
        return f'stuck in {mine.what} for {waited:.0f} s, and the others wait for it'
    return f'stuck in {mine.what} for {waited:.0f} s, as are all others: a device, or the network between them'


class Watchdog:
    """Ends this process when it waits in vain for another one, by two threads of its own.

    One talks to the others, by the key-value store that process 0 keeps, and may wait for it; the other looks
    at the clock. A process that gives no sign of life for a third of `timeout` counts as lost.

    Args:
        client: of jax.distributed.
        number, count, name: of this process, of how many, and as others are to be told of it.
        timeout: seconds; see `verdict`.
        end: is called with a sentence, when this process waits in vain.
        asleep: likewise, when it was stopped for so long that the others no longer wait.
    """

    def __init__(self, client: Any, number: int, count: int, name: str, *, timeout: float,
                 end: Callable[[str], None], asleep: Callable[[str], None]):
        global _watchdog
        self._client, self._number, self._name, self._end, self._asleep = client, number, name, end, asleep
        self._timeout, self._silence = timeout, timeout / 3
        self._interval = min(5.0, self._silence / 10)
        self._left = threading.Event()
        self._awake = now = time.monotonic()
        self._others = {other: Doing(0, 'the start', math.inf, now, now, f'process {other} of {count}')
                        for other in range(count) if other != number}
        self._told: dict[int, str] = {}
        _watchdog = self
        for run in (self._talk, self._look):
            threading.Thread(target=run, daemon=True).start()

    def leave(self) -> None:
        """Ends the watch: whoever waits now waits for jax."""
        global _watchdog
        _watchdog = None
        self._left.set()

    def check_awake(self) -> None:
        """Ends this process if it was stopped for so long that the others count it as lost."""
        asleep = time.monotonic() - self._awake
        if asleep > self._silence - 2 * self._interval:
            self._asleep(f'was stopped for {asleep:.0f} s, and the others have given it up: it writes nothing more')

    def _look(self) -> None:
        while not self._left.wait(self._interval):
            self.check_awake()
            self._awake = now = time.monotonic()
            found = verdict(now, _here, dict(self._others), timeout=self._timeout, silence=self._silence)
            if found and not self._left.is_set():
                self._end(found)

    def _talk(self) -> None:
        beat = 0
        while not self._left.wait(self._interval):
            beat, doing = beat + 1, _here
            try:
                self._client.key_value_set(
                    f'{_KEYS}/{self._number}', f'{beat}\n{doing.place}\n{doing.patience}\n{doing.what}\n{self._name}',
                    allow_overwrite=True)
                said = self._client.key_value_dir_get(_KEYS)
            except Exception:           # process 0 is gone, or stopped: none is heard
                continue
            now = time.monotonic()
            for key, text in said:
                number = int(key.rpartition('/')[2])
                if number in self._others and self._told.get(number) != text:
                    self._told[number], before = text, self._others[number]
                    _, place, patience, what, name = text.split('\n')
                    self._others[number] = Doing(
                        float(place), what, float(patience), before.since if before.what == what else now, now, name)
