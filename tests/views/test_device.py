"""Random views on the accelerator: their law, beside the host's, their reproducibility, and what they refuse."""

import dataclasses
import functools
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from simclr_jax.views import device as device_augment, host, ops
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import View
from tests import augment_oracles as oracles
from tests.official_views import assert_same_distribution, official_views, smooth_image
from tests.view_fields import ALL_OFF, ALL_ON, CROP, HALF_ON, JITTER, OFF, SIMCLR, host_views, view_of


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def draw_many(image, count, view, image_size):
    """float32 [count, image_size, image_size, 3]: views of one image from as many keys."""
    return np.asarray(jax.jit(jax.vmap(functools.partial(
        device_augment.augment, jnp.asarray(image), image_size=image_size, **view)))(keys(count)))


# ---- the law of a view -------------------------------------------------------------------------


def of_the_host(image, count, view, image_size):
    return host_views(image, [Draws(0, 0, index, 0) for index in range(count)], view_of(view), image_size=image_size)


def test_views_of_both_forms_have_the_official_distribution():
    image = smooth_image()
    official = official_views(image, 1500)
    for many in (draw_many, of_the_host):
        assert_same_distribution(many(image, 1500, SIMCLR, 32), official)


def test_views_have_the_distribution_of_the_host_with_every_operation_at_work():
    image = smooth_image()
    assert_same_distribution(*(many(image, 1500, HALF_ON, 16) for many in (draw_many, of_the_host)))


def test_each_probability_is_honoured_whatever_else_happens():
    image = jnp.asarray(oracles.random_image(16, 16))

    def view(key, **on):
        return device_augment.augment(image, key, image_size=16, **ALL_OFF | on)

    def changes(key):
        untouched = view(key)
        return jnp.stack([(view(key, **{op: ALL_ON[op] | {'probability': 0.3}}) != untouched).any()
                          for op in ALL_ON])

    changed = np.asarray(jax.jit(jax.vmap(changes))(keys(600)))
    # Three standard deviations, and four for each of the 45 pairs.
    assert dict(zip(ALL_ON, changed.mean(0))) == pytest.approx(dict.fromkeys(ALL_ON, 0.3), abs=0.06)
    assert np.abs(np.corrcoef(changed.T) - np.eye(len(ALL_ON))).max() < 4 / np.sqrt(600)


def test_the_amounts_of_one_operation_say_nothing_of_those_of_another():
    image = np.linspace(0.1, 0.9, 8 * 8 * 3, dtype=np.float32).reshape(8, 8, 3)
    turned, holed = (draw_many(image, 600, ALL_OFF | {op: ALL_ON[op] | change}, 8)
                     for op, change in (('rotate', {}), ('cutout', {'size': 0.2})))
    turns = np.stack([(turned == np.rot90(image, turns)).all((1, 2, 3)) for turns in (1, 2, 3)])
    rows = (holed == 0.0).any((2, 3)).argmax(1) // 3        # the two rows of the hole begin at 0..6
    table = [[(turn & (rows == row)).sum() for row in range(3)] for turn in turns]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_rotation_takes_each_quarter_turn_equally_often():
    image = oracles.random_image(8, 8)
    views = draw_many(image, 600, ALL_OFF | {'rotate': {'probability': 1.0}}, 8)
    for turns in (1, 2, 3):
        share = (views == np.rot90(image, turns)).all((1, 2, 3)).mean()
        assert share == pytest.approx(1 / 3, abs=0.06)


def test_amounts_are_uniform_between_their_limits():
    image = np.full((4, 4, 3), 0.5, np.float32)
    jitter = JITTER | {'probability': 1.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
    views = draw_many(image, 1000, ALL_OFF | {'jitter': jitter}, 4)
    assert stats.kstest(views[:, 0, 0, 0], stats.uniform(0.3, 0.4).cdf).pvalue > 0.01
    add = draw_many(image, 1000, ALL_OFF | {'jitter': jitter | {'brightness_mode': 'add'}}, 4)
    assert stats.kstest(add[:, 0, 0, 0], stats.uniform(0.1, 0.8).cdf).pvalue > 0.01
    noise = draw_many(image, 20, ALL_OFF | {'noise': {'probability': 1.0, 'std': 0.05}}, 4)
    assert stats.kstest((noise.ravel() - 0.5) / 0.05, 'norm').pvalue > 0.01


@pytest.mark.parametrize('height, width, dtype, law', [
    (1, 1, np.uint8, 'tf'), (1, 90, np.float32, 'uniform'), (90, 2, np.uint8, 'tf')])
def test_odd_images_give_views_in_range(height, width, dtype, law):
    image = (oracles.random_image(height, width, 0.1) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    views = draw_many(image, 8, SIMCLR | {'crop': CROP | {'law': law}, 'blur': HALF_ON['blur']}, 12)
    assert views.shape == (8, 12, 12, 3) and views.dtype == np.float32
    assert views.min() >= 0.0 and views.max() <= 1.0 and views.max() > 0.05


# ---- one view, several ways to it --------------------------------------------------------------


def test_a_missed_crop_is_the_whole_image():
    image = oracles.random_image(9, 14)
    view = draw_many(image, 1, ALL_OFF, 8)[0]
    expected = tf.image.resize(image, [8, 8], 'bicubic')
    np.testing.assert_allclose(view, np.clip(expected, 0.0, 1.0), atol=2e-6)


def test_a_view_is_its_operations_one_by_one_in_the_documented_order():
    """Each drawn from the same key, as if it were the only one: so switching one on or off leaves the choices
    of the others as they were."""
    # No overshoot: each call clips, where a whole view first clips in its colour.
    image = jnp.asarray(oracles.random_image(14, 17, 0.35, 0.65))

    def both(key):
        whole = device_augment.augment(image, key, image_size=12, **HALF_ON)
        view = device_augment.augment(image, key, image_size=12, **ALL_OFF | {'crop': HALF_ON['crop']})
        for op in list(HALF_ON)[1:]:
            view = device_augment.augment_crop(view, key, view_of({op: HALF_ON[op]}))
        return whole, view

    at_once, one_by_one = jax.jit(jax.vmap(both))(keys(64))
    np.testing.assert_allclose(at_once, one_by_one, atol=5e-6)
    assert len(np.unique(np.asarray(at_once), axis=0)) == 64


def test_a_crop_made_elsewhere_goes_on_as_the_same_view():
    images = jnp.asarray((256 * oracles.random_image(8 * 24, 24)).astype(np.uint8)).reshape(8, 24, 24, 3)
    boxes = jnp.tile(jnp.array([[0, 0, 24, 24], [3, 1, 20, 11]]), (4, 1))
    rest = view_of({op: HALF_ON[op] for op in ('flip', 'rotate', 'noise', 'cutout')})

    def views(image, box, key):
        crop = jnp.moveaxis(ops.resize_box(jnp.moveaxis(image, -1, 0), box, 24), 0, -1)
        return (device_augment.augment(image, key, rest, image_size=24),
                device_augment.augment_crop(crop, key, rest),
                device_augment.augment_box(image, box, key, rest, image_size=24))

    full, from_crop, from_box = jax.jit(jax.vmap(views))(images, boxes, keys(8))
    np.testing.assert_allclose(from_crop, from_box, atol=5e-6)
    np.testing.assert_allclose(full[::2], from_box[::2], atol=5e-6)  # whole images
    assert np.abs(full[1::2] - from_box[1::2]).max() > 0.1


# ---- batches, devices, compilation -------------------------------------------------------------


@pytest.fixture(scope='module')
def batch():
    images = (256 * oracles.random_image(16 * 20, 22)).astype(np.uint8).reshape(16, 20, 22, 3)
    view = jax.jit(device_augment.over_batch(functools.partial(
        device_augment.augment, image_size=16, **ALL_OFF | {
            op: HALF_ON[op] for op in ('crop', 'flip', 'jitter', 'noise', 'blur')})))
    return view, images, keys(16)


def test_a_view_depends_neither_on_its_batch_nor_on_the_devices_that_share_it(batch):
    view, images, view_keys = batch
    together = view(images.reshape(2, 8, 20, 22, 3), view_keys.reshape(2, 8)).reshape(16, 16, 16, 3)
    # Matrix products of other sizes add in another order.
    np.testing.assert_allclose(view(images[5], view_keys[5]), together[5], atol=2e-6)

    mesh = jax.make_mesh((8,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P('rows'))
    spread = jax.device_put((images, view_keys), rows)
    compiled = view.lower(*spread).compile()
    with jax.transfer_guard('disallow'):
        result = compiled(*spread)
    assert result.sharding.is_equivalent_to(rows, result.ndim)
    np.testing.assert_allclose(result, together, atol=2e-6)
    assert not re.search(r'all-|collective|callback', compiled.as_text())


@pytest.mark.parametrize('side', [8, 64])
def test_a_lone_cpu_device_makes_the_same_views(side):
    images = (256 * oracles.random_image(35 * side, side)).astype(np.uint8).reshape(35, side, side, 3)
    images = images[:5] if side == 64 else images  # 35: a chunk and a rest
    view = view_of({'jitter': HALF_ON['jitter'], 'grey': HALF_ON['grey']})

    def views(lone_cpu):
        function = device_augment.over_batch(
            functools.partial(device_augment.augment_crop, view=view), lone_cpu=lone_cpu)
        compiled = jax.jit(function).lower(images, keys(len(images))).compile()
        return compiled(images, keys(len(images))), ' conditional(' in compiled.as_text()

    at_once, branches = views(lone_cpu=False)
    assert not branches
    in_turn, branches = views(lone_cpu=True)
    assert branches == (side == 64)
    np.testing.assert_allclose(in_turn, at_once, atol=2e-6)


def test_an_operation_of_probability_0_is_not_compiled():
    text = jax.jit(functools.partial(device_augment.augment_crop, view=View())).lower(
        jnp.zeros([8, 8, 3], jnp.uint8), jax.random.key(0)).compile().as_text()
    assert not re.search(r'threefry|shift|while|conditional|select|exponential|dot', text)


def test_device_augmentation_needs_no_tensorflow_and_its_fields_neither():
    code = ('import sys, simclr_jax.views.fields; assert "jax" not in sys.modules; '
            'import simclr_jax.views.device; sys.exit("tensorflow" in sys.modules)')
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, '-c', code], cwd=root).returncode == 0


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize('height, width, proportion, box', [
    (375, 500, 0.875, (24, 86, 328)),  # 0.875 * 375 = 328.125
    (500, 333, 0.875, (105, 21, 291)),  # 0.875 * 333 = 291.375
    (36, 36, 0.875, (2, 2, 32)),  # 31.5 rounds to even
    (1, 9, 0.875, (0, 4, 1)),
    (50, 31, 24 / 31, (13, 4, 24)),  # the size already
])
def test_evaluation_crop(height, width, proportion, box):
    y, x, side = box
    image = (256 * oracles.random_image(height, width)).astype(np.uint8)
    expected = tf.image.resize(image[y:y + side, x:x + side], [24, 24], 'bicubic').numpy() / 255
    on_device = jax.jit(device_augment.eval_crop, static_argnames=('image_size', 'proportion'))
    for crop, tolerance in ((on_device, 2e-6), (host.eval_crop, 1e-6)):
        view = crop(image, image_size=24, proportion=proportion)
        np.testing.assert_allclose(view, expected.clip(0, 1), atol=tolerance)


def test_evaluation_leaves_an_image_of_the_right_size_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for crop in (device_augment.eval_crop, host.eval_crop):
        np.testing.assert_allclose(crop(image, image_size=32, proportion=1.0), image / 255.0, atol=1e-7)


# ---- functions of the user's -----------------------------------------------------------------------


def darken(image, key):
    return image * jax.random.uniform(key)


def halve(image, key):
    return image[::2]


def test_further_functions_run_last_in_their_order_and_from_keys_of_their_own():
    image, key = jnp.asarray(oracles.random_image(9, 9)), jax.random.key(4)
    plain = view_of({'flip': HALF_ON['flip'], 'grey': HALF_ON['grey']})
    alone = device_augment.augment(image, key, plain, image_size=9)
    dark = device_augment.augment(image, key, dataclasses.replace(plain, extra=(darken,)), image_size=9)
    factors = np.asarray(dark) / np.asarray(alone)
    np.testing.assert_allclose(factors, factors[0, 0, 0], rtol=1e-5)
    twice = device_augment.augment(image, key, dataclasses.replace(plain, extra=(darken, darken)), image_size=9)
    assert not np.allclose(twice, dark * factors[0, 0, 0])            # each with a key of its own
    last = device_augment.augment(image, key, dataclasses.replace(
        plain, extra=(darken, lambda image, key: 1.0 - image)), image_size=9)
    np.testing.assert_allclose(last, 1.0 - dark, atol=1e-6)


def test_what_a_further_function_gives_must_be_an_image():
    image, key = jnp.zeros([8, 8, 3]), jax.random.key(0)
    with pytest.raises(ValueError, match=r'extra: halve gave float32 \[4, 8, 3\].*float32 \[8, 8, 3\]'):
        device_augment.augment(image, key, View(extra=(halve,)), image_size=8)
    with pytest.raises(ValueError, match='extra: <lambda> gave None; it must'):
        device_augment.augment(image, key, View(extra=(lambda image, key: None,)), image_size=8)


# ---- errors ------------------------------------------------------------------------------------


def test_operations_by_keyword_are_checked():
    image, key = jnp.zeros([4, 4, 3]), jax.random.key(0)
    with pytest.raises(ValueError, match='blur.sigma must be a pair'):
        device_augment.augment(image, key, image_size=4, blur={'probability': 0.5, 'sigma': (0.0, 2.0)})
    with pytest.raises(ValueError, match='Unknown augmentation: blurr; valid names are crop, flip'):
        device_augment.augment(image, key, image_size=4, blurr=OFF)


def test_wrong_dtypes_and_proportions_are_named():
    with pytest.raises(ValueError, match='must be uint8, or float32.*got int32'):
        device_augment.augment_crop(jnp.zeros([4, 4, 3], jnp.int32), jax.random.key(0), View())
    for crop in (device_augment.eval_crop, host.eval_crop):
        with pytest.raises(ValueError, match='proportion must be in'):
            crop(np.zeros([4, 4, 3], np.float32), image_size=4, proportion=87.5)
