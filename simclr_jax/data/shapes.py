"""The embedded data set: ten classes of filled shape, drawn with numpy alone.

The class lies in the outline and nowhere else. Colours, size, place, rotation and background are
drawn independently of it, and every class covers the same area, so that a colour histogram says
next to nothing. Images are drawn in units of the image width: another size shows the same scenes.
"""

import functools

import numpy as np

CLASS_NAMES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring', 'heart', 'crescent',
               'diamond', 'stripes')
DEFAULT_SIZES = {'train': 10_000, 'test': 2_000}

_BLOCK = 200  # Images drawn from one random stream; a multiple of the number of classes.
_DIAMETERS = (0.40, 0.54)  # Of the disc of equal area, as a fraction of the image width.
_CONTRAST = 0.3  # Least difference in luminance between the shape and its background.
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def make_shapes(split: str, image_size: int = 32, num_examples: int | None = None, seed: int = 0
                ) -> tuple[np.ndarray, np.ndarray]:
    """Draws the first `num_examples` images of a split; the same ones on every machine.

    Args:
        split: 'train' (10,000 images by default) or 'test' (2,000), from disjoint random streams.
        image_size: height and width S.
        num_examples: N. The first k images are the same for every N.
        seed: another seed gives other images.

    Returns:
        images uint8 [N, S, S, 3] and labels int32 [N], balanced: label i is i modulo 10.
    """
    if split not in DEFAULT_SIZES:
        raise ValueError(f"The shapes data set has the splits 'train' and 'test', not '{split}'.")
    count = DEFAULT_SIZES[split] if num_examples is None else num_examples
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    for start in range(0, count, _BLOCK):
        stream = (list(DEFAULT_SIZES).index(split) << 32) + start // _BLOCK
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
        block = images[start:start + _BLOCK]
        block[:] = _draw_block(rng, len(block), image_size)
    labels = np.arange(count, dtype=np.int32) % len(CLASS_NAMES)
    return images, labels


def _draw_block(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """The first `count` images of a block, uint8 [count, size, size, 3]."""
    # Every parameter is drawn for the whole block first: a shorter block sees the same numbers.
    # The work is float64 where sums may be reordered by the platform: rounding hides the rest.
    angle = rng.uniform(0, 2 * np.pi, _BLOCK)
    diameter = rng.uniform(*_DIAMETERS, _BLOCK)
    place = rng.uniform(-1, 1, (_BLOCK, 2))
    background = rng.uniform(0.1, 0.9, (_BLOCK, 3))
    slopes = rng.uniform(-0.1, 0.1, (_BLOCK, 3, 5))
    candidates = rng.uniform(0, 1, (_BLOCK, 16, 3))
    strength = rng.uniform(0.02, 0.1, (_BLOCK, 1, 1, 1)).astype(np.float32)

    contrast = np.abs((candidates - background[:, None]) @ _LUMINANCE)
    first_clear = np.argmax(np.minimum(contrast, _CONTRAST), axis=1)
    colour = candidates[np.arange(_BLOCK), first_clear].astype(np.float32)

    coverage = np.empty((count, size, size, 1), np.float32)
    for label, name in enumerate(CLASS_NAMES):
        rows = slice(label, count, len(CLASS_NAMES))
        coverage[rows, ..., 0] = _coverage(name, angle[rows], diameter[rows], place[rows], size)
    field = (background[:count, :, None] + slopes[:count] @ _smooth_basis(size))
    field = field.astype(np.float32).transpose(0, 2, 1).reshape(count, size, size, 3)
    image = field + coverage * (colour[:count, None, None] - field)
    noise = rng.random((count, size, size, 3), np.float32) * 2 - 1
    image += strength[:count] * noise
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _pixel_centres(size: int) -> np.ndarray:
    """Coordinates of pixel centres in (-0.5, 0.5), float32 [size]."""
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _smooth_basis(size: int) -> np.ndarray:
    """The low polynomials a background is made of, float64 [5, size * size], within [-1, 1]."""
    centres = 2 * _pixel_centres(size).astype(np.float64)
    x, y = centres[None, :], centres[:, None]
    terms = (x, y, x * y, 1.5 * x * x - 0.5, 1.5 * y * y - 0.5)
    return np.stack([np.broadcast_to(term, (size, size)).ravel() for term in terms])


def _coverage(name: str, angle: np.ndarray, diameter: np.ndarray, place: np.ndarray, size: int
              ) -> np.ndarray:
    """The fraction of each pixel that n shapes cover, float32 [n, size, size]."""
    scale, extent = _normalisation(name)
    unit = diameter * scale
    room = np.maximum(0.5 - unit * extent, 0)
    centre = place * room[:, None]
    cos, sin, unit, x0, y0 = (value.astype(np.float32)[:, None, None] for value in
                              (np.cos(angle), np.sin(angle), unit, centre[:, 0], centre[:, 1]))
    pixels = _pixel_centres(size)
    dx, dy = pixels[None, None, :] - x0, pixels[None, :, None] - y0
    distance = _SIGNED_DISTANCES[name]((cos * dx + sin * dy) / unit, (cos * dy - sin * dx) / unit)
    return np.clip(0.5 - distance * unit * size, 0, 1)


@functools.cache
def _normalisation(name: str) -> tuple[float, float]:
    """(scale to the area of a disc of diameter 1, radius about the origin before scaling)."""
    points = 4 * _pixel_centres(512)
    x, y = np.meshgrid(points, points)
    inside = _SIGNED_DISTANCES[name](x, y) < 0
    area = inside.mean() * 16
    return float(np.sqrt(np.pi / 4 / area)), float(np.sqrt((x * x + y * y)[inside].max()))


# Signed distances to the outlines (negative inside; exact near the edges), in any units.


def _polygon_sides(x: np.ndarray, y: np.ndarray, sides: int) -> np.ndarray:
    """Distances beyond each side of a regular polygon with inradius 0.5, [sides, ...]."""
    angles = 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]) - 0.5


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(radius)


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A point of the pentagram lies within at least four of its five lines.
    return np.sort(_polygon_sides(x, y, 5), axis=0)[-2]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner, with half a disc on each upper side.
    lobe = np.float32(0.5 * np.sqrt(0.5))
    square = (np.abs(x) + np.abs(y)) * np.float32(np.sqrt(0.5)) - 0.5
    lobes = np.minimum(_disc(x - lobe, y - lobe, 0.5), _disc(x + lobe, y - lobe, 0.5))
    return np.minimum(square, lobes)


def _stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    period = np.float32(0.56)
    bars = np.abs(y - period * np.rint(y / period)) - period / 4
    return np.maximum(_disc(x, y, 0.7), bars)


_SIGNED_DISTANCES = {
    'circle': lambda x, y: _disc(x, y, 0.5),
    'square': lambda x, y: _box(x, y, 0.5, 0.5),
    'triangle': lambda x, y: _polygon_sides(x, y, 3).max(axis=0),
    'star': _star,
    'cross': lambda x, y: np.minimum(_box(x, y, 0.6, 0.2), _box(x, y, 0.2, 0.6)),
    'ring': lambda x, y: np.abs(_disc(x, y, 0.5)) - np.float32(0.15),
    'heart': _heart,
    'crescent': lambda x, y: np.maximum(_disc(x, y, 0.6), -_disc(x - np.float32(0.35), y, 0.5)),
    'diamond': lambda x, y: (np.abs(x) + 0.5 * np.abs(y) - 0.5) * np.float32(np.sqrt(0.8)),
    'stripes': _stripes,
}
