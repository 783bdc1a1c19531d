"""Learning rates step by step, and the step counts and peaks of the published recipes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax.training.schedules import (
    constant,
    epoch_cosine,
    make_schedule,
    rising_momentum,
    scaled_learning_rate,
    warmup_cosine,
)


def test_the_learning_rate_is_scaled_by_the_square_root_of_the_batch_or_not_at_all():
    """Linear: tests/test_configs.py."""
    assert scaled_learning_rate(0.075, 4096, 'sqrt') == pytest.approx(4.8)
    assert scaled_learning_rate(0.1, 4096, 'none') == 0.1
    with pytest.raises(ValueError, match="is 'cubic' .optimizer.scaling.: it takes linear, sqrt or none"):
        scaled_learning_rate(0.1, 4096, 'cubic')


@pytest.mark.parametrize('warmup_steps', [0, 1, 976])
def test_warmup_cosine_equals_its_formula_and_optax(warmup_steps):
    total, peak = 97657, 2.0
    steps = np.unique(np.linspace(0, total, 200).astype(int).tolist() + [1, 975, 976, 977])
    schedule = jax.jit(jax.vmap(
        make_schedule('warmup_cosine', peak=peak, warmup_steps=warmup_steps, total_steps=total)))
    got = schedule(jnp.asarray(steps))

    expected = []
    for step in steps:
        if step < warmup_steps:
            expected.append(peak * step / warmup_steps)
        else:
            angle = math.pi * (step - warmup_steps) / (total - warmup_steps)
            expected.append(peak * (1 + math.cos(angle)) / 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    theirs = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total)
    np.testing.assert_allclose(got, jax.vmap(theirs)(jnp.asarray(steps)), rtol=1e-5, atol=1e-6)


def test_constant():
    rate = constant(jnp.int32(7), peak=0.5)
    assert rate.dtype == jnp.float32 and rate == 0.5


@pytest.mark.parametrize('name, settings, at_four', [
    ('constant', {}, 1.0),
    ('warmup_cosine', {'warmup_steps': 8}, 0.5),
    ('epoch_cosine', {'steps_per_epoch': 3.0}, 0.75),      # epoch 1 of 3
    ('epoch_steps', {'steps_per_epoch': 1.5, 'drops': (1, 2.5, 3)}, 0.01),      # from steps 2, 4 and 5 on
])
def test_builder_makes_the_named_schedule(name, settings, at_four):
    schedule = make_schedule(name, peak=1.0, total_steps=10, **settings)
    for step in (4, jnp.int32(4), jnp.float32(4)):
        rate = jax.jit(schedule)(step)
        assert rate.dtype == jnp.float32 and rate.shape == ()
        np.testing.assert_allclose(rate, at_four, rtol=1e-6)


@pytest.mark.parametrize('name, settings, message', [
    ('cosine', {}, "schedule.name is 'cosine': it takes warmup_cosine"),
    ('constant', {'warmup_steps': 5}, "'constant' has no warm-up"),
    ('epoch_cosine', {'warmup_steps': 5}, "'epoch_cosine' has no warm-up"),
    ('warmup_cosine', {'warmup_steps': 10}, r'warmup_steps 10 must lie in \[0, total_steps 10\)'),
    ('warmup_cosine', {'warmup_steps': -1}, 'warmup_steps -1'),
    ('epoch_steps', {}, "'epoch_steps' needs the epochs"),
    ('constant', {'drops': (2,)}, 'no other schedule has them'),
])
def test_settings_that_make_no_sense_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(name, peak=1.0, total_steps=10, **settings)


@pytest.mark.parametrize('steps_per_epoch', [1.0, 5.0, 3.75])
def test_epoch_cosine_is_the_formula_of_each_epoch(steps_per_epoch):
    """main_moco.py adjust_learning_rate: lr * 0.5 * (1 + cos(pi * epoch / epochs)), once an epoch."""
    num_epochs, peak = 8, 0.06
    steps = np.arange(int(num_epochs * steps_per_epoch) + 12)
    schedule = lambda step: epoch_cosine(step, peak=peak, steps_per_epoch=steps_per_epoch,
                                         num_epochs=num_epochs)
    expected = []
    for step in steps:
        epoch = min(step // steps_per_epoch, num_epochs)    # whole passes made before this step
        expected.append(peak * 0.5 * (1 + math.cos(math.pi * epoch / num_epochs)))
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), expected, rtol=1e-5, atol=1e-7)
    assert len(set(np.round(expected, 9))) == num_epochs + 1


@pytest.mark.parametrize('base', [0.0, 0.97, 0.996])
def test_rising_momentum_is_its_formula_from_the_base_to_one(base):
    total = 1000
    steps = np.arange(0, total + 200, 7)
    schedule = lambda step: rising_momentum(step, base=base, total_steps=total)
    got = jax.jit(jax.vmap(schedule))(steps)
    expected = [1 - (1 - base) * (math.cos(math.pi * min(step, total) / total) + 1) / 2 for step in steps]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose([got[0], schedule(total // 2), schedule(total), schedule(10 * total)],
                               [base, (1 + base) / 2, 1, 1], rtol=1e-6)
    assert (np.diff(got) >= 0).all()


@pytest.mark.parametrize('warmup_steps', [0, 10])
def test_steps_outside_of_a_run_are_like_its_ends(warmup_steps):
    schedule = functools.partial(warmup_cosine, peak=2.0, warmup_steps=warmup_steps, total_steps=100)
    assert schedule(-1) == schedule(-1000) == schedule(0) == (0.0 if warmup_steps else 2.0)
    assert schedule(100) == schedule(101) == schedule(10 ** 9) == 0.0
    with pytest.raises(ValueError, match='shorten the warm-up'):
        warmup_cosine(3, peak=1.0, warmup_steps=10, total_steps=10)
