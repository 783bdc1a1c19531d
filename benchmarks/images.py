"""Makes the images that the benchmark of the input path reads: the same ones from the same seed.

    python benchmarks/images.py FOLDER [--photos=400] [--arrays=10000] [--seed=0]

FOLDER gets photos/*.jpg, mostly 500x375, quality 90, 4:2:0, about 80 KB each, and arrays.npy, uint8
[N, 32, 32, 3]. Where scikit-image is installed half of the photos are crops of the photographs that it
brings; all others are noise of several octaves with discs and boxes in it.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image, ImageDraw

PHOTOGRAPHS = ('astronaut', 'coffee', 'chelsea', 'rocket')  # Part of the package: nothing is downloaded.
GRAIN = 7.0  # Standard deviation of what a sensor adds to grey, of 255: without it files are half as large.


def noise(rng, height, width):
    """Noise whose octaves fall off as those of photographs do, uint8 [height, width, 3]."""
    image = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        cells = rng.normal(0, 1, (2 ** octave + 1, 2 ** octave + 1, 3)).astype(np.float32)
        cells = 0.4 * cells + 0.6 * cells.mean(axis=-1, keepdims=True)
        layers = [Image.fromarray(cells[..., c]).resize((width, height), Image.Resampling.BICUBIC)
                  for c in range(3)]
        image += np.stack(layers, axis=-1) * 0.75 ** octave
    image = 0.5 + 0.22 * (image - image.mean()) / image.std()
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def scene(rng, height, width):
    """Noise with four discs and boxes, a PIL image."""
    image = Image.fromarray(noise(rng, height, width))
    draw = ImageDraw.Draw(image)
    for number in range(4):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(0.05, 0.25) * min(height, width)
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def photographs():
    """scikit-image's photographs as PIL images; [] where it is not installed."""
    try:
        from skimage import data
    except ImportError:
        return []
    return [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]


def crop_of(rng, photograph, height, width):
    """A random part of a photograph, at least half as high or wide, resized."""
    scale = rng.uniform(0.5, 1) * min(photograph.width / width, photograph.height / height)
    x = rng.uniform(0, photograph.width - scale * width)
    y = rng.uniform(0, photograph.height - scale * height)
    box = x, y, x + scale * width, y + scale * height
    return photograph.resize((width, height), Image.Resampling.LANCZOS, box=box)


def size_of(rng):
    """(height, width): seven tenths 375x500, the others upright, smaller or larger."""
    kind = rng.uniform()
    if kind < 0.7:
        return 375, 500
    return (500, 375) if kind < 0.85 else tuple(rng.integers(300, 700, 2).tolist())


def make_photos(folder, count, seed):
    folder.mkdir(parents=True, exist_ok=True)
    originals = photographs()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        height, width = size_of(rng)
        is_photo = originals and number % 2
        image = crop_of(rng, originals[number // 2 % len(originals)], height, width) if is_photo else \
            scene(rng, height, width)
        grain = rng.normal(0, GRAIN, (height, width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
        image.save(folder / f'{number:04d}.jpg', quality=90, subsampling='4:2:0')


def make_arrays(path, count, seed):
    rng = np.random.default_rng([seed, count])
    large = [np.asarray(scene(rng, 500, 500)) for _ in range(8)]
    images = np.empty((count, 32, 32, 3), np.uint8)
    for number in range(count):
        step = int(rng.integers(1, 8))
        y, x = rng.integers(0, 500 - 32 * step, 2)
        images[number] = large[number % 8][y:y + 32 * step:step, x:x + 32 * step:step]
    np.save(path, images)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('--photos', type=int, default=400)
    parser.add_argument('--arrays', type=int, default=10_000)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    make_photos(options.folder / 'photos', options.photos, options.seed)
    make_arrays(options.folder / 'arrays.npy', options.arrays, options.seed)
    sizes = [path.stat().st_size for path in (options.folder / 'photos').iterdir()]
    print(f'{len(sizes)} photos of {np.mean(sizes) / 1e3:.0f} kB on average, '
          f'{"half" if photographs() else "none"} of them from photographs; {options.arrays} arrays')


if __name__ == '__main__':
    main()
