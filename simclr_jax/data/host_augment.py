"""Random views on the host: pure functions of (image, seed), to run inside a tf.data map.

All random numbers of an image come from fixed places of one table drawn from its seed, so switching
one operation on or off leaves the choices of all the others as they were.

Sources: SimCLR (arXiv 2002.05709, section 3 and appendix A) and its code, google-research/simclr
tf2/data_util.py. Rotation, cutout, Sobel and noise are in the paper only.
"""

import itertools
import math
import numbers
from typing import Any, Callable, Mapping

import numpy as np
import tensorflow as tf

from simclr_jax.data import augment_ops as ops

_JITTER_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)  # [24, 4]
# The most numbers that one operation takes: jitter's yes or no, its order and four amounts.
_DRAWS_PER_OP = 6


# ---- what a view may say -----------------------------------------------------------------------


def _between(low: float, high: float, why: str = '') -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, numbers.Real) and low <= value <= high,
            f'a number in [{low:g}, {high:g}]{why}')


def _range_within(high: float) -> tuple[Callable[[Any], bool], str]:
    def is_range(value):
        return (isinstance(value, (tuple, list)) and len(value) == 2
                and all(isinstance(v, numbers.Real) for v in value)
                and 0 < value[0] <= value[1] <= high)

    return is_range, f'a pair (low, high) with 0 < low <= high <= {high:g}'


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, 'one of ' + ', '.join(map(repr, names))


_PROBABILITY = _between(0, 1)
_POSITIVE_FACTOR = '; above 1 the least factor, 1 - strength, would be negative'
# The operations in the order in which they run, and what each of their fields must be.
_OPS = {
    'crop': {'law': _one_of('tf', 'uniform'), 'area': _range_within(1),
             'aspect': _range_within(math.inf)},
    'flip': {},
    'rotate': {},
    'jitter': {'brightness': _between(0, math.inf), 'contrast': _between(0, 1, _POSITIVE_FACTOR),
               'saturation': _between(0, 1, _POSITIVE_FACTOR), 'hue': _between(0, 0.5),
               'brightness_mode': _one_of('multiply', 'add')},
    'grey': {},
    'sobel': {},
    'noise': {'std': _between(0, math.inf)},
    'blur': {'sigma': _range_within(math.inf), 'kernel_fraction': _between(0, 1)},
    'solarize': {'threshold': _between(0, 1)},
    'cutout': {'size': _between(0, 1)},
}


def check_view(view: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError with one sentence if `view` does not fit the arguments of `augment`.

    Every operation must be there with its 'probability'; the other fields may be left out where the
    probability is 0.
    """
    _check_names('augmentation', view, _OPS, required=_OPS)
    for op, fields in view.items():
        _check_op(op, fields)


def _check_op(op: str, fields: Mapping[str, Any]) -> None:
    checks = {'probability': _PROBABILITY, **_OPS[op]}
    required = checks if fields.get('probability') else ['probability']
    _check_names(f'field of augmentation {op!r}', fields, checks, required)
    for field, value in fields.items():
        is_valid, requirement = checks[field]
        if not is_valid(value):
            raise ValueError(f'Augmentation field {op}.{field} must be {requirement}; '
                             f'got {value!r}.')


def _check_names(what: str, given: Mapping, valid: Mapping, required: Any) -> None:
    for names, problem in ((set(given) - set(valid), 'Unknown'),
                           (set(required) - set(given), 'Missing')):
        if names:
            raise ValueError(f'{problem} {what}: {", ".join(sorted(names))}; '
                             f'valid names are {", ".join(valid)}.')


# ---- entry points ------------------------------------------------------------------------------


def augment(image: tf.Tensor, seed: tf.Tensor, *, image_size: int, crop: Mapping, flip: Mapping,
            rotate: Mapping, jitter: Mapping, grey: Mapping, sobel: Mapping, noise: Mapping,
            blur: Mapping, solarize: Mapping, cutout: Mapping) -> tf.Tensor:
    """One random view of an image.

    The operations run in the order of the arguments, each with its own 'probability'; one whose
    probability is 0 costs nothing and needs no other field. As in the official code, colour starts
    from the unclipped bicubic crop and the image is clipped to [0, 1] once colour is done.

    Args:
      image: uint8 [H, W, 3] of any size, or float32 [H, W, 3] in [0, 1].
      seed: int [2]; the result is a pure function of (image, seed).
      image_size: side of the result.
      crop: 'law', 'area' and 'aspect' (see `augment_ops.crop_box`); a miss resizes the whole image.
      flip: left to right.
      rotate: by 90, 180 or 270 degrees.
      jitter: strengths 'brightness', 'contrast', 'saturation', 'hue', in a fresh random order with
        a clip to [0, 1] after each. Contrast and saturation factors are U[1 - s, 1 + s], the hue
        turns by U[-s, s] of a circle; 'brightness_mode' is 'multiply' by U[max(1 - s, 0), 1 + s] or
        'add' U[-s, s]. A strength of 0 leaves that one out.
      grey: three equal channels.
      sobel: gradient magnitude.
      noise: additive Gaussian of standard deviation 'std', in units of [0, 1]; then a clip.
      blur: Gaussian, 'sigma' (range, in pixels) drawn per image, 'kernel_fraction' of image_size.
      solarize: inverts what is at or above 'threshold'.
      cutout: zeros a square of side 'size' * image_size about a uniform centre.

    Returns:
      float32 [image_size, image_size, 3] in [0, 1].

    Raises:
      ValueError: for an unknown or missing field or a value out of range (see `check_view`).
    """
    check_view({'crop': crop, 'flip': flip, 'rotate': rotate, 'jitter': jitter, 'grey': grey,
                'sobel': sobel, 'noise': noise, 'blur': blur, 'solarize': solarize,
                'cutout': cutout})
    crop_seed, noise_seed, draws = _draw(seed)
    image = _random_crop(image, crop_seed, draws['crop'], image_size, crop)
    image = _maybe(flip, draws['flip'], ops.flip, image)
    image = _maybe(rotate, draws['rotate'], lambda x: _random_rotate(x, draws['rotate']), image)
    image = _maybe(jitter, draws['jitter'],
                   lambda x: _random_jitter(x, draws['jitter'], jitter), image)
    image = ops.clip(_maybe(grey, draws['grey'], ops.to_grey, image))
    image = _maybe(sobel, draws['sobel'], ops.sobel, image)
    image = _maybe(noise, draws['noise'],
                   lambda x: ops.clip(ops.gaussian_noise(x, noise_seed, noise['std'])), image)
    image = _maybe(blur, draws['blur'], lambda x: _random_blur(x, draws['blur'], blur), image)
    image = _maybe(solarize, draws['solarize'],
                   lambda x: ops.solarize(x, solarize['threshold']), image)
    return _maybe(cutout, draws['cutout'],
                  lambda x: _random_cutout(x, draws['cutout'], cutout['size']), image)


def crop_and_flip(image: tf.Tensor, seed: tf.Tensor, *, image_size: int, crop: Mapping,
                  flip: Mapping) -> tf.Tensor:
    """The augmentation of linear evaluation and fine-tuning: `augment` with no more than these two.

    Makes the same crop and flip as `augment` does from the same seed.

    Args:
      image, seed, image_size, crop, flip: as in `augment`.

    Returns:
      float32 [image_size, image_size, 3] in [0, 1].
    """
    _check_op('crop', crop)
    _check_op('flip', flip)
    crop_seed, _, draws = _draw(seed)
    image = _random_crop(image, crop_seed, draws['crop'], image_size, crop)
    return ops.clip(_maybe(flip, draws['flip'], ops.flip, image))


def eval_crop(image: tf.Tensor, *, image_size: int, proportion: float) -> tf.Tensor:
    """The central square crop of evaluation (google-research/simclr tf2/data_util.py center_crop).

    Args:
      image: uint8 [H, W, 3] of any size, or float32 [H, W, 3] in [0, 1].
      image_size: side of the result.
      proportion: side of the crop over the image's shorter side, in (0, 1]: 0.875 for ImageNet.
        With 1.0 a square image that has the size already passes unchanged.

    Returns:
      float32 [image_size, image_size, 3] in [0, 1].
    """
    if not 0.0 < proportion <= 1.0:
        raise ValueError(f'The evaluation crop proportion must be in (0, 1]; got {proportion!r}.')
    shape = tf.shape(image)[:2]
    side = tf.math.rint(proportion * tf.cast(tf.reduce_min(shape), tf.float32))
    side = tf.maximum(tf.cast(side, tf.int32), 1)
    begin = (shape - side + 1) // 2
    crop = tf.slice(image, tf.concat([begin, [0]], 0), tf.stack([side, side, -1]))
    return ops.clip(ops.resize(crop, image_size))


# ---- random choice -----------------------------------------------------------------------------


def _draw(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Seeds for the crop and the noise, and a row of uniform numbers in [0, 1) per operation.

    The first number of a row decides whether its operation runs, the rest are its parameters.
    """
    crop_seed, noise_seed, table_seed = tf.unstack(tf.random.split(seed, 3))
    table = tf.random.stateless_uniform([len(_OPS), _DRAWS_PER_OP], table_seed)
    return crop_seed, noise_seed, dict(zip(_OPS, tf.unstack(table)))


def _maybe(fields: Mapping, draws: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor],
           image: tf.Tensor) -> tf.Tensor:
    """function(image) with the probability in `fields`, else the image."""
    probability = fields['probability']
    if probability == 0:
        return image
    if probability == 1:
        return function(image)
    return tf.cond(draws[0] < probability, lambda: function(image), lambda: image)


def _random_crop(image: tf.Tensor, seed: tf.Tensor, draws: tf.Tensor, image_size: int,
                 fields: Mapping) -> tf.Tensor:
    def crop(image):
        box = ops.crop_box(tf.shape(image), seed, law=fields['law'],
                           area=tuple(fields['area']), aspect=tuple(fields['aspect']))
        return tf.slice(image, *box)

    return ops.resize(_maybe(fields, draws, crop, image), image_size)


def _random_rotate(image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    return ops.rotate(image, 1 + tf.cast(3.0 * draws[1], tf.int32))


def _random_jitter(image: tf.Tensor, draws: tf.Tensor, fields: Mapping) -> tf.Tensor:
    strengths = [fields[name] for name in ('brightness', 'contrast', 'saturation', 'hue')]
    multiply = fields['brightness_mode'] == 'multiply'
    centres = [float(multiply), 1.0, 1.0, 0.0]
    low, high = np.subtract(centres, strengths), np.add(centres, strengths)
    if multiply:
        low[0] = max(low[0], 0.0)
    amounts = np.float32(low) + draws[2:] * np.float32(high - low)
    order = tf.gather(_JITTER_ORDERS, tf.cast(len(_JITTER_ORDERS) * draws[1], tf.int32))
    return ops.jitter(image, order, amounts, active=[strength > 0 for strength in strengths],
                      brightness_mode=fields['brightness_mode'])


def _random_blur(image: tf.Tensor, draws: tf.Tensor, fields: Mapping) -> tf.Tensor:
    kernel_size = ops.blur_kernel_size(image.shape[0], fields['kernel_fraction'])
    if kernel_size == 1:
        return image
    low, high = fields['sigma']
    sigma = low + draws[1] * (high - low)
    # Rounding can leave the weights' sum a hair above 1.
    return ops.clip(ops.gaussian_blur(image, sigma, kernel_size))


def _random_cutout(image: tf.Tensor, draws: tf.Tensor, size: float) -> tf.Tensor:
    image_size = image.shape[0]
    centre = tf.cast(image_size * draws[1:3], tf.int32)
    return ops.cutout(image, centre, round(size * image_size))
