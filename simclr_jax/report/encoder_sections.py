"""The parts of a report that ask the network: views, neighbours, maps, similarities, confusions."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from sklearn.metrics import confusion_matrix

from simclr_jax.config import ConfigDict
from simclr_jax.data import loading
from simclr_jax.data.progress_bar import progress_bar
from simclr_jax.data.source import Source
from simclr_jax.evaluate.evaluated import cache_of_run, data_options, make_evaluated
from simclr_jax.evaluate.knn import vote
from simclr_jax.evaluate.pretrained import Pretrained, load_of_task
from simclr_jax.report import analysis, charts, images, page
from simclr_jax.report.page import Cell, Figures, Section
from simclr_jax.runtime import sharding
from simclr_jax.views.fields import OPS, View
from simclr_jax.views.from_config import views_of

_NUM_SHOWN, _NEAREST, _THUMBNAILS = 6, 8, 400


class Sample(NamedTuple):
    """A sample of a split with the features of its M readable images."""

    source: Source
    how: str                # which images, in words
    share: float            # of the images of the split
    features: np.ndarray    # [M, D]
    rows: np.ndarray        # [M] into `source`
    original: np.ndarray    # [M] into the split that it is a sample of
    labels: np.ndarray      # [M]; -1 for none
    picture: Callable[[int], np.ndarray | None]     # of a row of `source`, decoded once: see `images.picture`

    def __str__(self) -> str:
        return f'{self.source.name}, {self.source.split} ({self.how})'

    @property
    def class_names(self) -> list[str]:
        """[] where the images have no labels."""
        return list(map(str, self.source.class_names or ()))

    @property
    def is_labelled(self) -> bool:
        return bool(self.class_names) and bool((self.labels >= 0).all())

    def cell(self, row: int, *lines: str, alt: str, is_right: bool | None = None) -> Cell:
        """An image with its class and `lines` below."""
        label = (self.class_names[self.labels[row]],) if self.is_labelled else ()
        return Cell(self.picture(int(self.rows[row])), (*label, *lines), is_right,
                    ' '.join([alt, *label]))


def sections(figures: Figures, config: ConfigDict, path: str, pretrained: Pretrained | None
             ) -> dict[str, Section]:
    """{heading: section} of `pretrained`; None = the encoder of the workdir `path`.

    A part that cannot be made is the sentence that says why.
    """
    settings, seed = config.report, config.seed
    try:
        pretrained = pretrained or load_of_task(settings, path, 'report')
        if len(pretrained.config.augment.mean) != 3:
            raise ValueError(f'its images have {len(pretrained.config.augment.mean)} channels, and what is drawn here '
                             'is RGB')
        train, test = _read_samples(config, pretrained)
    except (ValueError, OSError) as error:
        return {'Views, neighbours and maps': page.absent(
            'augmentations, neighbours, map, similarities and confusion matrix', error)}
    run = pretrained.config
    makers = {
        ('Augmentations', 'Similarities of views'): lambda: views_and_similarities(
            figures, pretrained, train.source, image_size=run.augment.image_size, seed=seed,
            run_views=dict(zip(('view1', 'view2'), views_of(run.augment))),
            sequence=run.augment.get('sequence', ())),
        ('Nearest neighbours', 'Confusion'): lambda: nearest_and_confusion(
            figures, train, test, temperature=run.eval.knn_temperature, num_queries=settings.num_queries,
            k=max(5, round(run.eval.knn_k * train.share)), seed=seed,       # the same share of the images
            encoder=f'{pretrained.source}, {pretrained.whose} network, layer {settings.layer}'),
        ('Map of the features',): lambda: [maps(figures, test, seed=seed, with_tsne=settings.tsne)]}
    made = {}
    for headings, make in makers.items():
        try:
            made.update(zip(headings, make()))
        except (ValueError, OSError) as error:
            made.update(dict.fromkeys(headings, page.absent(' and '.join(headings).lower(), error)))
    return {name: made[name] for name in ('Augmentations', 'Nearest neighbours', 'Map of the features',
                                          'Similarities of views', 'Confusion')}


def _read_samples(config: ConfigDict, pretrained: Pretrained) -> tuple[Sample, Sample]:
    """Of the training split, and of the test split or, where there is none, the same once more.

    ValueError or OSError: the data are not to be had.
    """
    settings, run = config.report, pretrained.config
    data = run.data if run.data.source else config.data         # of a file: those that it is shown on
    where = data_options(config, run) | cache_of_run(run) | {
        'decode_once': False, 'arguments': dict(data.get('arguments', {})),
        'max_bad_share': run.data.get('max_bad_share', config.data.max_bad_share)}

    evaluated = make_evaluated(pretrained, layer=settings.layer, mesh=_one_device())

    def read(source):
        chosen, original, how = images.sample(source, settings.max_images, config.seed)
        with progress_bar(f'report: {source.name}, {source.split}', chosen.num_examples) as advance:
            found, rows = evaluated.embed(chosen, num_threads=config.data.num_threads, advance=advance)
        share = len(original) / source.num_examples
        return Sample(chosen, how, share, found.features, rows, original[rows], found.labels,
                      functools.cache(functools.partial(images.picture, chosen)))

    train_source, test_source = loading.load_pair(data.source, data.train_split, data.test_split, **where)
    train = read(train_source)
    return train, read(test_source) if test_source else train


def _one_device() -> jax.sharding.Mesh:
    """A report is small, and should not depend on how many devices there are."""
    return sharding.make_mesh(jax.local_devices()[:1])


# ---- views -------------------------------------------------------------------------------------------


def views_and_similarities(figures: Figures, pretrained: Pretrained, source: Source, *,
                           run_views: dict[str, View], image_size: int, seed: int,
                           sequence: Sequence[str] = ()) -> tuple[Section, Section]:
    """The gallery of the views, and the similarities of views: two parts, from the same views.

    run_views: {'view1', 'view2'}; sequence: see `batches.Inputs`.
    """
    count = 1000 if image_size <= 64 else 256
    rows, view1, view2 = images.two_views(source, count, **run_views, image_size=image_size, seed=seed,
                                          mesh=_one_device(), sequence=sequence)
    originals, kept = images.squares(source, rows[:_NUM_SHOWN], image_size)
    alone = images.each_alone(originals, **run_views, seed=seed)
    shown = {'original': originals, 'view 1': view1[kept], 'view 2': view2[kept], **alone}
    return (_gallery(figures, shown, images.used_operations(**run_views)),
            _similarities(figures, pretrained, view1, view2))


def _gallery(figures, shown, used) -> Section:
    names = [' '.join([name, ' / '.join(f'{share:g}' for share in dict.fromkeys(used.get(name, ())))]).strip()
             for name in shown]
    rows = [[Cell(column[number], alt=f'image {number + 1}: {name}') for name, column in shown.items()]
            for number in range(len(shown['original']))]
    sheet = charts.image_sheet(rows, heads=[name.replace(' ', '\n', 1) for name in names])
    added = figures.add('augmentations', sheet, ['operation', 'probability_view1', 'probability_view2'],
                        [[name, *shares] for name, shares in used.items()])
    return {'kind': 'augmentations', 'columns': names, 'rows': rows, 'files': added['files'],
            'off': [name for name in OPS if name not in used]}


def _similarities(figures, pretrained, view1, view2) -> Section:
    both = [images.outputs(pretrained.network, pretrained.variables, view) for view in (view1, view2)]
    drawn, medians = [], []
    for name, title, of_view1, of_view2 in zip(('features', 'projections'), ('Features h', 'Projections z'),
                                               *both):
        positive, negative = analysis.view_similarities(of_view1, of_view2)
        figure = charts.histogram({'same image': positive, 'different images': negative}, title=title,
                                  x_label='cosine similarity', limits=(min(0, negative.min()), 1))
        edges = np.round(np.linspace(-1, 1, 101), 2)
        counts = [np.histogram(values, edges)[0] for values in (positive, negative)]
        medians.append(f'{name} {np.median(positive):.3f} against {np.median(negative):.3f}')
        drawn.append(figures.add(
            f'similarities_{name}', figure, ['from', 'to', 'same_image', 'different_images'],
            list(zip(edges[:-1], edges[1:], *counts)),
            alt=f'Histogram of the cosines of {name}: of two views of one image, and of different images'))
    return {'kind': 'similarities', 'count': f'{len(view1):,}', 'medians': medians, 'figures': drawn}


# ---- neighbours --------------------------------------------------------------------------------------


def nearest_and_confusion(figures: Figures, train: Sample, test: Sample, *, k: int, temperature: float,
                          num_queries: int, seed: int, encoder: str) -> tuple[Section, Section]:
    """The sheet of neighbours, and the confusion matrix of the vote of the k nearest: two parts.

    Where `test` is `train` itself, an image is not its own neighbour.
    """
    cosines, rows = analysis.neighbours(train.features, None if test is train else test.features,
                                        k=max(_NEAREST, k))
    queries = np.sort(np.random.default_rng(seed).permutation(len(test.features))[:num_queries])
    nearest = _nearest(figures, train, test, queries, cosines[:, :_NEAREST], rows[:, :_NEAREST]) | {
        'seed': seed, 'encoder': encoder}
    if not (train.is_labelled and test.is_labelled):
        return nearest, page.absent('confusion matrix', 'the images have no labels.')
    predictions = vote(cosines[:, :k], train.labels[rows[:, :k]], num_classes=len(train.class_names),
                       temperature=temperature)
    return nearest, _confusion(figures, train, test, predictions, min(k, len(train.labels)))


def _nearest(figures, train, test, queries, cosines, rows) -> Section:
    is_judged = train.is_labelled and test.is_labelled
    groups, table = [], []
    for query in queries:
        found = []
        for rank, (cosine, row) in enumerate(zip(cosines[query], rows[query]), 1):
            right = bool(test.labels[query] == train.labels[row]) if is_judged else None
            found.append(train.cell(row, f'{cosine:.3f}', alt=f'neighbour {rank}', is_right=right))
            table.append([int(test.original[query]), rank, int(train.original[row]), float(cosine), right])
        groups.append(('', test.cell(query, 'query', alt='query'), found))
    sheet = charts.image_sheet([[query, *found] for _, query, found in groups])
    added = figures.add('neighbours', sheet, ['query', 'rank', 'neighbour', 'cosine', 'same_class'], table)
    share = f'{100 * np.mean([row[-1] for row in table]):.0f}' if is_judged else None
    return {'kind': 'nearest', 'train': train, 'test': test, 'is_same': test is train, 'groups': groups,
            'count': rows.shape[1], 'share': share, 'files': added['files']}


def _confusion(figures, train, test, predictions, k) -> Section:
    names = train.class_names
    counts = confusion_matrix(test.labels, predictions, labels=range(len(names)))
    table = ['true', *names], [[name, *row] for name, row in zip(names, counts.tolist())]
    totals = np.maximum(counts.sum(1), 1)
    section = {
        'kind': 'confusion', 'k': k, 'train': train, 'test': test, 'figure': None,
        'is_sample': train.share < 1 or test.share < 1,
        'accuracy': f'{100 * (predictions == test.labels).mean():.1f}',
        'confused': [[names[true], names[predicted], count, f'{100 * count / totals[true]:.0f} %']
                     for true, predicted, count in analysis.most_confused(counts, 8)]}
    if len(names) > 100:
        return section | {'files': figures.add_csv('confusion', *table)}
    ticks = names if len(names) <= 30 else [''] * len(names)
    figure = charts.heatmaps({'': 100 * counts / totals[:, None]}, ticks, ticks, y_label='true class',
                             x_label='predicted class', unit='share of the true class (%)', cell_format='.0f')
    return section | {'figure': figures.add(
        'confusion', figure, *table, dense=True,
        caption='' if ticks == names else f'{len(names)} classes in order; their names are in the CSV.',
        alt='Confusion matrix: rows are true classes, columns predicted ones, in percent of the row')}


# ---- maps --------------------------------------------------------------------------------------------


def maps(figures: Figures, sample: Sample, *, seed: int, with_tsne: bool) -> Section:
    """The features in two dimensions: their principal components, and t-SNE; thumbnails on request."""
    if len(sample.features) < 4:
        return page.absent('map', 'there are too few images.')
    names = sample.class_names
    points, share = analysis.pca(sample.features)
    plans = [('pca', 'Principal components', points,
              [f'component {number} ({100 * part:.0f} % of the variance)'
               for number, part in enumerate(share, 1)])]
    if with_tsne:
        plans.append(('tsne', 't-SNE', analysis.tsne(sample.features, seed=seed),
                      ['t-SNE 1 (no unit)', 't-SNE 2 (no unit)']))
    drawn = [figures.add(
        f'map_{name}', charts.scatter(points, sample.labels if names else None, names, x_label=x_label,
                                      y_label=y_label, title=title),
        ['x', 'y', 'label', 'row'],
        list(zip(*points.T.tolist(), sample.labels.tolist(), sample.original.tolist())),
        alt=f'{title} of the features{", coloured by class" if names else ""}')
        for name, title, points, (x_label, y_label) in plans]
    return {'kind': 'maps', 'sample': sample, 'num_classes': len(names), 'figures': drawn,
            'thumbnails': _map_with_images(figures, sample, plans[-1], seed)}


def _map_with_images(figures, sample, plan, seed) -> dict:
    name, title, points, (x_label, y_label) = plan
    few = np.random.default_rng(seed).permutation(len(points))[:_THUMBNAILS]
    pictures = {row: sample.picture(int(sample.rows[row])) for row in few.tolist()}
    pictures = {row: images.smaller(image, 64) for row, image in pictures.items() if image is not None}
    figure = charts.thumbnail_map(points[list(pictures)], list(pictures.values()), x_label=x_label,
                                  y_label=y_label, title=title)
    return figures.add(
        f'map_{name}_images', figure, ['x', 'y', 'row'],
        [[*points[row].tolist(), int(sample.original[row])] for row in pictures],
        dense=True, alt=f'{title} of the features, with the images themselves',
        caption=f'Of {len(pictures)} images chosen at random, those that do not lie over another.')
