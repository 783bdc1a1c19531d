"""SimCLR's random views of a batch of images, for use outside a training run."""

import functools

import jax
import jax.numpy as jnp

from simclr_jax.views import device as device_augment
from simclr_jax.views.fields import OPS
from simclr_jax.config import augment_config


@functools.partial(jax.jit, static_argnames=('image_size', 'strength', 'blur'))
def simclr_views(images: jax.Array, key: jax.Array, *, image_size: int, strength: float = 1.0,
                 blur: bool = True) -> tuple[jax.Array, jax.Array]:
    """Two random views of each image, as the official code makes them (tf2/data_util.py).

    Crop of 8 to 100 % of the area, flip, colour jitter in random order, grey, blur.

    Args:
        images: [N, H, W, 3] uint8, or float32 in [0, 1], of any size.
        key: the views are a pure function of (images, key).
        image_size: side S of the views.
        strength: of the colour jitter: 1.0 for ImageNet, 0.5 for CIFAR-10.
        blur: off for small images.

    Returns:
        (view1, view2), each [N, S, S, 3] float32 in [0, 1].
    """
    fields = augment_config(image_size=image_size, strength=strength, blur=blur)
    operations = {name: fields[name].to_dict() for name in OPS}
    view = device_augment.over_batch(functools.partial(
        device_augment.augment, image_size=image_size, **operations))
    keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(jnp.arange(len(images)))
    return view(images, keys[:, 0]), view(images, keys[:, 1])
