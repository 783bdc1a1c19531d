"""Images in containers: Hugging Face data sets (of the hub, or Parquet files) and WebDataset's tar shards.

Both are read at random: the order is the uniform permutation of every such source, and a run resumes exactly.
"""

import collections
import fnmatch
import json
import os
import re
import tarfile
from typing import Any

from simclr_jax import storage
from simclr_jax.data.folder import printable, suffixes

_SPLITS = ('train', 'test', 'validation', 'val')


def hugging_face(path: str, *, cache_dir: str | None = None, download: bool = False) -> Any:
    """The splits of 'hf:PATH' as a dictionary of `datasets.Dataset`.

    Args:
        path: a name of the hub, with a configuration after a colon ('cifar10', 'user/name:small'), a local
            directory whose files name their splits, or a pattern of Parquet files, which are split 'train'.
        cache_dir: where `datasets` keeps what it prepares; None is its own default.
        download: whether a network may be used.

    Raises:
        ValueError: `datasets` is not installed, or cannot load it.
        FileNotFoundError: it is not here, and `download` is off.
    """
    try:
        import datasets
        from datasets import config as settings
    except ImportError as error:
        raise ValueError(f"'hf:{path}' needs the package datasets: pip install 'simclr_jax[hf]'.") from error
    name, _, configuration = path.partition(':')
    if name.endswith('.parquet'):
        arguments: dict[str, Any] = {'path': 'parquet', 'data_files': name}
    else:
        arguments = {'path': name, 'name': configuration or None}
    was_offline = settings.HF_HUB_OFFLINE
    settings.HF_HUB_OFFLINE = was_offline or not download
    try:
        return datasets.load_dataset(**arguments, cache_dir=cache_dir)
    except (OSError, ValueError, ConnectionError, RuntimeError) as error:
        kind, fix = ValueError, '.'
        if not download and not name.endswith('.parquet') and not os.path.exists(name):
            kind, fix = FileNotFoundError, ': --config.data.download=true lets datasets fetch it.'
        why = str(error).splitlines()[0].rstrip('.')
        raise kind(f"The data set 'hf:{path}' cannot be loaded ({why}){fix}") from error
    finally:
        settings.HF_HUB_OFFLINE = was_offline


class TarShards:
    """The examples of tar shards, 'NAME.jpg' and 'NAME.cls' or 'NAME.json' side by side, at random access.

    Args:
        pattern: of paths, local or remote: '{000..041}' counts, '*' is anything, '{split}' is `split`.

    Raises:
        FileNotFoundError: no shard is there.
        ValueError: one is no uncompressed tar file, or holds no image.
    """

    def __init__(self, pattern: str, split: str = 'train'):
        self.paths = _paths(pattern.replace('{split}', split))
        if not self.paths:
            raise FileNotFoundError(f"There is no shard 'wds:{pattern}' of the split '{split}'.")
        self._images, self.names, self.labels = [], [], []
        self.num_left_out, self.num_further = 0, 0      # examples without an image; their second images
        for number, path in enumerate(self.paths):
            self._index(number, path)
        if not self._images:
            raise ValueError(f"The shards 'wds:{pattern}' hold no images ({', '.join(suffixes())}).")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, offset, size = self._images[index]
        return {'image': storage.read_bytes(self.paths[number], offset, size), 'label': self.labels[index]}

    def _index(self, number: int, path: str) -> None:
        """Finds where the images of a shard lie: one pass over its headers."""
        examples = collections.defaultdict(dict)        # name -> {suffix: (offset, size)}
        try:
            with storage.open_read(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
                for member in tar:
                    if member.isfile():
                        folder, base = os.path.split(member.name)
                        name, _, suffix = base.partition('.')
                        examples[os.path.join(folder, name)][f'.{suffix.lower()}'] = (
                            member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ValueError(f"The shard '{printable(path)}' cannot be read ({error}): it must be a tar "
                             'file, complete and uncompressed.') from error
        for name, members in examples.items():
            images = [suffix for suffix in members if suffix.endswith(suffixes())]
            if not images:
                self.num_left_out += 1
                continue
            self.num_further += len(images) - 1
            self._images.append((number, *members[images[0]]))
            self.names.append(printable(name))
            self.labels.append(self._label(path, members))

    @staticmethod
    def _label(path: str, members: dict[str, tuple[int, int]]) -> int | str | None:
        if '.cls' in members:
            text = storage.read_bytes(path, *members['.cls']).decode().strip()
            return int(text) if re.fullmatch(r'-?\d+', text) else text
        if '.json' in members:
            return json.loads(storage.read_bytes(path, *members['.json'])).get('label')
        return None


def shard_splits(pattern: str) -> tuple[str, ...]:
    """The splits of which 'wds:PATTERN' has shards."""
    if '{split}' not in pattern:
        return ('train',)
    return tuple(split for split in _SPLITS if _paths(pattern.replace('{split}', split)))


def _paths(pattern: str) -> list[str]:
    """The files of a pattern that are there, sorted within each of its alternatives."""
    counted = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
    if counted:
        first, last = counted.groups()
        return [path for number in range(int(first), int(last) + 1) for path in _paths(
            pattern[:counted.start()] + str(number).zfill(len(first)) + pattern[counted.end():])]
    folder, name = os.path.split(pattern)
    if not storage.is_dir(folder or '.'):
        return []
    return [os.path.join(folder, entry.name) for entry in storage.scan(folder or '.')
            if fnmatch.fnmatchcase(entry.name, name) and not entry.is_dir]
