"""Two views of each image of a batch: two draws of one law, alike on one CPU device and on several."""

import jax
import numpy as np
import pytest

from simclr_jax.views.fields import Blur, Grey, Solarize, View
from simclr_jax.views.pairs import byol_views, moco_views, simclr_views, two_views

KEY = jax.random.key(3)


def images(count, side, dtype=np.uint8):
    values = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return values if dtype == np.uint8 else values / dtype(255)


def test_two_views_are_two_draws_of_the_same_law():
    batch = np.repeat(images(1, 40), 64, axis=0)
    view1, view2 = simclr_views(batch, KEY, image_size=8, blur=False)
    again, _ = simclr_views(batch, KEY, image_size=8, blur=False)
    assert view1.shape == view2.shape == (64, 8, 8, 3)
    np.testing.assert_array_equal(view1, again)
    assert len(np.unique(np.concatenate([view1, view2]).reshape(128, -1), axis=0)) == 128
    assert abs(float(view1.mean() - view2.mean())) < 0.1


@pytest.mark.parametrize('function, views', [(moco_views, View.moco()), (byol_views, View.byol())])
def test_a_method_of_its_own_views_is_two_views_of_its_preset(function, views):
    batch = images(3, 20)
    np.testing.assert_array_equal(function(batch, KEY, image_size=20), two_views(batch, KEY, views, image_size=20))


def test_each_view_has_its_operations():
    batch = images(4, 6)
    view1, view2 = two_views(batch, KEY, (View(grey=Grey(1.0)), View(solarize=Solarize(1.0, 0.0))), image_size=6)
    np.testing.assert_array_equal(view1[..., 0], view1[..., 2])
    np.testing.assert_allclose(view2, 1 - batch / 255, atol=1e-6)


def test_uint8_and_floats_give_the_same_views():
    views = View(crop=View.simclr().crop)
    np.testing.assert_allclose(two_views(images(2, 12), KEY, views, image_size=6),
                               two_views(images(2, 12, np.float64), KEY, views, image_size=6), atol=2e-6)


def test_a_lone_cpu_device_makes_the_same_views_by_branches(monkeypatch):
    batch = images(3, 64)
    view = View(jitter=View.simclr().jitter, grey=View.simclr().grey)
    run = jax.jit(lambda images, key: two_views(images, key, view, image_size=64))
    expected = run(batch, KEY)
    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    jax.clear_caches()      # what was made is for eight
    program = run.lower(batch, KEY).compile()
    assert ' conditional(' in program.as_text()         # only what was drawn is computed
    exported = jax.export.export(run, platforms=['tpu'])(batch, KEY).mlir_module()
    assert 'tensor<3x2x3x64x64xf32>' in exported        # all images at once
    np.testing.assert_allclose(program(batch, KEY), expected, atol=5e-6)


def test_presets_take_their_operations():
    assert View.byol(blur=False)[0].blur.probability == View.simclr(blur=False).blur.probability == 0
    assert View.moco(area=(0.08, 1.0)).crop.area == (0.08, 1.0) and View.simclr().blur == Blur(0.5)
