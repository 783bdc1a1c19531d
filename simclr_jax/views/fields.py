"""What a view is: ten operations, each with its probability and its ranges, and functions of the user's.

numpy only, so that neither form of the augmentation, on the host or on the accelerator, imports the other's
framework. A `View` is checked when it is made, and can be a static argument of `jax.jit`.

Sources: google-research/simclr tf2/data_util.py (SimCLR's view, size of the blur kernel);
facebookresearch/moco main_moco.py --aug-plus; deepmind-research byol/utils/augmentations.py.
"""

import dataclasses
import functools
import itertools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np

from simclr_jax.views.resize import METHODS, Resize

# The operations of the jitter, numbered as here, and the 24 orders in which they can run.
JITTER_OPS = ('brightness', 'contrast', 'saturation', 'hue')
JITTER_ORDERS = np.array(list(itertools.permutations(range(len(JITTER_OPS)))), np.int32)  # [24, 4]


# What a field must be: (is valid, requirement in words), in the field's metadata.
def _field(check: tuple[Callable[[Any], bool], str], default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={'check': check})


def _between(low: float, high: float, why: str = '') -> tuple[Callable[[Any], bool], str]:
    return (lambda value: isinstance(value, numbers.Real) and low <= float(value) <= high and math.isfinite(value),
            f'a number in [{low:g}, {high:g}]{why}')


def _range_within(high: float) -> tuple[Callable[[Any], bool], str]:
    def is_range(value):
        return (isinstance(value, (tuple, list)) and len(value) == 2
                and all(isinstance(v, numbers.Real) for v in value)
                and 0 < value[0] <= value[1] <= high and math.isfinite(value[1]))

    return is_range, f'a pair (low, high) with 0 < low <= high <= {high:g}'


def _one_of(*names: str | bool) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, 'one of ' + ', '.join(map(repr, names))


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check_names(what: str, given: Mapping, valid: Iterable[str], required: Any = ()) -> None:
    for names, problem in ((set(given) - set(valid), 'Unknown'),
                           (set(required) - set(given), 'Missing')):
        if names:
            raise ValueError(f'{problem} {what}: {", ".join(sorted(names))}; '
                             f'valid names are {", ".join(valid)}.')


_FACTOR = _between(0, 1, '; above 1 the least factor, 1 - strength, would be negative')


@dataclasses.dataclass(frozen=True)
class Operation:
    """What runs with a probability, decided for each view; one of probability 0 costs nothing."""

    probability: float = _field(_between(0, 1))
    name: ClassVar[str]     # 'crop' for a `Crop`: the view's field, and what the config calls it

    def __init_subclass__(cls):
        cls.name = cls.__name__.lower()

    def __new__(cls, *_: Any, **fields: Any):
        _check_names(f'field of augmentation {cls.name!r}', fields, _names(cls))
        return super().__new__(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_valid, requirement = field.metadata['check']
            if not is_valid(value):
                raise ValueError(f'Augmentation field {self.name}.{field.name} must be {requirement}; '
                                 f'got {value!r}.')
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))


@dataclasses.dataclass(frozen=True)
class Crop(Operation):
    """A box of the image, resized to the view; where it does not run, the whole image is resized.

    law: 'tf' draws as the official SimCLR code, 'uniform' as torchvision (see `ops.crop_box`).
    area, aspect: least and greatest share of the image's area, and width / height.
    resize: 'bicubic' (a = -0.5) or 'bilinear'.
    antialias: as Pillow, and so torchvision, resizes: the filter is as wide as a pixel of the view, and the
        crop is clipped; False: as the official SimCLR code.
    """

    law: str = _field(_one_of('tf', 'uniform'), 'tf')
    area: tuple[float, float] = _field(_range_within(1), (0.08, 1.0))
    aspect: tuple[float, float] = _field(_range_within(math.inf), (3 / 4, 4 / 3))
    resize: str = _field(_one_of(*METHODS), 'bicubic')
    antialias: bool = _field(_one_of(False, True), False)

    @functools.cached_property
    def resized(self) -> Resize:
        """How the box is resized."""
        return Resize(self.resize, self.antialias)


class Flip(Operation):
    """Left to right."""


class Rotate(Operation):
    """By 90, 180 or 270 degrees, each as often."""


@dataclasses.dataclass(frozen=True)
class Jitter(Operation):
    """Four changes of colour in a fresh random order, with a clip to [0, 1] after each.

    Contrast and saturation factors are U[1 - s, 1 + s], the hue turns by U[-s, s] of a circle;
    `brightness_mode` is 'multiply' by U[max(1 - s, 0), 1 + s] or 'add' U[-s, s]. A strength of 0 leaves that
    one out. The defaults are those of ImageNet in the official code.
    """

    brightness: float = _field(_between(0, math.inf), 0.8)
    contrast: float = _field(_FACTOR, 0.8)
    saturation: float = _field(_FACTOR, 0.8)
    hue: float = _field(_between(0, 0.5), 0.2)
    brightness_mode: str = _field(_one_of('multiply', 'add'), 'multiply')

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest amount of each change, in the order of `JITTER_OPS`, float32 [4] each.

        Factors for contrast and saturation, shares of a full circle for the hue; for the brightness a factor
        (mode 'multiply') or a sum (mode 'add').
        """
        strengths = [getattr(self, name) for name in JITTER_OPS]
        multiply = self.brightness_mode == 'multiply'
        centres = [float(multiply), 1.0, 1.0, 0.0]
        low, high = np.subtract(centres, strengths), np.add(centres, strengths)
        if multiply:
            low[0] = max(low[0], 0.0)
        return low.astype(np.float32), high.astype(np.float32)


class Grey(Operation):
    """Three equal channels."""


class Sobel(Operation):
    """Gradient magnitude."""


@dataclasses.dataclass(frozen=True)
class Noise(Operation):
    """Additive Gaussian of standard deviation `std`, in units of [0, 1]; then a clip."""

    std: float = _field(_between(0, math.inf), 0.1)


@dataclasses.dataclass(frozen=True)
class Blur(Operation):
    """Gaussian; `sigma`, a range in pixels, is drawn per image."""

    sigma: tuple[float, float] = _field(_range_within(math.inf), (0.1, 2.0))
    kernel_fraction: float = _field(_between(0, 1), 0.1)

    def kernel_size(self, image_size: int) -> int:
        """The official odd kernel size: for a fraction of 0.1, 23 at 224 pixels and 3 at 32."""
        return 2 * int(int(image_size * self.kernel_fraction) / 2) + 1


@dataclasses.dataclass(frozen=True)
class Solarize(Operation):
    """Inverts what is at or above `threshold`."""

    threshold: float = _field(_between(0, 1), 0.5)


@dataclasses.dataclass(frozen=True)
class Cutout(Operation):
    """Zeros a square of side `size` * image size about a uniform centre."""

    size: float = _field(_between(0, 1), 0.5)


class Operations(TypedDict, total=False):
    """The operations of a view as keywords, each as itself or as its fields."""

    crop: Crop | Mapping[str, Any]
    flip: Flip | Mapping[str, Any]
    rotate: Rotate | Mapping[str, Any]
    jitter: Jitter | Mapping[str, Any]
    grey: Grey | Mapping[str, Any]
    sobel: Sobel | Mapping[str, Any]
    noise: Noise | Mapping[str, Any]
    blur: Blur | Mapping[str, Any]
    solarize: Solarize | Mapping[str, Any]
    cutout: Cutout | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class View:
    """A random view of an image: operations in the order in which they run, then the functions of `extra`.

    Those that are left out do not run. `View.simclr()`, `View.moco()` and `View.byol()` are the papers'; the
    classes of the operations stand in `simclr_jax.views.fields`. A view is hashable, so that it may be a
    static argument of `jax.jit`.

    extra: further functions (image float32 [S, S, 3], key) -> image of the same shape and type, pure and
    traceable by JAX, in the order in which they run; on the device only.

    Raises:
        ValueError: with one sentence, for an unknown name, a value out of range, or what is no operation or function.

    >>> import simclr_jax
    >>> view = simclr_jax.View.simclr(strength=0.5, blur=False).replace(solarize={'probability': 0.2})
    >>> view.jitter.hue, view.solarize
    (0.1, Solarize(probability=0.2, threshold=0.5))
    """

    crop: Crop = Crop(0.0)
    flip: Flip = Flip(0.0)
    rotate: Rotate = Rotate(0.0)
    jitter: Jitter = Jitter(0.0)
    grey: Grey = Grey(0.0)
    sobel: Sobel = Sobel(0.0)
    noise: Noise = Noise(0.0)
    blur: Blur = Blur(0.0)
    solarize: Solarize = Solarize(0.0)
    cutout: Cutout = Cutout(0.0)
    extra: tuple[Callable, ...] = ()

    def __new__(cls, *_: Any, **fields: Any):
        _check_names('augmentation', fields, _names(cls))
        return super().__new__(cls)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != 'extra' and type(value) is not type(field.default):
                raise ValueError(f'{field.name} of a View must be {type(field.default).__name__}(...); '
                                 f'got {value!r}.')
        object.__setattr__(self, 'extra', tuple(self.extra))
        for function in self.extra:
            if not callable(function):
                raise ValueError(f'extra of a View must hold functions of (image, key); got {function!r}.')

    @classmethod
    def simclr(cls, *, strength: float = 1.0, blur: bool = True) -> 'View':
        """SimCLR's: crop of 8 to 100 % of the area, flip, colour jitter in random order, grey, blur.

        Args:
            strength: of the jitter, in [0, 1.25]: 1.0 for ImageNet, 0.5 for CIFAR-10.
            blur: off for small images.
        """
        colour = 0.8 * strength
        return cls(crop=Crop(1.0), flip=Flip(0.5), jitter=Jitter(0.8, colour, colour, colour, 0.2 * strength),
                   grey=Grey(0.2), blur=Blur(0.5 if blur else 0.0))

    @classmethod
    def moco(cls, *, area: tuple[float, float] = (0.2, 1.0), blur: bool = True) -> 'View':
        """MoCo v2's: crops of uniform area, antialiased; brightness, contrast and saturation in [0.6, 1.4].

        Its operations are torchvision's, but saturation here scales that of HSV, and contrast is about the
        mean of each channel.
        """
        jitter = Jitter(0.8, 0.4, 0.4, 0.4, 0.1)
        return cls.simclr(blur=blur).replace(
            crop=Crop(1.0, 'uniform', area, resize='bilinear', antialias=True), jitter=jitter)

    @classmethod
    def byol(cls, *, blur: bool = True) -> tuple['View', 'View']:
        """BYOL's two: the first always blurred, the second seldom but at times solarized.

        Brightness is additive. `blur=False` for small images, as solo-learn's CIFAR recipe.
        """
        view = cls.simclr().replace(crop=Crop(1.0, 'uniform'), jitter=Jitter(0.8, 0.4, 0.4, 0.2, 0.1, 'add'))
        return (view.replace(blur=Blur(1.0 if blur else 0.0)),
                view.replace(blur=Blur(0.1 if blur else 0.0), solarize=Solarize(0.2)))

    def replace(self, **operations: Unpack[Operations]) -> 'View':
        """The view with other operations, each as itself or as some of its fields; the rest stay as they are.

        Raises:
            ValueError: for an unknown operation or field, a value out of range, or no probability for an
                operation that the view does not have.
        """
        _check_names('augmentation', operations, OPS)
        before = {name: dataclasses.asdict(each) for name, each in self.operations().items() if each.probability}
        changed: dict[str, Any] = {**operations}
        return dataclasses.replace(self, **{
            name: fields if isinstance(fields, Operation) else _operation(name, {**before.get(name, {}), **fields})
            for name, fields in changed.items()})

    def of_rgb(self) -> list[str]:
        """The operations of this view that images of other channels than red, green and blue cannot have."""
        runs = {'saturation': self.jitter.probability * self.jitter.saturation,
                'hue': self.jitter.probability * self.jitter.hue, 'grey': self.grey.probability}
        return [name for name, share in runs.items() if share]

    def without_rgb(self) -> 'View':
        """The view without the operations of `of_rgb`."""
        return dataclasses.replace(self, grey=Grey(0.0),
                                   jitter=dataclasses.replace(self.jitter, saturation=0.0, hue=0.0))

    def operations(self) -> dict[str, Operation]:
        """The ten by their names, in the order in which they run."""
        return {name: getattr(self, name) for name in OPS}


@dataclasses.dataclass(frozen=True)
class SmallViews:
    """Further views of each image, of small crops (multi-crop, Caron et al. 2020).

    Attributes:
        view: what becomes of each.
        count: k of them for an image.
        size: side in pixels.

    Raises:
        ValueError: no such count or size.
    """

    view: View
    count: int
    size: int

    def __post_init__(self):
        if self.count < 1 or self.size < 1:
            raise ValueError(f'augment.small_views is {self.count} and augment.small_size {self.size}: both must be '
                             '1 or more, and small_views=0 is for none.')


# {name: class}, in the order in which they run. The place is also the number that random choices are drawn by
# (device.py, draws.py): an operation that is put in or appended moves those of others, of `extra` and of the host's
# crops, and old runs would not go on as they began. It needs numbers of its own there.
OPS: dict[str, type[Operation]] = {field.name: type(field.default) for field in dataclasses.fields(View)
                                   if isinstance(field.default, Operation)}


def _operation(name: str, fields: Any) -> Operation:
    _check_names(f'field of augmentation {name!r}', fields, _names(OPS[name]), ['probability'])
    return OPS[name](**fields)
