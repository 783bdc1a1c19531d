"""Two random views of each image of a batch, for programs of any kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.views.checks import check_image_size, check_key, checked_images
from simclr_jax.views.device import augment, both_views
from simclr_jax.views.fields import View


def two_views(images: np.ndarray | jax.Array, key: jax.Array, views: View | tuple[View, View], *,
              image_size: int) -> tuple[jax.Array, jax.Array]:
    """Two random views of each image, made as `views` says.

    Args:
        images: [N, H, W, 3] uint8, or floats in [0, 1], of any size; traced floats outside are clipped.
        key: of jax.random; the views are a pure function of (images, key).
        views: a `View` for both, or one for each.
        image_size: side S of the views, in pixels.

    Returns:
        (view1, view2), each [N, S, S, 3] float32 in [0, 1], not normalised by a mean.

    Raises:
        ValueError: images, a key, a size or views that will not do.

    >>> import jax, numpy as np, simclr_jax
    >>> images, key = np.zeros((2, 20, 30, 3), np.uint8), jax.random.key(0)
    >>> crops = simclr_jax.View.simclr().replace(jitter={'probability': 0.0}, blur={'probability': 0.0})
    >>> view1, view2 = simclr_jax.two_views(images, key, crops, image_size=8)
    >>> view1.shape, view2.dtype.name
    ((2, 8, 8, 3), 'float32')
    """
    images = jnp.asarray(checked_images(images))
    check_key(key)
    check_image_size(image_size)
    pair = (views, views) if isinstance(views, View) else tuple(views)
    if len(pair) != 2 or not all(isinstance(view, View) for view in pair):
        raise ValueError(f'views must be a View for both views, or a pair of them; got {views!r}.')
    return _two_views(images, key, pair, image_size)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _two_views(images, key, views, image_size):
    rows = jnp.arange(len(images))
    keys = jax.vmap(lambda row: jax.random.split(jax.random.fold_in(key, row)))(rows)       # [N, 2]
    function = functools.partial(augment, image_size=image_size)

    def made(lone_cpu, images, keys):
        twice = jnp.stack([images] * 2, axis=1)                                             # [N, 2, H, W, 3]
        return both_views(function, views, twice, keys, lone_cpu=lone_cpu)

    at_once = functools.partial(made, False)
    if jax.default_backend() != 'cpu' or jax.device_count() > 1:
        return at_once(images, keys)
    # What is exported for an accelerator has its form.
    return lax.platform_dependent(images, keys, cpu=functools.partial(made, True), default=at_once)


def simclr_views(images: np.ndarray | jax.Array, key: jax.Array, *, image_size: int, strength: float = 1.0,
                 blur: bool = True) -> tuple[jax.Array, jax.Array]:
    """Two random views of each image, as the official code makes them (tf2/data_util.py).

    `View.simclr` for both: crop of 8 to 100 % of the area, flip, colour jitter in random order, grey, blur.

    Args:
        images, key, image_size, the return value and the errors: as of `two_views`.
        strength: of the colour jitter, in [0, 1.25]: 1.0 for ImageNet, 0.5 for CIFAR-10.
        blur: off for small images.

    >>> import jax, numpy as np, simclr_jax
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    >>> view1, view2 = simclr_jax.simclr_views(images, jax.random.key(0), image_size=8, blur=False)
    >>> view1.shape, view2.dtype.name
    ((2, 8, 8, 3), 'float32')
    """
    return two_views(images, key, View.simclr(strength=strength, blur=blur), image_size=image_size)


def moco_views(images: np.ndarray | jax.Array, key: jax.Array, *, image_size: int,
               area: tuple[float, float] = (0.2, 1.0), blur: bool = True) -> tuple[jax.Array, jax.Array]:
    """Two random views of each image, as MoCo v2 makes them (facebookresearch/moco main_moco.py --aug-plus).

    `View.moco` for both. MoCo then normalises them: (view - config.IMAGENET_MEAN) / config.IMAGENET_STD.

    Args:
        images, key, image_size, the return value and the errors: as of `two_views`.
        area: least and greatest share of the image's area in a crop; (0.08, 1.0) for small images.
        blur: off for small images.

    >>> import jax, numpy as np, simclr_jax
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    >>> view1, view2 = simclr_jax.moco_views(images, jax.random.key(0), image_size=8, blur=False)
    >>> mean, std = np.array(simclr_jax.config.IMAGENET_MEAN), np.array(simclr_jax.config.IMAGENET_STD)
    >>> ((view1 - mean) / std).shape
    (2, 8, 8, 3)
    """
    return two_views(images, key, View.moco(area=area, blur=blur), image_size=image_size)


def byol_views(images: np.ndarray | jax.Array, key: jax.Array, *, image_size: int, blur: bool = True
               ) -> tuple[jax.Array, jax.Array]:
    """Two random views of each image, as BYOL makes them (deepmind-research byol/utils/augmentations.py).

    `View.byol`: the first always blurred, the second seldom blurred and at times solarized.

    Args:
        images, key, image_size, the return value and the errors: as of `two_views`.
        blur: off for small images.

    >>> import jax, numpy as np, simclr_jax
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    >>> view1, view2 = simclr_jax.byol_views(images, jax.random.key(0), image_size=8, blur=False)
    >>> view1.shape, view2.dtype.name
    ((2, 8, 8, 3), 'float32')
    """
    return two_views(images, key, View.byol(blur=blur), image_size=image_size)
