"""The crop against tf.image and an oracle in float64, compiled and not."""

import importlib.machinery
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from simclr_jax.data import compiled
from tests import augment_oracles as oracles


@pytest.fixture(autouse=True, params=['compiled', 'numpy'])
def implementation(request, monkeypatch):
    if request.param == 'numpy':
        monkeypatch.setitem(sys.modules, 'simclr_jax.data._crop', None)     # as where it is not built
    compiled.library.cache_clear()
    if request.param == 'compiled' and compiled.library() is None:
        pytest.skip('the extension is not built: pip install -e .')
    yield request.param
    compiled.library.cache_clear()


BOXES = [(0, 0, 40, 60), (3, 5, 12, 20), (1, 7, 38, 2), (39, 59, 1, 1), (0, 0, 1, 60), (5, 6, 2, 3),
         (8, 9, 24, 24)]


def random_bytes(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def resized(image, box, size, dtype=np.float32, **options):
    return compiled.crop_resize(image, box, size, out=np.empty((size, size, 3), dtype), **options)


@pytest.mark.parametrize('box', BOXES)
@pytest.mark.parametrize('size', [24, 7])
def test_crops_equal_tensorflows_bit_for_bit(box, size):
    top, left, height, width = box
    image = random_bytes()
    expected = tf.image.resize(image[top:top + height, left:left + width], [size, size], 'bicubic').numpy()
    np.testing.assert_array_equal(resized(image, box, size), expected * np.float32(1 / 255))
    np.testing.assert_array_equal(resized(image, box, size, np.uint8), np.rint(expected).clip(0, 255))


def test_bytes_are_rounded_half_to_even():
    image = random_bytes()
    floats = tf.image.resize(image[:40, :40], [20, 20], 'bicubic').numpy()  # multiples of 1/256
    assert (floats % 1 == 0.5).sum() > 2
    np.testing.assert_array_equal(resized(image, (0, 0, 40, 40), 20, np.uint8), np.rint(floats).clip(0, 255))


def test_crops_are_keys_bicubic_with_its_overshoot():
    image = 255 * (random_bytes() > 127).astype(np.uint8)
    for box in BOXES:
        top, left, height, width = box
        expected = oracles.resize(image[top:top + height, left:left + width] / 255, 16)
        # The cubic is read from a table of 1024 entries.
        np.testing.assert_allclose(resized(image, box, 16), expected, atol=2e-3)


def test_a_crop_may_be_flipped():
    for dtype in (np.float32, np.uint8):
        plain, flipped = (resized(random_bytes(), (3, 5, 30, 20), 25, dtype, is_flipped=is_flipped)
                         for is_flipped in (False, True))
        np.testing.assert_array_equal(flipped, plain[:, ::-1])


def test_a_crop_sees_nothing_outside_its_box():
    image, other = random_bytes(), 255 - random_bytes()
    other[10:30, 20:45] = image[10:30, 20:45]
    np.testing.assert_array_equal(resized(image, (10, 20, 20, 25), 32), resized(other, (10, 20, 20, 25), 32))


def test_an_image_may_lie_in_memory_as_it_likes():
    image = random_bytes()
    expected = resized(image, (3, 5, 30, 20), 16)
    within = np.zeros((50, 70, 3), np.uint8)
    within[4:44, 6:66] = image
    for same in (within[4:44, 6:66], np.asfortranarray(image), image[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(resized(same, (3, 5, 30, 20), 16), expected)


@pytest.mark.parametrize('box', [(-1, 0, 5, 5), (0, -1, 5, 5), (36, 0, 5, 5), (0, 56, 5, 5), (0, 0, 0, 5),
                                 (0, 0, 5, 0)])
def test_a_box_that_leaves_the_image_is_named(box):
    with pytest.raises(ValueError, match=r'is not inside an image of shape \(40, 60, 3\)'):
        resized(random_bytes(), box, 8)


def test_a_build_of_other_sources_is_left_aside(monkeypatch, tmp_path, caplog):
    if not shutil.which('cc'):
        pytest.skip('there is no C compiler')
    library = tmp_path / '_crop.so'
    subprocess.run(['cc', '-shared', '-o', library, '-x', 'c', '-'], text=True, check=True,
                   input='int crop_version(void) { return 1; }')
    other = types.ModuleType('simclr_jax.data._crop')
    other.__spec__ = importlib.machinery.ModuleSpec(other.__name__, None, origin=str(library))
    monkeypatch.setitem(sys.modules, other.__name__, other)
    compiled.library.cache_clear()
    assert compiled.library() is None and f'{library} was built from other sources' in caplog.text
