"""Images that lie in memory as one array: the embedded shapes, .npz files, small TFDS sets."""

import os
import zipfile

import numpy as np

from simclr_jax.data import shapes
from simclr_jax.data.source import Source, split_name, split_rows


class ArraySource(Source):
    """images uint8 [N, H, W, 3] and labels int32 [N] in memory."""

    uniform = True

    def __init__(self, name: str, split: str, images: np.ndarray, labels: np.ndarray,
                 class_names: tuple[str, ...] | None):
        super().__init__(name, split, len(images), class_names)
        self.images, self.labels = images, labels

    def load(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [H, W, 3]."""
        return self.images[index]


def shapes_source(name: str, split: str, image_size: int) -> ArraySource:
    """The embedded shapes; `name` is 'shapes', or 'shapes:N' for N training images."""
    base, colon, count = name.partition(':')
    if base != 'shapes' or (colon and not count.isdecimal()):
        raise ValueError(f"Data source '{name}' is not 'shapes' or 'shapes:N' with N images.")
    require_split(name, split_name(split), tuple(shapes.DEFAULT_SIZES))
    is_sized = count and split_name(split) == 'train'
    count = int(count) if is_sized else shapes.DEFAULT_SIZES[split_name(split)]
    start, stop, _ = split_rows(split, count).indices(count)
    images, labels = shapes.make_shapes(split_name(split), image_size, num_examples=stop)
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


def npz_source(name: str, split: str, path: str) -> ArraySource:
    """One split of a .npz file.

    Its keys are train_images, train_labels, test_images and test_labels, or images and labels;
    labels may be left out. Images are uint8 [N, H, W] or [N, H, W, 1, 3 or 4].
    """
    base = split_name(split)
    require_split(name, base, npz_splits(path))
    with _open(path) as arrays:
        prefix = '' if 'images' in arrays and 'train_images' not in arrays else f'{base}_'
        images = _checked_images(arrays[f'{prefix}images'], f'{prefix}images', path)
        labels, class_names = np.full(len(images), -1, np.int32), None
        if f'{prefix}labels' in arrays:
            labels = _checked_labels(arrays[f'{prefix}labels'], len(images), prefix, path)
            # A class that one split lacks must still count in it.
            most = max(int(arrays[key].max()) for key in ('labels', 'train_labels', 'test_labels')
                       if key in arrays and arrays[key].size)
            class_names = tuple(map(str, range(most + 1))) or None
    rows = split_rows(split, len(images))
    return ArraySource(name, split, images[rows], labels[rows], class_names)


def require_split(name: str, split: str, available: tuple[str, ...]) -> None:
    """Raises ValueError unless `split` is among those available."""
    if split not in available:
        raise ValueError(f"'{name}' has no split '{split}'; it has {', '.join(available)}.")


def as_rgb(images: np.ndarray) -> np.ndarray:
    """[..., 1, 3 or 4] channels to 3: grey is repeated, alpha dropped."""
    channels = images.shape[-1]
    return np.repeat(images, 3, axis=-1) if channels == 1 else images[..., :3]


def _open(path: str) -> np.lib.npyio.NpzFile:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file '{path}'.")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        arrays = None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError(f"'{path}' is not a whole .npz file: write it with numpy.savez.")
    return arrays


def _checked_images(images: np.ndarray, key: str, path: str) -> np.ndarray:
    if images.dtype != np.uint8:
        raise ValueError(f"'{key}' of '{path}' is {images.dtype}; it must be uint8 in 0..255.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"'{key}' of '{path}' has shape {images.shape}; it must be [N, H, W] or "
                         '[N, H, W, C] with 1, 3 or 4 channels.')
    return as_rgb(images)


def _checked_labels(labels: np.ndarray, num_images: int, prefix: str, path: str) -> np.ndarray:
    if labels.dtype.kind not in 'iu' or labels.size != len(labels):
        raise ValueError(f"'{prefix}labels' of '{path}' is {labels.dtype} of shape {labels.shape}; "
                         'it must be integers of shape [N].')
    if len(labels) != num_images:
        raise ValueError(f"'{path}' has {num_images} {prefix}images but {len(labels)} "
                         f'{prefix}labels.')
    return labels.reshape(-1).astype(np.int32)
