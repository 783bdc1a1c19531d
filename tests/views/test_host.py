"""Random views: their law, their reproducibility, and what they refuse."""

import numpy as np
import pytest

from simclr_jax.views import host
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import JITTER_ORDERS, View
from tests import augment_oracles as oracles
from tests.view_fields import ALL_OFF, ALL_ON, CROP, JITTER, OFF, host_views, view_of


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def views_of(image, view, count, image_size):
    """`count` views, of examples 0, 1, ..."""
    return host_views(image, [Draws(0, 0, i, 0) for i in range(count)], view_of(view), image_size=image_size)


# ---- views -------------------------------------------------------------------------------------


def reference(image, draws, view):
    """A view of a square image that keeps its size, in float64, from the same numbers."""
    size = len(image)
    image = image / 255.0
    image = image[:, ::-1] if draws.of(view.flip) else image
    if numbers := draws.of(view.rotate):
        image = np.rot90(image, 1 + int(3 * numbers[0]))
    if numbers := draws.of(view.jitter):
        low, high = view.jitter.limits()
        order = JITTER_ORDERS[int(24 * numbers[0])]
        image = oracles.jitter(image, order, low + np.array(numbers[1:]) * (high - low), [True] * 4)
    image = oracles.grey(image) if draws.of(view.grey) else image
    image = oracles.sobel(image) if draws.of(view.sobel) else image
    if draws.of(view.noise):
        image = (image + view.noise.std * draws.normals(image.shape)).clip(0, 1)
    if numbers := draws.of(view.blur):
        low, high = view.blur.sigma
        image = oracles.blur(image, low + numbers[0] * (high - low), 3)
    if draws.of(view.solarize):
        image = np.where(image < view.solarize.threshold, image, 1 - image)
    if numbers := draws.of(view.cutout):
        image = oracles.cutout(image, [int(size * share) for share in numbers[:2]], round(size / 2))
    return image


def test_operations_run_in_the_documented_order():
    """Each on or off in turn, against the same operations one after another in float64."""
    image = random_image(12, 12)
    half = {op: fields | {'probability': 0.5} for op, fields in ALL_ON.items()}
    half |= {'crop': OFF, 'blur': half['blur'] | {'kernel_fraction': 0.2}}
    view = view_of(half)
    draws = [Draws(3, 1, index, 0) for index in range(40)]
    for draw, result in zip(draws, host_views(image, draws, view, image_size=12)):
        np.testing.assert_allclose(result, reference(image, draw, view), atol=2e-5)


def test_a_view_is_a_pure_function_of_image_and_key():
    image = random_image(20, 24)
    one = views_of(image, ALL_ON, 40, 16)
    np.testing.assert_array_equal(one, views_of(image, ALL_ON, 40, 16))
    assert len(np.unique(one, axis=0)) == 40


def test_a_jitter_strength_of_zero_leaves_that_one_out():
    image = random_image(16, 16)
    still = JITTER | {'probability': 1.0, 'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
    views = views_of(image, ALL_OFF | {'jitter': still}, 5, 16)
    np.testing.assert_array_equal(views, views_of(image, ALL_OFF, 5, 16))


def test_bytes_are_the_floats_rounded_and_a_view_does_not_depend_on_its_batch():
    crops, noise = np.random.default_rng(0).random((2, 5, 16, 16, 3), np.float32)
    view = view_of(ALL_ON)
    rows = np.stack([host.choices(Draws(0, 0, index, 0), view, 16) for index in range(5)])
    floats, data = (host.make_finish(view, dtype)(crops, rows, noise).numpy() for dtype in ('float32', 'uint8'))
    np.testing.assert_array_equal(data, np.rint(255 * floats))
    part = host.make_finish(view)(crops[2:4], rows[2:4], noise[2:4]).numpy()
    np.testing.assert_array_equal(part, floats[2:4])


@pytest.mark.parametrize('law', ['tf', 'uniform'])
def test_odd_images_give_views_in_range(law):
    view = ALL_ON | {'crop': CROP | {'law': law}} | dict.fromkeys(('sobel', 'grey', 'cutout'), OFF)
    for shape in [(1, 1), (1, 500), (500, 1), (2000, 3), (7, 5)]:
        image = random_image(*shape)
        for result in (views_of(image, view, 4, 24),
                       host.eval_crop(image, image_size=24, proportion=0.875)[None]):
            assert result.shape[1:] == (24, 24, 3) and result.dtype == np.float32
            assert 0.0 <= result.min() and result.max() <= 1.0 and result.max() > 0.1


# ---- errors ------------------------------------------------------------------------------------


def test_functions_of_the_user_are_for_the_device():
    with pytest.raises(ValueError, match="augment.extra needs data.augment_on='device'"):
        host.make_finish(View(extra=(lambda image, key: image,)))
