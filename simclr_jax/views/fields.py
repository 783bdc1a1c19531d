"""What a view may say, for both forms of the augmentation: on the host and on the accelerator.

numpy only, so that the one form never imports the framework of the other.

Source: google-research/simclr tf2/data_util.py (ranges of the jitter, size of the blur kernel).
"""

import itertools
import math
import numbers
from typing import Any, Callable, Mapping

import numpy as np

# The operations of the jitter, numbered as here, and the 24 orders in which they can run.
JITTER_OPS = ('brightness', 'contrast', 'saturation', 'hue')
JITTER_ORDERS = np.array(list(itertools.permutations(range(len(JITTER_OPS)))), np.int32)  # [24, 4]


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
# The operations in the order in which they run, and what each of their fields must be:
# {operation: {field: (is valid, requirement in words)}}, beside the 'probability' that all have.
OPS = {
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
    _check_names('augmentation', view, OPS, required=OPS)
    for op, fields in view.items():
        check_op(op, fields)


def check_op(op: str, fields: Mapping[str, Any]) -> None:
    """Raises ValueError with one sentence if `fields` do not fit the operation named `op`."""
    checks = {'probability': _PROBABILITY, **OPS[op]}
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


def jitter_range(fields: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest amount of each jitter operation, in the order of `JITTER_OPS`.

    Factors for contrast and saturation, shares of a full circle for the hue; for the brightness a
    factor (mode 'multiply') or a sum (mode 'add').

    Args:
      fields: of 'jitter', checked.

    Returns:
      (low, high), float32 [4] each.
    """
    strengths = [fields[name] for name in JITTER_OPS]
    multiply = fields['brightness_mode'] == 'multiply'
    centres = [float(multiply), 1.0, 1.0, 0.0]
    low, high = np.subtract(centres, strengths), np.add(centres, strengths)
    if multiply:
        low[0] = max(low[0], 0.0)
    return np.float32(low), np.float32(high)


def blur_kernel_size(image_size: int, kernel_fraction: float) -> int:
    """The official odd kernel size: for a fraction of 0.1, 23 at 224 pixels and 3 at 32."""
    return 2 * int(int(image_size * kernel_fraction) / 2) + 1
