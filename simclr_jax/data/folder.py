"""A directory tree of image files, labelled or not."""

import hashlib
import io
import os

import numpy as np

from simclr_jax.data.arrays import require_split
from simclr_jax.data.source import Source, split_name, split_rows
from simclr_jax.data.decode import BadImage, read_image

_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp')
_SPLIT_FOLDERS = ('train', 'test', 'val', 'validation')


class FolderSource(Source):
    """The images below a directory, in sorted order.

    First-level folders are classes when at least two of them hold images and no image lies beside
    them; class numbers are those of the training split.
    """

    def __init__(self, name: str, split: str, path: str):
        splits = folder_splits(path)
        require_split(name, split_name(split), splits)
        has_split_folders = bool(_split_folders(path))
        root = os.path.join(path, split_name(split)) if has_split_folders else path
        files = _image_files(root)
        if not files:
            raise ValueError(f"There are no images below '{root}' ({', '.join(_EXTENSIONS)}).")
        class_names = _classes(files)
        if class_names and has_split_folders:
            class_names = _classes(_image_files(os.path.join(path, 'train'))) or class_names
        self._root = root
        self.labels = _labels(files, class_names, root)
        rows = split_rows(split, len(files))
        self.files, self.labels = files[rows], self.labels[rows]
        super().__init__(name, split, len(self.files), class_names)
        if not any(map(self._is_readable, range(self.num_examples))):  # Say so before training.
            raise ValueError(f"Not one of the {self.num_examples} images below '{self._root}' can be read.")

    def load(self, index: int) -> bytes:
        """The bytes of a file. OSError: it cannot be read."""
        with open(os.path.join(self._root, self.files[index]), 'rb') as file:
            return file.read()

    def name_of(self, index: int) -> str:
        """The path of a file, from the root of the split."""
        return self.files[index]

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with the names and sizes of the files, with the labels, and, if asked for, with the times."""
        digest = hashlib.sha256(self.labels.tobytes())
        for file in self.files:
            path = os.path.join(self._root, file)
            state = os.stat(path) if os.path.exists(path) else None      # a link may lead nowhere
            known = state and ((state.st_size, state.st_mtime_ns) if with_times else state.st_size)
            digest.update(os.fsencode(f'{file}\0{known}\0'))
        return digest.hexdigest()

    def _is_readable(self, index: int) -> bool:
        try:
            read_image(io.BytesIO(self.load(index)), self.rules)
        except (BadImage, OSError) as error:
            self.skip(index, error)
        return not self.is_skipped(index)


def folder_splits(path: str) -> tuple[str, ...]:
    """The folders below `path` if they are train and other splits and nothing else, else 'train'."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"There is no directory '{path}'.")
    return _split_folders(path) or ('train',)


def _split_folders(path: str) -> tuple[str, ...]:
    folders = {entry.name for entry in os.scandir(path)
               if entry.is_dir() and not entry.name.startswith('.')}
    are_splits = 'train' in folders and folders <= set(_SPLIT_FOLDERS)
    return tuple(name for name in _SPLIT_FOLDERS if name in folders) if are_splits else ()


def _image_files(root: str) -> list[str]:
    """Paths of the images below `root`, relative to it and sorted; hidden ones are left out."""
    files, visited = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in visited:  # A link back up would never end.
            subfolders.clear()
            continue
        visited.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
        files += [os.path.relpath(os.path.join(folder, name), root) for name in names
                  if name.lower().endswith(_EXTENSIONS) and not name.startswith('.')]
    return sorted(files)


def _classes(files: list[str]) -> tuple[str, ...] | None:
    first = {file.split(os.sep)[0] for file in files}
    is_flat = any(os.sep not in file for file in files)
    return None if is_flat or len(first) < 2 else tuple(sorted(first))


def _labels(files: list[str], class_names: tuple[str, ...] | None, root: str) -> np.ndarray:
    if class_names is None:
        return np.full(len(files), -1, np.int32)
    number = {name: label for label, name in enumerate(class_names)}
    names = [file.split(os.sep)[0] for file in files]
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise ValueError(f"'{root}' has the class folder '{unknown[0]}', which the training split "
                         'does not have.')
    return np.array([number[name] for name in names], np.int32)
