"""Random views on the host: crops by a compiled loop, colour by TensorFlow (`host_colour`).

The operations, their order, laws and clips are those of `simclr_jax.views.device`, from the numbers of `draws`.
Only `make_finish` needs tensorflow.
"""

import importlib.util
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from simclr_jax.data.compiled import crop_resize
from simclr_jax.views.draws import Box, Draws
from simclr_jax.views.fields import JITTER_OPS, JITTER_ORDERS, View
from simclr_jax.views.resize import Resize, crop_side, resize_weights

# What was drawn for a view beside its crop, as a row of float32: four turns of the jitter (-1 for none), an
# amount for each jitter operation, grey, sobel, noise (0 or 1), the blur's sigma (0 for none), solarize, and
# the cutout's top and left corner (-2 S for none).
NUM_CHOICES = 4 + len(JITTER_OPS) + 7
_AHEAD = 2      # batches that tf.data makes while one is in use
_CLIP_ONLY = len(JITTER_OPS)      # in place of a jitter operation of strength 0


def crop_view(image: np.ndarray, box: Box, draws: Draws, view: View, *, out: np.ndarray) -> np.ndarray:
    """Crop, flip and quarter turn of an image uint8 [H, W, C] to float32 [S, S, C] about [0, 1], not clipped."""
    crop_resize(image, box, len(out), is_flipped=draws.of(view.flip) is not None, out=out,
                resize=view.crop.resized)
    if turns := draws.of(view.rotate):
        out[...] = np.rot90(out, 1 + int(3 * turns[0])).copy()
    return out


def choices(draws: Draws, view: View, image_size: int) -> np.ndarray:
    """What was drawn for a view, as a row for `make_finish`."""
    order, amounts = [-1] * 4, [0.0] * 4
    if numbers := draws.of(view.jitter):
        low, high = (limits.tolist() for limits in view.jitter.limits())
        amounts = [a + share * (b - a) for a, b, share in zip(low, high, numbers[1:])]
        order = [code if high[code] > low[code] else _CLIP_ONLY
                 for code in JITTER_ORDERS[int(len(JITTER_ORDERS) * numbers[0])].tolist()]
    low, high = view.blur.sigma
    blur, hole = draws.of(view.blur), draws.of(view.cutout)
    side = round(view.cutout.size * image_size)
    corner = [int(image_size * share) - side // 2 for share in hole[:2]] if hole else [-2 * image_size] * 2
    runs = [draws.of(operation) is not None for operation in (view.grey, view.sobel, view.noise)]
    return np.array([*order, *amounts, *runs, low + blur[0] * (high - low) if blur else 0.0,
                     draws.of(view.solarize) is not None, *corner], np.float32)


def make_finish(view: View, dtype: str = 'float32') -> Callable[[Any, Any, Any], Any]:
    """A TensorFlow function of (crops [N, S, S, C], choices [N, NUM_CHOICES], noise) -> views [N, S, S, C].

    Args:
        dtype: of the views: 'float32' or 'bfloat16' in [0, 1], or 'uint8', rounded.

    crops: of `crop_view`. noise: standard normals [N, S, S, C], or [N] of anything where the view has none.

    Raises:
        ValueError: tensorflow is not installed, or the view has functions of the user's, which are JAX's.
    """
    check_view(view)
    check_tensorflow()
    from simclr_jax.views.host_colour import make_finish as make
    return make(view, dtype)


def finished(chunks: Iterator[dict[str, np.ndarray]], finish: dict[str, Callable], batch_size: int, num_threads: int
             ) -> Iterator[dict[str, np.ndarray]]:
    """Batches of views, of chunks of 'label', 'index' and each view's 'NAME/crop', 'NAME/choices' and 'NAME/noise'.

    A tf.data pipeline; finish: `make_finish` of each view. `next` raises what `chunks` raised.
    """
    import tensorflow as tf

    errors, is_left = [], threading.Event()

    def elements():
        try:
            yield from itertools.takewhile(lambda _: not is_left.is_set(), chunks)
        except Exception as error:      # tf.data would make a text of it
            errors.append(error)
            raise

    def views(chunk):
        return {'label': chunk['label'], 'index': chunk['index']} | {
            name: function(*(chunk[f'{name}/{part}'] for part in ('crop', 'choices', 'noise')))
            for name, function in finish.items()}

    chunks = itertools.chain([first := next(chunks)], chunks)
    dataset = tf.data.Dataset.from_generator(elements, output_signature={
        name: tf.TensorSpec(array.shape, array.dtype) for name, array in first.items()})
    dataset = dataset.map(views, num_parallel_calls=num_threads, deterministic=True)
    dataset = dataset.rebatch(batch_size, drop_remainder=True).prefetch(_AHEAD)
    try:
        for batch in dataset.as_numpy_iterator():
            yield batch     # pyright: ignore[reportReturnType] (a dictionary, as the elements are)
    except tf.errors.OpError:
        if not errors:
            raise
        raise errors[0] from None
    finally:
        is_left.set()


def check_view(view: View) -> None:
    """ValueError if the view has functions of the user's."""
    if view.extra:
        raise ValueError("augment.extra needs data.augment_on='device': its functions are JAX's.")


def check_tensorflow() -> None:
    """ValueError if tensorflow is not installed."""
    if importlib.util.find_spec('tensorflow') is None:
        raise ValueError("data.augment_on='host' needs tensorflow: pip install 'simclr_jax[tfds]', or leave it at "
                         "'device'.")


def eval_box(height: int, width: int, proportion: float) -> Box:
    """The central square crop of evaluation (google-research/simclr tf2/data_util.py center_crop).

    Args:
        proportion: side of the crop over the image's shorter side, in (0, 1]: 0.875 for ImageNet.
    """
    side = crop_side(min(height, width), proportion)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def eval_crop(image: np.ndarray, *, image_size: int, proportion: float, resize: Resize = Resize()) -> np.ndarray:
    """An image uint8 [H, W, C] as `views.device.eval_crop`: float32 [image_size, image_size, C] in [0, 1].

    With a proportion of 1 a square image that has the size already passes unchanged.
    """
    height, width = image.shape[:2]
    if resize == Resize():
        out = np.empty((image_size, image_size, image.shape[2]), np.float32)
        crop_resize(image, eval_box(height, width, proportion), image_size, out=out)
        return np.clip(out, 0, 1, out=out)
    rows, columns = resize_weights(height, width, image_size, proportion, resize)
    top, left = (np.flatnonzero(each.any(0)) for each in (rows, columns))       # the pixels that count
    seen = image[top[0]:top[-1] + 1, left[0]:left[-1] + 1].astype(np.float32) / 255
    rows, columns = rows[:, top[0]:top[-1] + 1], columns[:, left[0]:left[-1] + 1]
    half = (rows @ seen.reshape(len(seen), -1)).reshape(image_size, -1, image.shape[2])
    return np.clip(np.einsum('ywc,xw->yxc', half, columns, optimize=True), 0, 1)
