"""Random views on the accelerator: pure JAX functions of (image, key), for one image each.

The same operations, order, clipping and laws as `views/host.py`, from other random numbers.
Each operation draws from keys of its own, folded from the view's key by the operation's number, so
switching one on or off leaves the choices of all the others as they were. Keys must be of JAX's
default kind (threefry): its numbers depend neither on the batch nor on the devices that hold it.

Sources: SimCLR (arXiv 2002.05709, section 3 and appendix A) and its code, google-research/simclr
tf2/data_util.py. Rotation, cutout, Sobel and noise are in the paper only.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.views import ops
from simclr_jax.views.checks import check_image_size, check_key, checked_images
from simclr_jax.views.fields import JITTER_ORDERS, OPS, Crop, Operation, Operations, View
from simclr_jax.views.ops import crop_box
from simclr_jax.views.resize import Resize, crop_side, resize_weights

_NUMBERS = {op: number for number, op in enumerate(OPS)}
# The most numbers that one operation draws: jitter's yes or no, its order and four amounts.
_DRAWS_PER_OP = 6
_DRAWN = 8      # of which these are the first: a CPU's vectors are filled, and compile sooner
# On the CPU: images at a time, and the side in pixels from which one at a time is faster, because its
# branches compute only what was chosen.
_CPU_CHUNK = 64
_SIDE_FOR_BRANCHES = 64


# ---- entry points --------------------------------------------------------------------------------


def augment(image: np.ndarray | jax.Array, key: jax.Array, view: View = View(), *, image_size: int,
            **operations: Unpack[Operations]) -> jax.Array:
    """One random view of an image; `two_views` makes those of a batch.

    The operations run in the order of `View`, each with its own probability. As in the official code, colour
    starts from the bicubic crop, unclipped unless antialiased, and the image is clipped to [0, 1] once colour
    is done.

    Args:
      image: uint8 [H, W, 3] of any size, or floats [H, W, 3] in [0, 1]; a traced image whose floats lie
        outside is clipped.
      key: of jax.random; the result is a pure function of (image, key).
      view: its operations and further functions.
      image_size: side S of the result, in pixels.
      operations: in place of those of `view`: `flip={'probability': 0.5}`, or `flip=Flip(0.5)`.

    Returns:
      float32 [S, S, 3] in [0, 1].

    Raises:
      ValueError: an image, key or size that will not do; an unknown or missing field, or a value out of range.

    >>> import jax, numpy as np, simclr_jax
    >>> image = np.zeros((20, 30, 3), np.uint8)
    >>> view = simclr_jax.augment(image, jax.random.key(0), image_size=8, flip={'probability': 0.5})
    >>> view.shape, view.dtype.name
    ((8, 8, 3), 'float32')
    """
    view = view.replace(**operations)
    image = jnp.asarray(checked_images(image, lone=True, channels=3 if view.of_rgb() else None))
    check_key(key)
    check_image_size(image_size)
    return _augment(image, key, view, image_size)


# Outside of a compiled program, too, its branches are compiled once.
@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _augment(image: jax.Array, key: jax.Array, view: View, image_size: int) -> jax.Array:
    return augment_box(image, _random_box(image, key, view.crop), key, view, image_size=image_size)


def augment_box(image: jax.Array, box: jax.Array, key: jax.Array, view: View, *, image_size: int) -> jax.Array:
    """`augment` with the crop already drawn, from the same key: `box` int32 [4], (top, left, height, width).

    What lies outside the box does not count, so images of several sizes may be padded to one.
    """
    planes = jnp.moveaxis(image, -1, 0)                         # [3, H, W], the layout of `ops`
    planes = ops.resize_box(planes, box, image_size, _happens(key, view.flip), view.crop.resized)
    return _augment_square(planes, key, view)


def augment_crop(crop: jax.Array, key: jax.Array, view: View) -> jax.Array:
    """`augment` with the crop already made, from the same key: uint8 [S, S, 3], or float32 around [0, 1]."""
    planes = _maybe(key, view.flip, _FUNCTIONS['flip'], jnp.moveaxis(crop, -1, 0))
    return _augment_square(ops.unit_range(planes), key, view)


def augment_in_sequence(image: jax.Array, key: jax.Array, view: View, *, sequence: Sequence[str]) -> jax.Array:
    """The operations that `sequence` names and no others, in its order (paper, Fig. 5), each with a clip.

    Of an image float32 [S, S, 3] in [0, 1]. ValueError: a name that is no operation, or comes twice.
    """
    if len(set(sequence)) < len(sequence) or not set(sequence) <= set(OPS):
        raise ValueError(f'augment.sequence is {tuple(sequence)}: it takes each of {", ".join(OPS)} '
                         'at most once.')
    def crop(planes, *_):
        return ops.resize_box(planes, _random_box(image, key, view.crop), len(image), resize=view.crop.resized)

    planes = jnp.moveaxis(image, -1, 0)
    for name in sequence:
        function = crop if name == 'crop' else _FUNCTIONS[name]
        planes = jnp.clip(_maybe(key, getattr(view, name), function, planes), 0.0, 1.0)
    return jnp.moveaxis(planes, 0, -1)


def eval_crop(image: np.ndarray | jax.Array, *, image_size: int, proportion: float,
              resize: Resize = Resize()) -> jax.Array:
    """The central square crop of evaluation (google-research/simclr tf2/data_util.py center_crop).

    Args:
      image: uint8 [H, W, 3] of any size, or floats [H, W, 3] in [0, 1]; a traced image whose floats lie
        outside is clipped.
      image_size: side S of the result, in pixels.
      proportion: side of the crop over the image's shorter side, in (0, 1]: 0.875 for ImageNet.
        With 1.0 a square image that has the size already passes unchanged.
      resize: other ways than the official one, such as torchvision's.

    Returns:
      float32 [S, S, 3] in [0, 1].

    Raises:
      ValueError: an image, size or proportion that will not do.

    >>> import numpy as np, simclr_jax
    >>> crop = simclr_jax.eval_crop(np.ones((20, 30, 3), np.float32), image_size=8, proportion=0.875)
    >>> crop.shape, round(float(crop.min()), 4)
    ((8, 8, 3), 1.0)
    """
    image = jnp.asarray(checked_images(image, lone=True, channels=None))
    check_image_size(image_size)
    height, width, _ = image.shape
    if resize != Resize():
        rows, columns = resize_weights(height, width, image_size, proportion, resize)
        resized = jnp.einsum('yh,hwc,xw->yxc', rows, ops.unit_range(image), columns, precision='highest')
        return jnp.clip(resized, 0.0, 1.0)
    side = crop_side(min(height, width), proportion)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    crop = image[top:top + side, left:left + side]
    if side == image_size:
        return jnp.clip(ops.unit_range(crop), 0.0, 1.0)
    resized = ops.resize_box(jnp.moveaxis(crop, -1, 0), _whole(crop), image_size)
    return jnp.clip(jnp.moveaxis(resized, 0, -1), 0.0, 1.0)


def over_batch(function: Callable[..., jax.Array], *, lone_cpu: bool = False) -> Callable[..., jax.Array]:
    """`function` of one image [H, W, 3] and more arguments, over all leading axes of [..., H, W, 3].

    The other arguments have the same leading axes. The result does not depend on the batch, up to
    float32 rounding. The batch is taken at once (jax.vmap), where a choice between operations costs them
    all. With `lone_cpu` a single CPU device takes small images in chunks that stay in its cache, and large
    ones one by one, so that only what was chosen is computed; several devices would lose their share of the
    rows to the loop.
    """

    def batched(images: jax.Array, *arguments: jax.Array) -> jax.Array:
        axes = images.shape[:-3]
        if lone_cpu:        # one axis: LLVM unrolls those of a few rows, for seconds
            rows = [each.reshape(-1, *each.shape[len(axes):]) for each in (images, *arguments)]
            chunk = _CPU_CHUNK if max(images.shape[-3:-1]) < _SIDE_FOR_BRANCHES else None
            made = jax.lax.map(lambda row: function(*row), rows, batch_size=chunk)
            return made.reshape(*axes, *made.shape[1:])
        mapped = function
        for _ in axes:
            mapped = jax.vmap(mapped)
        return mapped(images, *arguments)

    return batched


def both_views(function: Callable[..., jax.Array], views: tuple[View, View], *arguments: jax.Array,
               lone_cpu: bool) -> tuple[jax.Array, jax.Array]:
    """The two views of a batch by function(*arguments of a view, view=view), float32 [B, S, S, 3] each.

    arguments: [B, 2, ...], a slot for each view; images first, keys last. `function` is compiled once where
    both views are made alike. `lone_cpu`: see `over_batch`.
    """
    first, second = (over_batch(functools.partial(function, view=view), lone_cpu=lone_cpu) for view in views)
    if views[0] == views[1]:
        made = first(*arguments)
        return made[:, 0], made[:, 1]
    return first(*(argument[:, 0] for argument in arguments)), second(*(argument[:, 1] for argument in arguments))


# ---- random choice -------------------------------------------------------------------------------


def _key(key: jax.Array, operation: Operation, part: int) -> jax.Array:
    """The key of an operation for its row of numbers (part 0) or for what it draws besides (part 1)."""
    return jax.random.fold_in(key, 2 * _NUMBERS[operation.name] + part)


def _draw(key: jax.Array, operation: Operation) -> jax.Array:
    """An operation's row of uniform numbers in [0, 1): whether it runs, then its parameters."""
    return jax.random.uniform(_key(key, operation, 0), [_DRAWN])[:_DRAWS_PER_OP]


def _happens(key: jax.Array, operation: Operation) -> bool | jax.Array:
    """Whether an operation runs; known while tracing where its probability is 0 or 1."""
    probability = operation.probability
    return bool(probability) if probability in (0, 1) else _draw(key, operation)[0] < probability


def _maybe(key: jax.Array, operation: Operation, function: Callable[..., jax.Array], image: jax.Array) -> jax.Array:
    """function(image, operation, its row of numbers, key) with the operation's probability, else the image."""
    if not operation.probability:
        return image
    draws = _draw(key, operation)
    if operation.probability == 1:
        return function(image, operation, draws, key)
    return jax.lax.cond(draws[0] < operation.probability, lambda image: function(image, operation, draws, key),
                        lambda image: image, image)


def _whole(image: jax.Array) -> jax.Array:
    return jnp.array([0, 0, *image.shape[:2]], jnp.int32)


def _random_box(image: jax.Array, key: jax.Array, crop: Crop) -> jax.Array:
    happens = _happens(key, crop)
    if happens is False:
        return _whole(image)
    height, width, _ = image.shape
    box = crop_box(_key(key, crop, 1), height, width, law=crop.law, area=crop.area, aspect=crop.aspect)
    return box if happens is True else jnp.where(happens, box, _whole(image))


# ---- after crop and flip -------------------------------------------------------------------------


def _augment_square(image: jax.Array, key: jax.Array, view: View) -> jax.Array:
    """All that follows crop and flip, in the order of `View`.

    Takes planes [3, S, S] and returns pixels [S, S, 3].
    """
    for name in OPS:
        if name not in ('crop', 'flip'):
            image = _maybe(key, getattr(view, name), _FUNCTIONS[name], image)
        if name == 'grey':                                       # the last of colour
            image = jnp.clip(image, 0.0, 1.0)
    image = jnp.moveaxis(image, 0, -1)             # pixels
    for number, function in enumerate(view.extra):
        result = function(image, jax.random.fold_in(key, 2 * len(OPS) + number))
        if not hasattr(result, 'dtype') or (result.shape, result.dtype) != (image.shape, image.dtype):
            given = f'{result.dtype.name} {list(result.shape)}' if hasattr(result, 'dtype') else repr(result)
            raise ValueError(f'augment.extra: {getattr(function, "__name__", function)} gave {given}; it must '
                             f'give what it takes, {image.dtype.name} {list(image.shape)}.')
        image = result
    return image


def _jitter(image, jitter, draws, _):
    low, high = jitter.limits()
    order = jnp.asarray(JITTER_ORDERS)[(len(JITTER_ORDERS) * draws[1]).astype(jnp.int32)]
    return ops.jitter(image, order, low + draws[2:] * (high - low), active=list(high > low),
                      brightness_mode=jitter.brightness_mode)


def _noise(image, noise, _, key):
    numbers = jax.random.normal(_key(key, noise, 1), image.shape)
    return jnp.clip(image + noise.std * numbers, 0.0, 1.0)


def _blur(image, blur, draws, _):
    kernel_size = blur.kernel_size(image.shape[1])
    if kernel_size == 1:
        return image
    low, high = blur.sigma
    # Rounding can leave the weights' sum a hair above 1.
    return jnp.clip(ops.gaussian_blur(image, low + draws[1] * (high - low), kernel_size), 0.0, 1.0)


def _cutout(image, cutout, draws, _):
    image_size = image.shape[1]
    centre = (image_size * draws[1:3]).astype(jnp.int32)
    return ops.cutout(image, centre, round(cutout.size * image_size))


# {operation: (planes, the operation, its row of numbers, the view's key) -> planes}
_FUNCTIONS: dict[str, Callable[..., jax.Array]] = {
    'flip': lambda image, *_: image[..., ::-1],
    'rotate': lambda image, _, draws, key: ops.rotate(image, 1 + (3.0 * draws[1]).astype(jnp.int32)),
    'jitter': _jitter,
    'grey': lambda image, *_: ops.to_grey(image),
    'sobel': lambda image, *_: ops.sobel(image),
    'noise': _noise,
    'blur': _blur,
    'solarize': lambda image, solarize, *_: ops.solarize(image, solarize.threshold),
    'cutout': _cutout,
}
