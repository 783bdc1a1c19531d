"""Images that lie in memory as one array: the embedded shapes, .npz files, small TFDS sets."""

import io
import zipfile

import numpy as np

from simclr_jax import storage
from simclr_jax.data import shapes
from simclr_jax.data.decode import DEFAULT, MOST_CHANNELS, Rules, of_array, resolved
from simclr_jax.data.labels import as_classes
from simclr_jax.data.source import ArraySource, split_name, split_rows


def shapes_source(name: str, split: str, image_size: int) -> ArraySource:
    """The embedded shapes; `name` is 'shapes', or 'shapes:N' for N training images."""
    base, colon, count = name.partition(':')
    if base != 'shapes' or (colon and not count.isdecimal()):
        raise ValueError(f"Data source '{name}' is not 'shapes' or 'shapes:N' with N images.")
    whole = split_name(split, shapes.DEFAULT_SIZES, name)
    count = int(count) if count and whole == 'train' else shapes.DEFAULT_SIZES[whole]
    start, stop, _ = split_rows(split, count).indices(count)
    images, labels = shapes.make_shapes(whole, image_size, num_examples=stop)
    return ArraySource(name, split, images[start:], labels[start:], shapes.CLASS_NAMES)


def npz_splits(path: str) -> tuple[str, ...]:
    """The splits of a .npz file (see `npz_source`)."""
    with _open(path) as arrays:
        names = tuple(name for name in ('train', 'test') if f'{name}_images' in arrays)
        if names:
            return names
        if 'images' in arrays:
            return ('train',)
        raise ValueError(f"'{path}' has neither 'train_images' nor 'images'; "
                         f'its keys are {", ".join(arrays) or "none"}.')


def npz_source(name: str, split: str, path: str, *, rules: Rules = DEFAULT, as_numbered: bool = False
               ) -> ArraySource:
    """The whole of one split of a .npz file.

    Its keys are train_images, train_labels, test_images and test_labels, or images and labels;
    labels may be left out. Images are numbers [N, H, W] or [N, H, W, C], which become uint8 RGB, or of C
    channels, by `rules`. `as_numbered`: label i is class i, also where there are gaps between them.
    """
    base = split_name(split, npz_splits(path), name)
    with _open(path) as arrays:
        prefix = '' if 'images' in arrays and 'train_images' not in arrays else f'{base}_'
        images = _checked_images(arrays[f'{prefix}images'], f'{prefix}images', path)
        rules, notes = resolved(rules, [images])
        source = ArraySource(name, base, of_array(images, rules), np.full(len(images), -1, np.int32), None)
        source.rules = rules
        if f'{prefix}labels' in arrays:
            labels = arrays[f'{prefix}labels']
            if len(labels) != len(images):
                raise ValueError(f"'{path}' has {len(images)} {prefix}images but {len(labels)} "
                                 f'{prefix}labels.')
            # A class that one split lacks must still count in it.
            keys = [key for key in ('labels', 'train_labels', 'test_labels') if key in arrays]
            known = [arrays[key].reshape(-1) for key in keys]
            source.labels, source.class_names, source.notes = as_classes(
                labels, where=f"'{prefix}labels' of '{path}'", known=np.concatenate(known))
            if as_numbered:
                source.labels, source.notes = labels.reshape(-1).astype(np.int32), []
                source.class_names = tuple(map(str, range(max(map(int, source.class_names or ())) + 1)))
        wanted = ('images', 'labels') if not prefix else (
            'train_images', 'train_labels', 'test_images', 'test_labels')
        others = [key for key in arrays if key not in wanted]
    if others:
        notes.append(f"'{path}' also holds {', '.join(others)}, which are not read.")
    source.notes += notes
    return source


def _open(path: str) -> np.lib.npyio.NpzFile:
    if not storage.exists(path) or storage.is_dir(path):
        raise FileNotFoundError(f"There is no file '{path}'.")
    try:
        file = io.BytesIO(storage.read_bytes(path)) if storage.is_remote(path) else path
        arrays = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        arrays = None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError(f"'{path}' is not a complete .npz file: write it with numpy.savez.")
    return arrays


def _checked_images(images: np.ndarray, key: str, path: str) -> np.ndarray:
    """Images [N, H, W, C] of integers or floats."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[-1] <= MOST_CHANNELS:
        raise ValueError(f"'{key}' of '{path}' has shape {images.shape}; it must be [N, H, W] or "
                         f'[N, H, W, C] with 1 to {MOST_CHANNELS} channels.')
    if images.dtype.kind not in 'buif':
        raise ValueError(f"'{key}' of '{path}' is {images.dtype}; it must be integers or floats.")
    return images
