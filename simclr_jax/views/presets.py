"""Views by their settings: of a run's config, and SimCLR's for use outside a training run."""

import functools

import jax
import jax.numpy as jnp

from simclr_jax.config import ConfigDict, augment_config, view_config
from simclr_jax.config.names import resolve
from simclr_jax.views.device import augment, over_batch
from simclr_jax.views.fields import View


def views_of(fields: ConfigDict) -> tuple[View, View]:
    """Both views of a config's `augment` block; ValueError with one sentence where a field will not do."""
    extra = tuple(resolve(name, 'augment.extra') for name in fields.get('extra', ()))
    first, second = (View(extra=extra).replace(**view_config(fields, name)) for name in ('view1', 'view2'))
    return first, second


def crop_and_flip_of(fields: ConfigDict) -> View:
    """The view of linear evaluation and fine-tuning: the crop and the flip of an `augment` block, no more."""
    return View().replace(crop=dict(fields.crop), flip=dict(fields.flip))


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
    view, _ = views_of(augment_config(image_size=image_size, strength=strength, blur=blur))
    views = over_batch(functools.partial(augment, view=view, image_size=image_size))
    keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(jnp.arange(len(images)))
    return views(images, keys[:, 0]), views(images, keys[:, 1])
