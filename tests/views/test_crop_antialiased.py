"""MoCo's crop is torchvision's RandomResizedCrop: Pillow's antialiased resize of the box, in every form."""

import dataclasses
import functools
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from simclr_jax.data.compiled import crop_resize, library
from simclr_jax.views import ops
from simclr_jax.views.device import augment_box
from simclr_jax.views.fields import Crop, View
from simclr_jax.views.resize import Resize

PHOTOGRAPH = np.ascontiguousarray(load_sample_images().images[0][:301, :420])
# (top, left, height, width): more and fewer pixels than the view has, at the border, and a line of one pixel.
BOXES = [(0, 0, 301, 420), (13, 27, 211, 97), (250, 380, 20, 40), (5, 6, 64, 64), (0, 419, 301, 1)]
MOCO = Resize('bilinear', antialias=True)
KERNELS = {'bilinear': (1, lambda x: 1 - x),
           'bicubic': (2, lambda x: 1.5 * x ** 3 - 2.5 * x ** 2 + 1 if x < 1 else
                       -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2)}


def cut(box):
    top, left, height, width = box
    return PHOTOGRAPH[top:top + height, left:left + width]


def by_the_kernel(image, size, method, antialias=True):
    """Float64 [S, S, 3] in 0..255, one share after the other, clipped as Pillow does."""
    radius, kernel = KERNELS[method]

    def shares(length):
        scale = length / size
        wide = max(scale, 1.0) if antialias else 1.0
        rows = np.zeros((size, length))
        for place in range(size):
            for tap in range(length):
                x = abs((place + 0.5) * scale - tap - 0.5) / wide
                rows[place, tap] = kernel(x) if x < radius else 0.0
        return rows / rows.sum(axis=1, keepdims=True)

    rows, columns = map(shares, image.shape[:2])
    return np.einsum('yh,hwc,xw->yxc', rows, image.astype(np.float64), columns, optimize=True).clip(0, 255)


def on_device(box, size, resize):
    planes = ops.resize_box(np.moveaxis(PHOTOGRAPH, -1, 0), jax.numpy.array(box), size, resize=resize)
    return 255 * np.moveaxis(np.asarray(planes), 0, -1)


def on_host(box, size, resize, dtype=np.float32, image=PHOTOGRAPH):
    return crop_resize(image, box, size, out=np.empty((size, size, image.shape[2]), dtype), resize=resize)


@pytest.fixture(params=['compiled', 'numpy'])
def implementation(request, monkeypatch):
    if request.param == 'numpy':
        monkeypatch.setitem(sys.modules, 'simclr_jax.data._crop', None)     # as where it is not built
    library.cache_clear()
    if request.param == 'compiled' and library() is None:
        pytest.skip('the extension is not built: pip install -e .')
    yield request.param
    library.cache_clear()


@pytest.mark.parametrize('method, antialias', [('bilinear', True), ('bicubic', True), ('bilinear', False)])
def test_a_crop_is_the_kernels_on_the_device_as_on_the_host(method, antialias, implementation):
    resize = Resize(method, antialias)
    for box in BOXES:
        expected = by_the_kernel(cut(box), 48, method, antialias)
        np.testing.assert_allclose(on_device(box, 48, resize), expected, atol=2e-3)
        np.testing.assert_allclose(255 * on_host(box, 48, resize), expected, atol=2e-4)
        np.testing.assert_allclose(on_host(box, 48, resize, np.uint8), expected, atol=0.501)


@pytest.mark.parametrize('box', BOXES)
def test_mocos_crop_is_pillows_which_rounds_rows_and_then_columns(box, implementation):
    theirs = np.asarray(Image.fromarray(cut(box)).resize((48, 48), Image.Resampling.BILINEAR))
    ours = on_host(box, 48, MOCO, np.uint8)
    np.testing.assert_allclose(ours, theirs, atol=1)
    flipped = crop_resize(PHOTOGRAPH, box, 48, is_flipped=True, out=np.empty((48, 48, 3), np.uint8), resize=MOCO)
    np.testing.assert_array_equal(flipped, ours[:, ::-1])


def test_channels_of_any_number_are_resized_alike(implementation):
    image = np.concatenate([PHOTOGRAPH, PHOTOGRAPH[..., :2]], axis=-1)
    five = on_host(BOXES[1], 20, MOCO, np.uint8, image)
    np.testing.assert_array_equal(five[..., :3], on_host(BOXES[1], 20, MOCO, np.uint8))
    np.testing.assert_array_equal(five[..., 3:], five[..., :2])


def test_the_views_of_moco_are_as_sharp_as_torchvisions_and_simclrs_as_the_official_codes():
    def edges(pixels):
        return np.abs(np.diff(np.float64(pixels), axis=0)).mean() / 255

    view = dataclasses.replace(View(), crop=View.moco().crop)
    make = jax.jit(functools.partial(augment_box, view=view, image_size=48))
    ours = 255 * make(PHOTOGRAPH, np.array(BOXES[0]), jax.random.key(0))
    theirs = np.asarray(Image.fromarray(PHOTOGRAPH).resize((48, 48), Image.Resampling.BILINEAR))
    assert edges(ours) == pytest.approx(edges(theirs), rel=0.01)
    for other in (View.simclr(), *View.byol()):
        assert (other.crop.resize, other.crop.antialias) == ('bicubic', False)
    assert edges(on_device(BOXES[0], 48, other.crop.resized)) > 1.3 * edges(theirs)
    assert Crop(1.0).resized == Resize()        # what a run says that began before there was a choice
