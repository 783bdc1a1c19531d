"""A directory tree of image files: its splits, its classes, and what is left out of it."""

import collections
import functools
import hashlib
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np
from PIL import features

from simclr_jax import storage
from simclr_jax.data import bucket_listing
from simclr_jax.data.decode import DEFAULT, Rules, num_pages, resolved
from simclr_jax.data.source import Source, split_name

FOLDERS = ('auto', 'classes', 'none')       # what data.folders takes
_TIFF = ('.tif', '.tiff')
_SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.bmp', '.gif', '.webp', *_TIFF,
             '.jp2', '.j2k', '.jpx', '.pgm', '.ppm', '.pnm', '.npy')
_SPLITS = {'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test', 'val': 'val',
           'valid': 'val', 'validation': 'validation', 'unlabeled': 'unlabeled', 'unlabelled': 'unlabeled'}
_HIDDEN = ('.', '__MACOSX')
_SHOWN = 5
_AT_ONCE, _THREADS = 1000, 16       # files, of whose sizes a thread asks; such threads


class Listing:
    """What lies below a directory and is not hidden; a link counts as what it leads to.

    Of a local directory each part is asked for once, when it is looked into; a remote one is listed whole.

    Attributes:
        root: the directory.
        sizes: {path from the root: bytes} of all files of a remote one; None of a local one.
        notes: what is to be said of it.
    """

    def __init__(self, root: str, share: bucket_listing.Share | None = None):
        self.root, self.sizes, self.notes = root, None, []
        # Path of a directory from the root -> names of its folders and files, joined: a tenth of a list's memory.
        self._names: dict[str, tuple[str, str]] = {}
        if storage.is_remote(root):
            self.sizes, self._names, _, self.notes = bucket_listing.listed(root, share)

    def names(self, folder: str = '') -> tuple[list[str], list[str]]:
        """(folders, files) in a directory, by its path from the root, sorted. OSError: it cannot be listed."""
        if folder not in self._names:
            try:
                folders, files = storage.names(self.path(folder))
            except OSError as error:
                raise OSError(f"The folder '{printable(self.path(folder))}' cannot be listed "
                              f'({error.strerror or error}): correct its permissions, or move it away.') from error
            self._names[folder] = '\0'.join(sorted(folders)), '\0'.join(sorted(files))
        folders, files = ([name for name in joined.split('\0') if name and not name.startswith(_HIDDEN)]
                          for joined in self._names[folder])
        return folders, files

    def path(self, inside: str) -> str:
        """Of what lies at a path from the root, '' for the root itself."""
        return os.path.join(self.root, inside) if inside else self.root


class FolderSource(Source):
    """The whole of a split: the images below a directory, in sorted order.

    First-level folders are classes when at least two of them hold images; class numbers are those of the
    training split. Images beside them, and those of a folder 'unlabeled', have no label; where more lie
    beside than in them, none has.

    Args:
        name: of the source, for messages.
        split: one of `folder_splits`; 'val' and 'validation' are one.
        listing: of the directory, local or remote.
        folders: 'auto'; 'classes', first-level folders are classes and never splits; 'none', they are none.
        rules: by which files become pixels.

    Raises:
        FileNotFoundError, OSError: there is no such directory, or a part of it cannot be listed.
        ValueError: it has no such split or no image, or its layout is not understood.
    """

    def __init__(self, name: str, split: str, listing: Listing, *, folders: str = 'auto', rules: Rules = DEFAULT):
        above, splits = _layout(listing, folders)
        whole = split_name(split)
        other = {'val': 'validation', 'validation': 'val'}.get(whole)
        whole = split_name(other if other in splits and whole not in splits else whole, splits or ['train'], name)
        self._inside, self._sizes = os.path.join(above, splits[whole]) if splits else above, listing.sizes
        self._root, self.is_remote = listing.path(self._inside), listing.sizes is not None
        self._fingerprints: dict[bool, str] = {}
        tree = _tree(listing, self._inside)
        if not tree.files:
            raise ValueError(f"There are no images below '{printable(self._root)}' ({', '.join(suffixes())})"
                             f'{_counted(tree.left_out, "; there are ")}.')
        class_names = None if folders == 'none' or whole == 'unlabeled' else _classes(tree)
        if 'train' in splits and folders != 'none' and whole != 'train':
            class_names = _classes(_tree(listing, os.path.join(above, splits['train']))) or class_names
        self.files = tree.files
        self.labels = _labels(tree, None if whole == 'unlabeled' else class_names, self._root)
        super().__init__(name, split, len(self.files), class_names)
        self.rules, notes = resolved(rules, self.sampled(self.load))
        self.notes = _notes(tree, self.labels, class_names, f'{name}, {whole}', folders) + listing.notes + notes
        pages = max(count or 1 for count in self.sampled(
            lambda index: num_pages(self.load(index)) if self.files[index].lower().endswith(_TIFF) else 1))
        if pages > 1 and self.rules.channels == 3:
            self.notes.append(f'{name}, {whole}: TIFFs of {pages} pages, of which the first is read; '
                              f'data.channels={pages} takes all, as channels.')
        beside = sum(map(_is_image, listing.names(above)[1])) if splits else 0
        if beside:
            self.notes.append(f'{name}: {beside:,} images lie beside the folders of the splits, in no '
                              'split, and are left out.')
        if all(self.pixels(index) is None for index in range(self.num_examples)):  # Say so before training.
            raise ValueError(f"None of the {self.num_examples} images below '{printable(self._root)}' can "
                             f'be read ({self.name_of(0)}: {self.unreadable[0]}).')

    def load(self, index: int) -> bytes:
        """The bytes of a file. OSError: it cannot be read."""
        return storage.read_bytes(os.path.join(self._root, self.files[index]))

    def name_of(self, index: int) -> str:
        """The path of a file, from the root of the split."""
        return printable(self.files[index])

    def fingerprint(self, *, with_times: bool = False) -> str:
        """Changes with the names and sizes of the files, the labels, and, if asked for, the times: as first asked."""
        if with_times not in self._fingerprints:        # it asks the system of every file
            digest = hashlib.sha256(self.labels.tobytes())
            some = (self.files[first:first + _AT_ONCE] for first in range(0, len(self.files), _AT_ONCE))
            with futures.ThreadPoolExecutor(_THREADS) as pool:      # a disk in a network answers many at a time
                for states in pool.map(functools.partial(self._states, with_times), some):
                    digest.update(states)
            self._fingerprints[with_times] = digest.hexdigest()
        return self._fingerprints[with_times]

    def _states(self, with_times: bool, files: list[str]) -> bytes:
        found = []
        for file in files:
            path = os.path.join(self._root, file)
            try:
                if self._sizes is not None:
                    known = self._sizes[os.path.join(self._inside, file)]
                else:
                    known = (storage.size(path), os.stat(path).st_mtime_ns) if with_times else storage.size(path)
            except OSError:      # a link may lead nowhere
                known = None
            found.append(f'{file}\0{known}\0')
        return os.fsencode(''.join(found))


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


def folder_splits(listing: Listing, folders: str = 'auto') -> tuple[str, ...]:
    """The splits of a directory: 'train' alone where it has no folders of such names."""
    return tuple(_layout(listing, folders)[1]) or ('train',)


def _layout(listing: Listing, folders: str, inside: str = '') -> tuple[str, dict[str, str]]:
    """(the directory that holds them, {split: name of its folder}), {} where all is one split."""
    path = printable(listing.path(inside))
    if folders not in FOLDERS:
        raise ValueError(f"data.folders is {folders!r}; it takes {', '.join(map(repr, FOLDERS))}.")
    if listing.sizes is None and not storage.is_dir(listing.root):
        raise FileNotFoundError(f"data.source is folder:{path}: there is no directory "
                                f"'{printable(storage.absolute(listing.root))}'.")
    if folders == 'classes':
        return inside, {}
    names, loose = listing.names(inside)
    filled = [name for name in names
              if any(any(map(_is_image, files)) for _, files in _walk(listing, os.path.join(inside, name)))]
    split_of = {name: _SPLITS[name.lower()] for name in names if name.lower() in _SPLITS}
    splits, others = [[name for name in filled if (name in split_of) is is_split] for is_split in (True, False)]
    kinds = {split_of[name] for name in splits}
    fix = (f"If first-level folders are classes, set data.folders='classes'; if they are splits, name them "
           f"train, test, val or unlabeled, and move what is none of them out of '{path}'.")
    empty = [name for name, split in split_of.items() if split == 'train' and name not in filled]
    if empty and splits:
        raise ValueError(f"'{path}' has images in {_listed(splits)}, but none in '{empty[0]}'. {fix}")
    if 'train' in kinds or len(kinds - {'unlabeled'}) > 1 and not others:
        if others or len(kinds) < len(splits):
            raise ValueError(f"'{path}' holds {_listed(splits + others)}, which are not understood as splits. {fix}")
        return inside, {split: name for split in _SPLITS.values() for name in splits if split_of[name] == split}
    if len(filled) == 1 and not any(map(_is_image, loose)):       # a wrapper
        root, found = _layout(listing, folders, os.path.join(inside, filled[0]))
        return (root, found) if found else (inside, {})
    for name in filled:
        below, _ = listing.names(os.path.join(inside, name))
        if 'train' in map(_SPLITS.get, map(str.lower, below)):
            name = printable(name)
            raise ValueError(f"'{path}' holds '{name}/train' beside other images. Give folder:{path}/{name} to use "
                             f'that alone. {fix}')
    return inside, {}


def _is_image(name: str) -> bool:
    return name.lower().endswith(suffixes())


# ---- the tree ------------------------------------------------------------------------------------------


class _Tree(NamedTuple):
    files: list[str]                    # paths of images from the root, sorted
    folders: list[str]                  # the first-level folder of each, '' for none
    left_out: collections.Counter       # by suffix


def _tree(listing: Listing, root: str) -> _Tree:
    found, left_out = [], collections.Counter()
    for inside, files in _walk(listing, root):
        inside = inside[len(root):].lstrip(os.sep)
        images = [file for file in files if _is_image(file)]
        found += [os.path.join(inside, image) for image in images]
        if len(images) < len(files):
            left_out.update(os.path.splitext(file)[1].lower() or 'without suffix' for file in files
                            if not _is_image(file))
    found.sort()
    return _Tree(found, [sys.intern(file.partition(os.sep)[0]) if os.sep in file else '' for file in found], left_out)


def _walk(listing: Listing, inside: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """(directory, its files) of all below; links are followed, but for one that leads back up."""
    real = inside if listing.sizes is not None else os.path.realpath(listing.path(inside))
    if real in above:
        return
    folders, files = listing.names(inside)
    yield inside, files
    for name in folders:
        yield from _walk(listing, os.path.join(inside, name), (*above, real))


# ---- classes -------------------------------------------------------------------------------------------


def _class_of(folder: str) -> str:
    """The class of a first-level folder, in one spelling of its accents; '' for none."""
    return '' if _SPLITS.get(folder.lower()) == 'unlabeled' else unicodedata.normalize('NFC', printable(folder))


def _classes(tree: _Tree) -> tuple[str, ...] | None:
    counts, num_loose = collections.Counter(), tree.folders.count('')
    for folder, count in collections.Counter(tree.folders).items():
        counts[_class_of(folder)] += count
    counts.pop('', None)
    return tuple(sorted(counts)) if len(counts) > 1 and num_loose <= counts.total() else None


def _labels(tree: _Tree, class_names: tuple[str, ...] | None, root: str) -> np.ndarray:
    if not class_names:
        return np.full(len(tree.files), -1, np.int32)
    class_of = {folder: _class_of(folder) for folder in set(tree.folders)}
    number = {name: label for label, name in enumerate(class_names)} | {'': -1}
    unknown = sorted(set(class_of.values()) - set(number))
    if unknown:
        raise ValueError(f"'{printable(root)}' has the class folder '{unknown[0]}', which the training split "
                         'does not have.')
    return np.array([number[class_of[folder]] for folder in tree.folders], np.int32)


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
    if class_names is None and folders != 'none' and len({*map(_class_of, set(tree.folders))} - {''}) > 1:
        notes.append(f'{where}: more images lie beside folders than in them: no labels.')
    return notes


def _counted(left_out: collections.Counter, before: str) -> str:
    shown = [f'{count:,} {suffix}' for suffix, count in left_out.most_common(_SHOWN)]
    return before + ', '.join(shown + ['...'] * (len(left_out) > _SHOWN)) if left_out else ''


def _listed(names: list[str]) -> str:
    return ', '.join(f"'{printable(name)}'" for name in names[:_SHOWN]) + ', ...' * (len(names) > _SHOWN)
