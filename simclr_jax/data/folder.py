"""A directory tree of image files: its splits, its classes, and what is left out of it."""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import unicodedata
from collections.abc import Iterator
from concurrent import futures

import numpy as np
from PIL import features

from simclr_jax import storage
from simclr_jax.data import listing
from simclr_jax.data.decode import DEFAULT, BadImage, Rules, decoded, num_pages, resolved, unusual
from simclr_jax.data.source import Source, require_split, split_name

FOLDERS = ('auto', 'classes', 'none')       # what data.folders takes
_TIFF = ('.tif', '.tiff')
_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.bmp', '.gif', '.webp', *_TIFF,
             '.jp2', '.j2k', '.jpx', '.pgm', '.ppm', '.pnm', '.npy')
_SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test', 'val': 'val',
           'valid': 'val', 'validation': 'validation', 'unlabeled': 'unlabeled', 'unlabelled': 'unlabeled'}
_SHOWN = 5
_AT_ONCE, _THREADS = 1000, 16       # files, of whose sizes a thread asks; such threads


class FolderSource(Source):
    """The whole of a split: the images below a directory, in sorted order.

    First-level folders are classes when at least two of them hold images; class numbers are those of the
    training split. Images beside them, and those of a folder 'unlabeled', have no label; where more lie
    beside than in them, none has.

    Args:
        name: of the source, for messages.
        split: one of `folder_splits`; 'val' and 'validation' are one.
        path: of the directory, local or remote.
        folders: 'auto'; 'classes', first-level folders are classes and never splits; 'none', they are none.
        rules: by which files become pixels.
        share: of this process, where several list a remote directory in common.

    Raises:
        FileNotFoundError, OSError: there is no such directory, or a part of it cannot be listed.
        ValueError: it has no such split or no image, or its layout is not understood.
    """

    @listing.once()
    def __init__(self, name: str, split: str, path: str, *, folders: str = 'auto', rules: Rules = DEFAULT,
                 share: listing.Share | None = None):
        of_listing, self.is_remote = listing.read(path, share), storage.is_remote(path)
        root, splits = _layout(path, folders)
        whole = split_name(split)
        other = {'val': 'validation', 'validation': 'val'}.get(whole, whole)
        if splits:
            whole = other if whole not in splits and other in splits else whole
            require_split(name, whole, tuple(splits))
        else:
            require_split(name, whole, ('train',))
        self._root = os.path.join(root, splits[whole]) if splits else root
        self._fingerprints: dict[bool, str] = {}
        tree = _tree(self._root)
        if not tree.files:
            raise ValueError(f"There are no images below '{printable(self._root)}' ({', '.join(suffixes())})"
                             f'{_counted(tree.left_out, "; there are ")}.')
        class_names = None if folders == 'none' or whole == 'unlabeled' else _classes(tree.files)
        if 'train' in splits and folders != 'none' and whole != 'train':
            class_names = _classes(_tree(os.path.join(root, splits['train'])).files) or class_names
        self.files = tree.files
        self.labels = _labels(self.files, None if whole == 'unlabeled' else class_names, self._root)
        super().__init__(name, split, len(self.files), class_names)
        self.rules, notes = resolved(rules, self.sampled(lambda index: unusual(self.load(index), rules)))
        self.notes = _notes(tree, self.labels, class_names, f'{name}, {whole}', folders) + of_listing + notes
        pages = max(count or 1 for count in self.sampled(
            lambda index: num_pages(self.load(index)) if self.files[index].lower().endswith(_TIFF) else 1))
        if pages > 1 and self.rules.channels == 3:
            self.notes.append(f'{name}, {whole}: TIFFs of {pages} pages, of which the first is read; '
                              f'data.channels={pages} takes all, as channels.')
        beside = sum(map(_is_image, _names(root).files)) if splits else 0
        if beside:
            self.notes.append(f'{name}: {beside:,} images lie beside the folders of the splits, in no '
                              'split, and are left out.')
        first = self._why_unreadable(0)
        if first and all(map(self._why_unreadable, range(1, self.num_examples))):  # Say so before training.
            raise ValueError(f"None of the {self.num_examples} images below '{printable(self._root)}' can "
                             f'be read ({self.name_of(0)}: {first}).')

    def load(self, index: int) -> bytes:
        """The bytes of a file. OSError: it cannot be read."""
        return storage.read_bytes(os.path.join(self._root, self.files[index]))

    def name_of(self, index: int) -> str:
        """The path of a file, from the root of the split."""
        return printable(self.files[index])

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with the names and sizes of the files, the labels, and, if asked for, the times: as first asked."""
        if with_times not in self._fingerprints:        # it asks the system of every file
            self._fingerprints[with_times] = self._fingerprint(with_times)
        return self._fingerprints[with_times]

    def _fingerprint(self, with_times: bool) -> str:
        digest = hashlib.sha256(self.labels.tobytes())
        some = (self.files[first:first + _AT_ONCE] for first in range(0, len(self.files), _AT_ONCE))
        with futures.ThreadPoolExecutor(_THREADS) as pool:      # a disk in a network answers many at a time
            for states in pool.map(functools.partial(self._states, with_times), some):
                digest.update(states)
        return digest.hexdigest()

    def _states(self, with_times: bool, files: list[str]) -> bytes:
        found = []
        for file in files:
            path = os.path.join(self._root, file)
            try:
                known = listing.size(path)
                if with_times and not self.is_remote:
                    known = known, os.stat(path).st_mtime_ns
            except OSError:      # a link may lead nowhere
                known = None
            found.append(f'{file}\0{known}\0')
        return os.fsencode(''.join(found))

    def _why_unreadable(self, index: int) -> Exception | None:
        try:
            decoded(self.load(index), self.rules)
        except (BadImage, OSError) as error:
            self.skip(index, error)
            return error
        return None


def printable(name: str) -> str:
    r"""A file's name for messages and files: bytes that are no UTF-8 become \xe9 and the like."""
    return os.fsencode(name).decode('utf-8', 'backslashreplace')


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Of the files that are read as images here; HEIC and AVIF where a codec is installed."""
    found = _SUFFIXES + (('.avif',) if features.check('avif') else ())
    if importlib.util.find_spec('pillow_heif'):
        import pillow_heif
        pillow_heif.register_heif_opener()
        found += ('.heic', '.heif')
    return found


def folder_splits(path: str, folders: str = 'auto') -> tuple[str, ...]:
    """The splits of a directory: 'train' alone where it has no folders of such names."""
    listing.read(path)
    return tuple(_layout(path, folders)[1]) or ('train',)


def _layout(path: str, folders: str) -> tuple[str, dict[str, str]]:
    """(the directory that holds them, {split: name of its folder}), {} where all is one split."""
    if folders not in FOLDERS:
        raise ValueError(f"data.folders is {folders!r}; it takes {', '.join(map(repr, FOLDERS))}.")
    if not listing.is_dir(path):
        raise FileNotFoundError(f"data.source is folder:{printable(path)}: there is no directory "
                                f"'{printable(storage.absolute(path))}'.")
    if folders == 'classes':
        return path, {}
    names, loose = _names(path)
    filled = [name for name in names if _has_images(os.path.join(path, name))]
    splits = [name for name in filled if _split_of(name)]
    others = [name for name in filled if name not in splits]
    empty = [name for name in names if _split_of(name) == 'train' and name not in filled]
    fix = (f"If first-level folders are classes, set data.folders='classes'; if they are splits, name them "
           f'train, test, val or unlabeled, and move what is none of them out of '
           f"'{printable(path)}'.")
    kinds = [_split_of(name) for name in splits]
    if empty and splits:
        raise ValueError(f"'{printable(path)}' has images in {_listed(splits)}, but none in '{empty[0]}'. "
                         f'{fix}')
    if 'train' in kinds or len(set(kinds) - {'unlabeled'}) > 1 and not others:
        if others or len(set(kinds)) < len(kinds):
            raise ValueError(f"'{printable(path)}' holds {_listed(splits + others)}, which are not "
                             f'understood as splits. {fix}')
        return path, {_split_of(name): name for name in sorted(splits, key=_rank)}
    if len(filled) == 1 and not any(map(_is_image, loose)):       # a wrapper
        root, found = _layout(os.path.join(path, filled[0]), folders)
        return (root, found) if found else (path, {})
    inner = [name for name in filled
             if any(_split_of(below) == 'train' for below in _names(os.path.join(path, name)).folders)]
    if inner:
        raise ValueError(f"'{printable(path)}' holds '{printable(inner[0])}/train' beside other images. Give "
                         f"folder:{printable(path)}/{printable(inner[0])} to use that alone. {fix}")
    return path, {}


def _split_of(name: str) -> str:
    return _SPLITS.get(name.lower(), '')


def _rank(name: str) -> int:
    return list(_SPLITS.values()).index(_split_of(name))


def _names(path: str) -> listing.Names:
    """What lies in a directory and is not hidden. OSError names it."""
    try:
        found = listing.names(path)
    except OSError as error:
        raise OSError(f"The folder '{printable(path)}' cannot be listed ({error.strerror or error}): correct "
                      'its permissions, or move it away.') from error
    return listing.Names(*([name for name in names if not name.startswith(('.', '__MACOSX'))] for names in found))


def _is_image(name: str) -> bool:
    return name.lower().endswith(suffixes())


# ---- the tree ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Tree:
    files: list[str] = dataclasses.field(default_factory=list)      # paths of images from the root, sorted
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)     # by suffix


def _tree(root: str) -> _Tree:
    tree = _Tree()
    for inside, files in _walk(root):
        tree.files += [os.path.join(inside, file) for file in files if _is_image(file)]
        tree.left_out.update(os.path.splitext(file)[1].lower() or 'without suffix' for file in files
                             if not _is_image(file))
    tree.files.sort()
    return tree


def _has_images(root: str) -> bool:
    return any(_is_image(file) for _, files in _walk(root) for file in files)


def _walk(root: str, inside: str = '', above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """(path from `root`, its files) of all directories; links are followed, but for one that leads back up."""
    folder = os.path.join(root, inside) if inside else root
    real = folder if storage.is_remote(folder) else os.path.realpath(folder)
    if real in above:
        return
    names = _names(folder)
    yield inside, names.files
    for name in names.folders:
        yield from _walk(root, os.path.join(inside, name), (*above, real))


# ---- classes -------------------------------------------------------------------------------------------


def _class_of(file: str) -> str:
    """The first-level folder of a file, in one spelling of its accents; '' for none."""
    first, separator, _ = file.partition(os.sep)
    return _class_named(first) if separator else ''


@functools.lru_cache
def _class_named(folder: str) -> str:
    return '' if _split_of(folder) == 'unlabeled' else unicodedata.normalize('NFC', printable(folder))


def _classes(files: list[str]) -> tuple[str, ...] | None:
    counts = collections.Counter(map(_class_of, files))
    loose = sum(os.sep not in file for file in files)
    counts.pop('', None)
    return tuple(sorted(counts)) if len(counts) > 1 and loose <= counts.total() else None


def _labels(files: list[str], class_names: tuple[str, ...] | None, root: str) -> np.ndarray:
    number = {name: label for label, name in enumerate(class_names or ())} | {'': -1}
    names = [_class_of(file) if class_names else '' for file in files]
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise ValueError(f"'{printable(root)}' has the class folder '{unknown[0]}', which the training split "
                         'does not have.')
    return np.array([number[name] for name in names], np.int32)


def _notes(tree: _Tree, labels: np.ndarray, class_names: tuple[str, ...] | None, where: str,
           folders: str) -> list[str]:
    notes = []
    if tree.left_out:
        notes.append(f'{where}: {sum(tree.left_out.values()):,} files are not images of a known format '
                     f'and are left out{_counted(tree.left_out, ": ")}.')
    loose = int((labels < 0).sum())
    if class_names and loose:
        notes.append(f'{where}: {loose:,} of {len(labels):,} images lie beside the class folders, or in '
                     "'unlabeled': they have no label.")
    if class_names is None and folders != 'none' and len({_class_of(file) for file in tree.files} - {''}) > 1:
        notes.append(f'{where}: more images lie beside folders than in them: no labels.')
    return notes


def _counted(left_out: collections.Counter, before: str) -> str:
    shown = [f'{count:,} {suffix}' for suffix, count in left_out.most_common(_SHOWN)]
    return before + ', '.join(shown + ['...'] * (len(left_out) > _SHOWN)) if left_out else ''


def _listed(names: list[str]) -> str:
    return ', '.join(f"'{printable(name)}'" for name in names[:_SHOWN]) + ', ...' * (len(names) > _SHOWN)
