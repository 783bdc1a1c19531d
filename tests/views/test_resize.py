"""The other ways to resize for evaluation are torchvision's, on the host as on the device."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from simclr_jax.views import device, host
from simclr_jax.views.resize import Resize

torch = pytest.importorskip('torch')        # of the extra [export]
PHOTOGRAPHS = [np.ascontiguousarray(photograph) for each in load_sample_images().images
               for photograph in (each[::2, ::2], each.transpose(1, 0, 2)[:301, :250])]


def torchs(image, size, mode, antialias):
    """A float image [H, W, 3] of torch.nn.functional.interpolate, which torchvision's Resize calls."""
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(tensor, size, mode=mode, antialias=antialias)
    return resized[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize('number', range(len(PHOTOGRAPHS)))
@pytest.mark.parametrize('method, antialias', [('bilinear', True), ('bicubic', True), ('bilinear', False)])
def test_shorter_side_and_then_the_cut_are_those_of_torchvision(number, method, antialias):
    photograph = PHOTOGRAPHS[number]
    height, width = photograph.shape[:2]
    sizes = [int(128 * side / min(height, width)) for side in (height, width)]
    top, left = (int(round((size - 112) / 2.0)) for size in sizes)      # transforms/functional.py center_crop
    theirs = torchs(photograph, sizes, method, antialias)[top:top + 112, left:left + 112].clip(0, 1)
    resize = Resize(method, antialias, 128)
    ours = device.eval_crop(photograph, image_size=112, proportion=0.5, resize=resize)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)     # torch has its places in float32
    on_host = host.eval_crop(photograph, image_size=112, proportion=0.5, resize=resize)
    np.testing.assert_allclose(on_host, ours, rtol=0, atol=2e-6)


def test_an_antialiased_crop_is_the_crop_resized():
    photograph = PHOTOGRAPHS[0]
    side = round(0.875 * min(photograph.shape[:2]))
    top, left = ((size - side + 1) // 2 for size in photograph.shape[:2])
    theirs = torchs(photograph[top:top + side, left:left + side], (64, 64), 'bilinear', True)
    resize = Resize('bilinear', True)
    for crop in (device.eval_crop, host.eval_crop):
        np.testing.assert_allclose(crop(photograph, image_size=64, proportion=0.875, resize=resize), theirs,
                                   rtol=0, atol=2e-5)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="eval.resize is 'nearest': it takes bicubic or bilinear"):
        Resize('nearest')
    with pytest.raises(ValueError, match='eval.resize_to is -1'):
        Resize(resize_to=-1)
    with pytest.raises(ValueError, match='eval.resize_to is 64, less than the 112 pixels'):
        device.eval_crop(PHOTOGRAPHS[0], image_size=112, proportion=1.0, resize=Resize(resize_to=64))
