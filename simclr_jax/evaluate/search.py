"""The images of a file of features that are nearest to given ones: a table, and a sheet to look at."""

import os
import time

import flax.linen as nn
import numpy as np

from simclr_jax import storage
from simclr_jax.config import ConfigDict
from simclr_jax.data.decode import BadImage, read_image
from simclr_jax.data.source import Source
from simclr_jax.evaluate.embed import Embedded, check_same_encoder, read_features
from simclr_jax.evaluate.evaluated import make_evaluated
from simclr_jax.evaluate.features import Features, preprocessing_of
from simclr_jax.evaluate.knn import nearest_neighbours
from simclr_jax.evaluate.pretrained import Pretrained, load_of_task, load_pretrained
from simclr_jax.runlog.progress import plain_table
from simclr_jax.runtime import sharding
from simclr_jax.weights import hub


class QueryFiles(Source):
    """Image files by their paths, as a source."""

    def __init__(self, paths: list[str]):
        self.paths, self.labels = paths, np.full(len(paths), -1, np.int32)
        super().__init__('queries', 'train', len(paths), None)

    def load(self, index: int) -> bytes:
        return storage.read_bytes(self.paths[index])

    def name_of(self, index: int) -> str:
        return self.paths[index]


def search(config: ConfigDict, workdir: str, *, encoder: nn.Module | None = None) -> list[dict]:
    """Finds the `search.k` images nearest to each file of `search.query`, by the cosine of their features.

    The queries are preprocessed and encoded as the file of features says. Prints a table, and writes
    search.csv to the workdir, with what simclr_jax[report] installs also search.html and search.png.

    `encoder` is the module itself, where the config of its run cannot name it.

    Returns:
        The rows of the table: {'query', 'rank', 'cosine', 'name', 'index', 'label' (a class, or '')}.

    Raises:
        FileNotFoundError, ValueError: there are no such features or queries, or another encoder or another
            preprocessing made the features; nothing was written.
    """
    settings = config.search
    if settings.k < 1:
        raise ValueError(f'search.k is {settings.k}: it must be at least 1.')
    queries = _checked_queries(settings.query)
    path = os.path.join(workdir, storage.as_path(settings.features or 'features.npz'))
    bank = read_features(path)
    pretrained = _load_encoder(settings, bank.metadata, workdir, encoder)
    check_same_encoder(path, bank.metadata, pretrained)
    evaluated = make_evaluated(pretrained, layer=bank.metadata['encoder']['layer'])
    encoded, _ = evaluated.embed(QueryFiles(queries), num_threads=config.data.num_threads)
    rows = find_nearest(queries, encoded.features, bank, k=settings.k)
    if sharding.is_lead():
        columns = ('query', 'rank', 'cosine', 'name', 'label')
        print(plain_table(f'Nearest of {len(bank.names):,} images of {bank.metadata["data"]["source"]}, '
                          f'{bank.metadata["data"]["split"]}, by {pretrained.source}', list(columns),
                          [[f'{row[name]:.4f}' if name == 'cosine' else str(row[name]) for name in columns]
                           for row in rows]))
        storage.write_csv(os.path.join(workdir, 'search.csv'), list(rows[0]), [list(row.values()) for row in rows])
        _write_sheet(workdir, rows, queries, bank.metadata, pretrained)
    return rows


def find_nearest(queries: list[str], encoded: np.ndarray, bank: Embedded, *, k: int) -> list[dict]:
    """The rows of `search` for features [Q, D] of the queries; k is at most the number of images."""
    cosines, found = nearest_neighbours(Features(bank.features, bank.labels), encoded,
                                        k=min(k, len(bank.names)))
    class_names = bank.metadata['data']['class_names']
    return [{'query': query, 'rank': rank, 'cosine': float(cosine), 'name': str(bank.names[row]),
             'index': int(bank.indices[row]),
             'label': class_names[bank.labels[row]] if bank.labels[row] >= 0 else ''}
            for query, *nearest in zip(queries, cosines, found)
            for rank, (cosine, row) in enumerate(zip(*nearest), 1)]


def _checked_queries(named) -> list[str]:
    paths = [storage.as_path(str(path)) for path in ([named] if isinstance(named, str) else named) if path]
    if not paths:
        raise ValueError("search.query names no image: give --config.search.query=FILE, "
                         "or several as \"('a.png', 'b.png')\".")
    for path in paths:
        if not storage.is_file(path):
            raise FileNotFoundError(f'search.query names {path}: there is no such file.')
        try:
            read_image(storage.local_copy(path))
        except BadImage as error:
            raise ValueError(f'search.query names {path}, which is not a readable image: {error}.') from error
    return paths


def _load_encoder(settings: ConfigDict, metadata: dict, workdir: str, module: nn.Module | None) -> Pretrained:
    """The encoder that the file names, at the step it names, unless another is asked for."""
    if settings.pretrained:
        return load_of_task(settings, settings.pretrained, 'search', module)
    made_by = metadata['encoder']
    path = made_by['path']
    if not (hub.is_hub(path) or storage.exists(path)):
        path = workdir      # it may have moved
    if storage.is_file(os.path.join(path, 'config.json')):
        return load_pretrained(path, str(made_by['step']), made_by['network'], encoder=module)
    return load_pretrained(path, encoder=module)


def _write_sheet(workdir: str, rows: list[dict], queries: list[str], metadata: dict, pretrained: Pretrained
                 ) -> None:
    try:
        from simclr_jax.report import charts, images, page
    except ImportError as error:
        print(f"No search.html and search.png: they need {error.name}, pip install 'simclr_jax[report]'.")
        return
    data, missing, pictures = metadata['data'], '', {}
    trained, files = pretrained.config, QueryFiles(queries)
    try:
        pictures = images.pictures(
            data['source'], data['split'], sorted({row['index'] for row in rows}),
            {'data_dir': data['dir'], 'image_size': trained.augment.image_size})
    except (ValueError, OSError) as error:
        missing = str(error)
    groups = [
        (query, page.Cell(images.picture(files, number), ('query',), alt=f'query {query}'),
         [page.Cell(pictures.get(row['index']),
                    (f'{row["rank"]}: {row["cosine"]:.3f}', row['name'], row['label']),
                    alt=f'rank {row["rank"]}: {row["name"]}') for row in rows if row['query'] == query])
        for number, query in enumerate(queries)]
    text = page.render(
        'Nearest images',
        f'The images of {data["source"]}, {data["split"]}, nearest to {len(queries)} '
        f'quer{"y" if len(queries) == 1 else "ies"}, by the cosine of their features: rank, cosine, name and '
        'label.',
        {'Nearest': {'kind': 'search', 'missing': missing, 'groups': groups},
         'Encoder and preprocessing': {'kind': 'pairs', 'pairs': {
             'encoder': f'{pretrained.source}, {pretrained.whose} network, '
                        f'layer {metadata["encoder"]["layer"]}',
             'preprocessing': preprocessing_of(trained),
             'features': f'{data["num_examples"]:,} images, {len(data["skipped"]):,} of them unreadable'}}},
        footer=f'simclr_jax {metadata["simclr_jax"]}, {time.strftime("%Y-%m-%d %H:%M")}')
    storage.write_atomically(os.path.join(workdir, 'search.html'), text.encode())
    sheet = charts.image_sheet([[cell, *found] for _, cell, found in groups])
    storage.write_atomically(os.path.join(workdir, 'search.png'), charts.as_png(sheet))
