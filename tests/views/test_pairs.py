"""Two views of each image of a batch: two draws of one law, alike on one CPU device and on several."""

import os
import pathlib
import subprocess
import sys

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
    np.testing.assert_allclose(simclr_views(images(2, 12), KEY, image_size=6, blur=False),
                               simclr_views(images(2, 12, np.float64), KEY, image_size=6, blur=False), atol=2e-6)


_ALONE = """
import sys, jax, numpy as np
from simclr_jax.views.fields import View
from simclr_jax.views.pairs import two_views
images = np.load(sys.argv[1])
run = jax.jit(lambda images, key: two_views(images, key, View.simclr(blur=False), image_size=images.shape[1]))
program = run.lower(images, jax.random.key(3)).compile()
assert jax.device_count() == 1 and ' conditional(' in program.as_text()         # only what was drawn is computed
exported = jax.export.export(run, platforms=['tpu'])(images, jax.random.key(3)).mlir_module()
assert 'tensor<3x2x3x64x64xf32>' in exported                                    # all images at once
np.save(sys.argv[2], np.stack(program(images, jax.random.key(3))))
"""


def test_a_lone_cpu_device_makes_the_same_views_by_branches(tmp_path):
    batch = images(3, 64)
    np.save(tmp_path / 'images.npy', batch)
    subprocess.run([sys.executable, '-c', _ALONE, tmp_path / 'images.npy', tmp_path / 'views.npy'], check=True,
                   cwd=pathlib.Path(__file__).parents[2], env={**os.environ, 'XLA_FLAGS': ''})
    expected = np.stack(two_views(batch, KEY, View.simclr(blur=False), image_size=64))
    np.testing.assert_allclose(np.load(tmp_path / 'views.npy'), expected, atol=5e-6)


def test_presets_take_their_operations():
    assert View.byol(blur=False)[0].blur.probability == View.simclr(blur=False).blur.probability == 0
    assert View.moco(area=(0.08, 1.0)).crop.area == (0.08, 1.0) and View.simclr().blur == Blur(0.5)
