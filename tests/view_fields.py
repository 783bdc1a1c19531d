"""Fields of views that the tests of both forms of the augmentation use."""

import numpy as np

from simclr_jax.views import host
from simclr_jax.views.fields import View

OFF = {'probability': 0.0}
CROP = {'probability': 1.0, 'law': 'tf', 'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)}
JITTER = {'probability': 0.8, 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1,
          'brightness_mode': 'multiply'}
# Every operation always runs.
ALL_ON = {
    'crop': CROP,
    'flip': {'probability': 1.0},
    'rotate': {'probability': 1.0},
    'jitter': JITTER | {'probability': 1.0},
    'grey': {'probability': 1.0},
    'sobel': {'probability': 1.0},
    'noise': {'probability': 1.0, 'std': 0.1},
    'blur': {'probability': 1.0, 'sigma': (1.0, 2.0), 'kernel_fraction': 0.2},
    'solarize': {'probability': 1.0, 'threshold': 0.5},
    'cutout': {'probability': 1.0, 'size': 0.5},
}
HALF_ON = {op: fields | {'probability': 0.5} for op, fields in ALL_ON.items()}
ALL_OFF = dict.fromkeys(ALL_ON, OFF)
SIMCLR = ALL_OFF | {'crop': CROP, 'flip': {'probability': 0.5}, 'jitter': JITTER,
                    'grey': {'probability': 0.2}}


def view_of(fields):
    """The view of these operations; the others are off."""
    return View().replace(**fields)


def host_views(image, draws, view, *, image_size):
    """Views of an image uint8 [H, W, 3] as the host makes them, one for each of `draws`: float32 [N, S, S, 3]."""
    crops = np.stack([host.crop_view(image, draw.box(*image.shape[:2], view.crop), draw, view,
                                     out=np.empty((image_size, image_size, image.shape[2]),
                                         np.float32)) for draw in draws])
    noise = np.stack([draw.normals(crops.shape[1:]) if view.noise.probability else np.float32(0) for draw in draws])
    return host.make_finish(view)(crops, np.stack([host.choices(draw, view,
        image_size) for draw in draws]), noise).numpy()
