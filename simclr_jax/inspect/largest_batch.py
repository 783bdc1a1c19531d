"""The search for the largest batch that fits, in few questions, each of which is a compile."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Need(NamedTuple):
    """What one batch needs of a device: bytes as far as the compiler tells, and whether it fits."""

    bytes: int
    fits: bool


def largest_batch(ask: Callable[[int], Need], *, unit: int, start: int, capacity: int | None,
                  limit: int = 0, known: dict[int, Need] | None = None) -> tuple[int, bool]:
    """The largest multiple of `unit` that fits, in few questions, each of which is a compile.

    Doubles or halves from `start` until it has one that fits and one that does not; then it guesses
    from their memory, which is nearly affine in the batch as long as the compiler does not recompute
    activations to save memory, and halves the interval in every second step, in case it is not.

    Args:
        ask: batch -> Need. It must be monotone: whatever is smaller than a batch that fits, fits.
        capacity: bytes of a device; None halves only.
        limit: ask for no larger batch; 0 = 64 times `start`.
        known: answers that are there already, for any batch.

    Returns:
        (batch, whether `limit` rather than memory was the end); (0, False) if not even `unit` fits.
    """
    limit = max(unit, (limit or 64 * start) // unit * unit)
    answers = {0: Need(0, True)} | (known or {})

    def fits(batch):
        if batch not in answers:
            answers[batch] = ask(batch)
        return answers[batch].fits

    low = max(batch // unit * unit for batch in answers if answers[batch].fits)
    high = min((math.ceil(batch / unit) * unit for batch in answers if not answers[batch].fits), default=None)
    high = high and min(high, limit + unit)                     # beyond the limit counts as too large
    step = min(limit, max(unit, start // unit * unit))
    while high is None:
        if low >= limit:
            return limit, True
        step = min(limit, max(step, 2 * low))
        if fits(step):
            low = step
        else:
            high = step
    while not low and high > unit:
        middle = max(unit, high // 2 // unit * unit)
        low, high = (middle, high) if fits(middle) else (0, middle)
    guess = True
    while high - low > unit:
        middle = (low + high) // 2
        below, above = answers.get(low), answers.get(high)
        if guess and capacity and below and above and above.bytes > max(capacity, below.bytes):
            middle = low + (high - low) * (capacity - below.bytes) // (above.bytes - below.bytes)
        middle = min(max(middle // unit * unit, low + unit), high - unit)
        low, high = (middle, high) if fits(middle) else (low, middle)
        guess = not guess
    return low, low >= limit


def confirm(ask, batch: int, unit: int, full: dict[int, Need]) -> int:
    """The first batch from `batch` downwards that fits when it is compiled as training would compile it."""
    while batch and batch not in full and not ask(batch, quick=False).fits:
        batch -= unit
    return batch
