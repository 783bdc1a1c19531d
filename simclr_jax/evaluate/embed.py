"""Features of every image of a folder or data set, in a file that says which encoder made them, and how."""

import hashlib
import importlib.util
import json
import os
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import simclr_jax
from simclr_jax import storage
from simclr_jax.config import ConfigDict
from simclr_jax.data import loading
from simclr_jax.data.progress_bar import progress_bar
from simclr_jax.evaluate.evaluated import data_options, load_evaluated
from simclr_jax.evaluate.features import resize_of
from simclr_jax.evaluate.pretrained import Pretrained, encoder_fields
from simclr_jax.runtime import sharding

_KEY = b'simclr_jax'        # of the metadata in a Parquet file
_KINDS = ('.npz', '.npy', '.parquet')


class Embedded(NamedTuple):
    """The features of N images, in the order of their source; what could not be read is left out."""

    features: np.ndarray    # [N, D] float32
    names: np.ndarray       # [N] str: paths from the root of the split, or 'example 17'
    indices: np.ndarray     # [N] int64: rows of the source
    labels: np.ndarray      # [N] int32; -1 for none
    metadata: dict          # 'encoder', 'preprocessing', 'data', 'simclr_jax'


def embed(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None) -> list[str]:
    """Writes the features of `config.data`, labelled or not, and returns the paths of the files.

    Encoder and preprocessing are those of `embed.pretrained`; where `config.data` names no source or
    split, that of the encoder's run stands for it. `encoder` is the module itself, where that config cannot
    name it.

    Raises:
        ValueError, FileNotFoundError: encoder, data or file will not do; nothing was written.
        FloatingPointError: a feature is not finite.
    """
    settings = config.embed
    paths = output_paths(settings.file, workdir)
    evaluated = load_evaluated(settings, workdir, 'embed', encoder)
    name = config.data.source or evaluated.config.data.source
    split = settings.split or config.data.train_split or evaluated.config.data.train_split
    if not name:
        raise ValueError('There is nothing to embed: give --config.data.source, such as folder:PATH.')
    where = data_options(config, evaluated.config)
    source = loading.load_source(name, split, **where | {'cache': '', 'decode_once': False})
    with progress_bar(f'{source.name}, {source.split}', source.num_examples) as advance:
        found, indices = evaluated.embed(source, num_threads=config.data.num_threads, advance=advance)
    made_by = identity(evaluated.pretrained, settings.layer)
    made_by['encoder']['path'] = storage.absolute(evaluated.path)
    names = np.array([source.name_of(index) for index in indices])
    data = {'source': source.name, 'split': source.split, 'dir': where['data_dir'],
            'num_examples': source.num_examples, 'class_names': list(source.class_names or ()),
            'skipped': list(source.skipped)}
    embedded = Embedded(found.features, names, indices, found.labels, made_by | {'data': data})
    if sharding.is_lead():
        for path in paths:
            write_features(path, embedded)
            print(f'{len(names):,} features of width {evaluated.width:,} -> {path}')
        if source.skipped:
            print(f'{len(source.skipped):,} files could not be read and were skipped: '
                  f'{", ".join(source.skipped[:10])}{", ..." if len(source.skipped) > 10 else ""}')
    return paths


def fingerprint(variables: Any) -> str:
    """A hash of every bit of a tree of arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def identity(pretrained: Pretrained, layer: int) -> dict[str, Any]:
    """What decides which features an image has, as JSON values, and what the encoder is."""
    trained = pretrained.config
    return {
        'encoder': {'source': pretrained.source, 'step': pretrained.step, 'network': pretrained.whose,
                    'layer': layer, 'weights': fingerprint(pretrained.variables),
                    'fields': json.loads(json.dumps(encoder_fields(trained)))},
        'preprocessing': {
            'image_size': trained.augment.image_size, 'crop_proportion': trained.eval.crop_proportion,
            'resize': str(resize_of(trained)), 'range': [0.0, 1.0],
            'mean': list(trained.augment.mean), 'std': list(trained.augment.std)},
        'simclr_jax': simclr_jax.__version__}


def check_same_encoder(path: str, metadata: dict, pretrained: Pretrained) -> None:
    """ValueError unless the features of the file `path` are those that `pretrained` gives."""
    other = identity(pretrained, metadata['encoder']['layer'])
    for part, names in (('encoder', ('weights', 'fields')), ('preprocessing', tuple(other['preprocessing']))):
        for name in names:
            if metadata[part].get(name) != other[part][name]:
                difference = ('' if part == 'encoder' else
                              f' ({name} {metadata[part].get(name)} there, {other[part][name]} here)')
                raise ValueError(
                    f'{path} was made with another {part} than that of {pretrained.source}{difference}: '
                    'their features cannot be compared. Give the encoder it was made with '
                    f'({metadata["encoder"]["source"]}), or run --config.task=embed again.')


# ---- files -------------------------------------------------------------------------------------------


def output_paths(file: str, workdir: str) -> list[str]:
    """Where the features go: `file`; '' = features.npz in the workdir, and features.parquet with pyarrow.

    ValueError for another ending than .npz, .npy or .parquet, or a .parquet without pyarrow.
    """
    if not file:
        kinds = ('.npz', '.parquet') if _has_pyarrow() else ('.npz',)
        return [os.path.join(workdir, f'features{kind}') for kind in kinds]
    path = os.path.join(workdir, storage.as_path(file))
    kind = os.path.splitext(path)[1]
    if kind not in _KINDS:
        raise ValueError(f'embed.file is {file!r}: its ending chooses the format, {", ".join(_KINDS)}.')
    if kind == '.parquet' and not _has_pyarrow():
        raise ValueError(f"embed.file is {file!r}: Parquet needs pyarrow, pip install 'simclr_jax[report]'; "
                         'or write .npz.')
    return [path]


def write_features(path: str, embedded: Embedded) -> None:
    """Writes one file, whole or not at all, in the format of its ending.

    .npz: the arrays of `Embedded`, 'metadata' as a JSON string. .parquet: a row for each image with name,
    index, label, class and vector; the metadata as JSON under the key 'simclr_jax' of its schema. .npy:
    the features alone, all else as JSON in PATH.json beside it.
    """
    if path.endswith('.npz'):
        arrays: dict[str, Any] = embedded._asdict() | {'metadata': json.dumps(embedded.metadata)}
        storage.write_by(path, lambda file: np.savez(file, **arrays))
    elif path.endswith('.parquet'):
        storage.write_by(path, lambda file: _write_parquet(file, embedded))
    else:
        beside = {'metadata': embedded.metadata, 'names': embedded.names.tolist(),
                  'indices': embedded.indices.tolist(), 'labels': embedded.labels.tolist()}
        storage.write_atomically(f'{path}.json', json.dumps(beside).encode())
        storage.write_by(path, lambda file: np.save(file, embedded.features))


def read_features(path: str) -> Embedded:
    """Reads a file of `write_features`.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or of another kind.
    """
    if not storage.is_file(path):
        raise FileNotFoundError(f'There is no file of features {path}: make one with --config.task=embed.')
    try:
        if path.endswith('.parquet'):
            return _read_parquet(storage.local_copy(path))
        if path.endswith('.npy'):
            beside = json.loads(storage.read_bytes(f'{path}.json'))
            return Embedded(np.load(storage.local_copy(path), allow_pickle=False), np.array(beside['names']),
                            np.array(beside['indices'], np.int64), np.array(beside['labels'], np.int32),
                            beside['metadata'])
        with np.load(storage.local_copy(path), allow_pickle=False) as arrays:
            return Embedded(*(arrays[name] for name in Embedded._fields[:-1]),
                            metadata=json.loads(str(arrays['metadata'])))
    except Exception as error:      # numpy, pyarrow and zipfile each have errors of their own
        raise ValueError(f'{path} is not a complete file of features of --config.task=embed: {error}') from error


def _write_parquet(file, embedded: Embedded) -> None:
    import pyarrow
    import pyarrow.parquet

    class_names = embedded.metadata['data']['class_names']
    known = [label if label >= 0 else None for label in embedded.labels.tolist()]
    width = embedded.features.shape[1]
    table = pyarrow.table({
        'name': pyarrow.array(embedded.names.tolist(), pyarrow.string()),
        'index': pyarrow.array(embedded.indices),
        'label': pyarrow.array(known, pyarrow.int32()),
        'class': pyarrow.array([None if label is None else class_names[label] for label in known],
                               pyarrow.string()),
        'vector': pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(embedded.features.reshape(-1)), width),
    }).replace_schema_metadata({_KEY: json.dumps(embedded.metadata)})
    pyarrow.parquet.write_table(table, file)


def _read_parquet(path: str) -> Embedded:
    if not _has_pyarrow():
        raise ValueError("Parquet needs pyarrow, pip install 'simclr_jax[report]'")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path).combine_chunks()
    vectors = table['vector'].combine_chunks()
    return Embedded(
        vectors.flatten().to_numpy().reshape(len(table), -1), np.array(table['name'].to_pylist()),
        table['index'].to_numpy(), table['label'].fill_null(-1).to_numpy(),
        json.loads(table.schema.metadata[_KEY]))


def _has_pyarrow() -> bool:
    return importlib.util.find_spec('pyarrow') is not None
