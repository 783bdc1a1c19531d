"""The learning rate as a pure function of the step, and the arithmetic of epochs and batches.

Formulas: google-research/simclr tf2/model.py (WarmUpAndCosineDecay, get_train_steps).
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array], jax.Array]


def constant(step: jax.Array, *, peak: float) -> jax.Array:
    """`peak` at every step."""
    return jnp.full_like(step, peak, dtype=jnp.float32)


def warmup_cosine(
    step: jax.typing.ArrayLike, *, peak: float, warmup_steps: int, total_steps: int
) -> jax.Array:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to 0 at `total_steps`.

    Args:
        step: an integer or float, of any shape, traced or not. Steps before 0 are like step 0, those beyond
            `total_steps` stay at 0.
        peak: the highest learning rate.
        warmup_steps: 0 for the plain cosine.
        total_steps: length of the run.

    Returns:
        The rate, float32 of the shape of `step`. With all but the step bound it is a schedule of optax.

    Raises:
        ValueError: a warm-up that leaves no step for the cosine.

    >>> import functools, simclr_jax
    >>> schedule = functools.partial(simclr_jax.warmup_cosine, peak=0.5, warmup_steps=10, total_steps=110)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    _check_warmup(warmup_steps, total_steps)
    step = jnp.maximum(jnp.asarray(step, jnp.float32), 0)
    warmup = step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return peak * jnp.where(step < warmup_steps, warmup, cosine)


def epoch_cosine(step: jax.typing.ArrayLike, *, peak: float, steps_per_epoch: float, num_epochs: float
                 ) -> jax.Array:
    """Half a cosine from `peak` to 0 that changes only when an epoch begins (MoCo).

    Epoch e of E has peak * (1 + cos(pi * e / E)) / 2 (facebookresearch/moco main_moco.py
    adjust_learning_rate), and 0 from E on.

    Args:
        step: an integer or float, of any shape, traced or not.
        peak: the highest learning rate.
        steps_per_epoch, num_epochs: more than 0; need not be whole.

    Returns:
        The rate, float32 of the shape of `step`.

    Raises:
        ValueError: an epoch or a run of no steps.

    >>> import simclr_jax
    >>> rates = [simclr_jax.epoch_cosine(step, peak=0.5, steps_per_epoch=10, num_epochs=2) for step in (0, 9, 10, 20)]
    >>> [round(float(rate), 3) for rate in rates]
    [0.5, 0.5, 0.25, 0.0]
    """
    if not (steps_per_epoch > 0 and num_epochs > 0):
        raise ValueError(f'epoch_cosine needs more than 0 steps_per_epoch and num_epochs, got {steps_per_epoch} and '
                         f'{num_epochs}.')
    epoch = jnp.floor(jnp.asarray(step, jnp.float32) / steps_per_epoch)
    return peak * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(epoch / num_epochs, 0.0, 1.0)))


def make_schedule(name: str, *, peak: float, total_steps: int, warmup_steps: int = 0,
                  steps_per_epoch: float = 1.0, drops: Sequence[float] = ()) -> Schedule:
    """The schedule `name`: 'warmup_cosine', 'epoch_cosine', 'epoch_steps' or 'constant'.

    Args:
        peak: the highest learning rate.
        total_steps: length of the run.
        warmup_steps: of 'warmup_cosine' only.
        steps_per_epoch: of 'epoch_cosine' and 'epoch_steps'.
        drops: of 'epoch_steps' only: the epochs from which on the rate is a tenth of what it was before.

    Returns:
        A function of the step (an int or float scalar, traced or not) to a float32 scalar.

    Raises:
        ValueError: an unknown name, a setting the schedule would ignore, or a warm-up that
            leaves no step for the cosine.
    """
    if name not in ('warmup_cosine', 'epoch_cosine', 'epoch_steps', 'constant'):
        raise ValueError(
            f'schedule.name is {name!r}: it takes warmup_cosine, epoch_cosine, epoch_steps or constant.')
    if bool(drops) != (name == 'epoch_steps'):
        raise ValueError(f"schedule.drops is {tuple(drops)} and schedule.name '{name}': 'epoch_steps' needs the epochs "
                         'at which the rate falls to a tenth, and no other schedule has them.')
    if name != 'warmup_cosine' and warmup_steps:
        raise ValueError(f"schedule '{name}' has no warm-up: set warmup_epochs to 0.")
    if name == 'constant':
        return functools.partial(constant, peak=peak)
    if name == 'epoch_steps':
        fall = optax.piecewise_constant_schedule(peak, {math.ceil(epoch * steps_per_epoch): 0.1 for epoch in drops})
        return lambda step: jnp.asarray(fall(step), jnp.float32)
    if name == 'epoch_cosine':
        return functools.partial(epoch_cosine, peak=peak, steps_per_epoch=steps_per_epoch,
                                 num_epochs=max(1, round(total_steps / steps_per_epoch)))
    _check_warmup(warmup_steps, total_steps)
    return functools.partial(
        warmup_cosine, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)


def _check_warmup(warmup_steps, total_steps):
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f'warmup_steps {warmup_steps} must lie in [0, total_steps {total_steps}): '
            'shorten the warm-up or train longer.')


def scaled_learning_rate(base: float, batch_size: int, scaling: str = 'linear') -> float:
    """The peak learning rate for a global batch.

    'linear' is base * batch_size / 256, 'sqrt' is base * sqrt(batch_size), 'none' is base
    (Chen et al. 2020, section B.1). Any other scaling raises ValueError.
    """
    if scaling == 'linear':
        return base * batch_size / 256
    if scaling == 'sqrt':
        return base * batch_size**0.5
    if scaling == 'none':
        return base
    raise ValueError(
        f'The scaling of the learning rate is {scaling!r} (optimizer.scaling): it takes linear, sqrt or none.')


def num_train_steps(num_examples: int, num_epochs: float, batch_size: int) -> int:
    """Steps of a run: the whole batches in `num_epochs` passes, and one more."""
    return int(num_examples * num_epochs // batch_size) + 1


def num_warmup_steps(num_examples: int, warmup_epochs: float, batch_size: int) -> int:
    """Steps of the linear warm-up: the whole batches in `warmup_epochs` passes."""
    return int(num_examples * warmup_epochs // batch_size)


def rising_momentum(step: jax.Array, *, base: float, total_steps: int) -> jax.Array:
    """The momentum of BYOL's target: from `base` at step 0 along a cosine to 1 at `total_steps`.

    1 - (1 - base) * (cos(pi * step / total_steps) + 1) / 2 (deepmind-research byol/utils/schedules.py);
    steps beyond `total_steps` stay at 1.
    """
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / total_steps, 0.0, 1.0)
    return 1.0 - (1.0 - base) * (jnp.cos(jnp.pi * progress) + 1.0) / 2.0
