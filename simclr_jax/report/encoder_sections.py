"""The parts of a report that ask the network: views, neighbours, maps, similarities, confusions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from sklearn.metrics import confusion_matrix

from simclr_jax.config import ConfigDict
from simclr_jax.data import sources
from simclr_jax.data.source import Source
from simclr_jax.evaluate.embed import encode_source
from simclr_jax.evaluate.pretrained import Pretrained, load_pretrained
from simclr_jax.evaluate.subject import data_options
from simclr_jax.report import analysis, charts, images, page
from simclr_jax.report.page import Block, Cell, Figures
from simclr_jax.runtime import sharding
from simclr_jax.views.fields import OPS, View
from simclr_jax.views.presets import views_of

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

    def __str__(self) -> str:
        return f'{self.source.name}, {self.source.split} ({self.how} images)'

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
        return Cell(images.picture(self.source, int(self.rows[row])), (*label, *lines), is_right,
                    ' '.join([alt, *label]))


def sections(figures: Figures, config: ConfigDict, path: str, pretrained: Pretrained | None
             ) -> dict[str, list[Block]]:
    """{heading: blocks} of `pretrained`; None = the encoder of the workdir `path`.

    A part that cannot be made is the sentence that says why.
    """
    settings, seed = config.report, config.seed
    try:
        pretrained = pretrained or load_pretrained(path, settings.checkpoint, settings.encoder)
        train, test = _read_samples(config, pretrained)
    except (ValueError, OSError) as error:
        return {'Views, neighbours and maps': [page.missing(
            'augmentations, neighbours, map, similarities and confusion matrix', error)]}
    run = pretrained.config
    makers = {
        ('Augmentations', 'Similarities of views'): lambda: views_and_similarities(
            figures, pretrained, train.source, image_size=run.augment.image_size, seed=seed,
            run_views=dict(zip(('view1', 'view2'), views_of(run.augment))),
            sequence=run.augment.get('sequence', ())),
        ('Nearest neighbours', 'Confusion'): lambda: nearest_and_confusion(
            figures, train, test, temperature=run.eval.knn_temperature, num_queries=settings.num_queries,
            k=max(5, round(run.eval.knn_k * train.share)), seed=seed),      # the same share of the images
        ('Map of the features',): lambda: [maps(figures, test, seed=seed, with_tsne=settings.tsne)]}
    made = {'Encoder': [page.text(f'Encoder: {pretrained.source}, {pretrained.encoder} network, '
                                  f'layer {settings.layer}.', 'note')]}
    for headings, make in makers.items():
        try:
            made.update(zip(headings, make()))
        except (ValueError, OSError) as error:
            made.update(dict.fromkeys(headings, [page.missing(' and '.join(headings).lower(), error)]))
    return {'Augmentations': made['Augmentations'],
            'Nearest neighbours': made['Encoder'] + made['Nearest neighbours'],
            **{name: made[name] for name in ('Map of the features', 'Similarities of views', 'Confusion')}}


def _read_samples(config: ConfigDict, pretrained: Pretrained) -> tuple[Sample, Sample]:
    """Of the training split, and of the test split or, where there is none, the same once more.

    ValueError or OSError: the data are not to be had.
    """
    settings, run = config.report, pretrained.config
    data = run.data if run.data.source else config.data         # of a file: those that it is shown on
    where = data_options(config, run) | {
        'cache': '', 'decode_once': False, 'arguments': dict(data.get('arguments', {})),
        'max_bad_share': run.data.get('max_bad_share', config.data.max_bad_share)}

    def read(source):
        chosen, original, how = images.sample(source, settings.max_images, config.seed)
        features, rows, labels = encode_source(pretrained, chosen, layer=settings.layer, mesh=_one_device())
        share = len(original) / source.num_examples
        return Sample(chosen, how, share, features, rows, original[rows], labels)

    train_source, test_source = sources.load_pair(data.source, data.train_split, data.test_split, **where)
    train = read(train_source)
    return train, read(test_source) if test_source else train


def _one_device() -> jax.sharding.Mesh:
    """A report is small, and should not depend on how many devices there are."""
    return sharding.make_mesh(jax.local_devices()[:1])


# ---- views -------------------------------------------------------------------------------------------


def views_and_similarities(figures: Figures, pretrained: Pretrained, source: Source, *,
                           run_views: dict[str, View], image_size: int, seed: int,
                           sequence: Sequence[str] = ()) -> tuple[list[Block], list[Block]]:
    """The gallery of the views, and the similarities of views: two parts, from the same views.

    run_views: {'view1', 'view2'}; sequence: see `batches.make_prepare`.
    """
    count = 1000 if image_size <= 64 else 256
    rows, view1, view2 = images.two_views(source, count, **run_views, image_size=image_size, seed=seed,
                                          mesh=_one_device(), sequence=sequence)
    originals, kept = images.squares(source, rows[:_NUM_SHOWN], image_size)
    alone = images.each_alone(originals, **run_views, seed=seed)
    shown = {'original': originals, 'view 1': view1[kept], 'view 2': view2[kept], **alone}
    return (_gallery(figures, shown, images.used_operations(**run_views)),
            _similarities(figures, pretrained, view1, view2))


def _gallery(figures, shown, used) -> list[Block]:
    names = [' '.join([name, ' / '.join(f'{share:g}' for share in dict.fromkeys(used.get(name, ())))]).strip()
             for name in shown]
    rows = [[Cell(column[number], alt=f'image {number + 1}: {name}') for name, column in shown.items()]
            for number in range(len(shown['original']))]
    files = figures.add_images('augmentations', rows, ['operation', 'probability_view1', 'probability_view2'],
                               [[name, *shares] for name, shares in used.items()],
                               heads=[name.replace(' ', '\n', 1) for name in names])
    off = [name for name in OPS if name not in used]
    return [page.text(
        'Training images (their central squares), two views of each as the run makes them, and each '
        'operation of the run alone. The number is its probability in the run, of view 1 / view 2 where they '
        f'differ; here it always runs. Off in this run: {", ".join(off) or "none"}.', 'note'),
        {'kind': 'images', 'columns': names, 'rows': rows, 'caption': 'Augmentations'}, files]


def _similarities(figures, pretrained, view1, view2) -> list[Block]:
    both = [images.outputs(pretrained.network, pretrained.variables, view) for view in (view1, view2)]
    parts, medians = [], []
    for name, title, of_view1, of_view2 in zip(('features', 'projections'), ('Features h', 'Projections z'),
                                               *both):
        positive, negative = analysis.view_similarities(of_view1, of_view2)
        figure = charts.histogram({'same image': positive, 'different images': negative}, title=title,
                                  x_label='cosine similarity', limits=(min(0, negative.min()), 1))
        edges = np.round(np.linspace(-1, 1, 101), 2)
        counts = [np.histogram(values, edges)[0] for values in (positive, negative)]
        medians.append(f'{name} {np.median(positive):.3f} against {np.median(negative):.3f}')
        parts.append(figures.add(
            f'similarities_{name}', figure, ['from', 'to', 'same_image', 'different_images'],
            list(zip(edges[:-1], edges[1:], *counts)),
            alt=f'Histogram of the cosines of {name}: of two views of one image, and of different images'))
    return [page.text(
        f'Cosine similarity of two views of the same image (positive pairs) and of different images '
        f'(negatives), for {len(view1):,} training images. The further apart, the better the views of an '
        f'image are told from all others. Medians: {"; ".join(medians)}.', 'note'),
        {'kind': 'side by side', 'blocks': parts}]


# ---- neighbours --------------------------------------------------------------------------------------


def nearest_and_confusion(figures: Figures, train: Sample, test: Sample, *, k: int, temperature: float,
                          num_queries: int, seed: int) -> tuple[list[Block], list[Block]]:
    """The sheet of neighbours, and the confusion matrix of the vote of the k nearest: two parts.

    Where `test` is `train` itself, an image is not its own neighbour.
    """
    searched = None if test is train else test.features
    cosines, rows = analysis.neighbours(train.features, searched, k=_NEAREST)
    queries = np.sort(np.random.default_rng(seed).permutation(len(test.features))[:num_queries])
    nearest = _nearest(figures, train, test, queries, cosines, rows, seed)
    if not (train.is_labelled and test.is_labelled):
        return nearest, [page.missing('confusion matrix', 'the images have no labels.')]
    predictions = analysis.vote(train.features, train.labels, searched, k=k, temperature=temperature)
    return nearest, _confusion(figures, train, test, predictions, min(k, len(train.labels)))


def _nearest(figures, train, test, queries, cosines, rows, seed) -> list[Block]:
    is_judged = train.is_labelled and test.is_labelled
    groups, table = [], []
    for query in queries:
        found = []
        for rank, (cosine, row) in enumerate(zip(cosines[query], rows[query]), 1):
            right = bool(test.labels[query] == train.labels[row]) if is_judged else None
            found.append(train.cell(row, f'{cosine:.3f}', alt=f'neighbour {rank}', is_right=right))
            table.append([int(test.original[query]), rank, int(train.original[row]), float(cosine), right])
        groups.append(('', test.cell(query, 'query', alt='query'), found))
    files = figures.add_images('neighbours', [[query, *found] for _, query, found in groups],
                               ['query', 'rank', 'neighbour', 'cosine', 'same_class'], table)
    marks = 'There are no labels, so that none is marked right or wrong.'
    if is_judged:
        share = np.mean([row[-1] for row in table])
        marks = ('A neighbour of the same class has a whole blue border and a tick, one of another class a '
                 f'dashed orange border and a cross; {100 * share:.0f} % of those shown are right.')
    return [page.text(
        f'{len(queries)} images chosen at random (seed {seed}) from {test}, each with its {rows.shape[1]} '
        f'nearest by cosine among {train}{", itself left out" if test is train else ""}. {marks}', 'note'),
        {'kind': 'queries', 'rows': groups}, files]


def _confusion(figures, train, test, predictions, k) -> list[Block]:
    names = train.class_names
    counts = confusion_matrix(test.labels, predictions, labels=range(len(names)))
    table = ['true', *names], [[name, *row] for name, row in zip(names, counts.tolist())]
    accuracy = (predictions == test.labels).mean()
    words = f'The vote of the {k} nearest of {train}, for {test}: {100 * accuracy:.1f} % are right.'
    if train.share < 1 or test.share < 1:
        words += ' The images are a sample: this is no substitute for the evaluation above.'
    blocks = [page.text(words, 'note')]
    totals = np.maximum(counts.sum(1), 1)
    if len(names) <= 100:
        ticks = names if len(names) <= 30 else [''] * len(names)
        figure = charts.heatmaps({'': 100 * counts / totals[:, None]}, ticks, ticks, y_label='true class',
                                 x_label='predicted class', unit='share of the true class (%)',
                                 cell_format='.0f')
        blocks.append(figures.add(
            'confusion', figure, *table, dense=True,
            caption='' if ticks == names else f'{len(names)} classes in order; their names are in the CSV.',
            alt='Confusion matrix: rows are true classes, columns predicted ones, in percent of the row'))
    else:
        blocks += [page.text(f'{len(names)} classes are too many to draw: the counts are in the CSV.',
                             'missing'), figures.add_csv('confusion', *table)]
    confused = [[names[true], names[predicted], count, f'{100 * count / totals[true]:.0f} %']
                for true, predicted, count in analysis.most_confused(counts, 8)]
    return blocks + ([page.table(['true class', 'taken for', 'images', 'of the class'], confused,
                                 numeric=(2, 3), caption='Most frequent confusions')] if confused else [])


# ---- maps --------------------------------------------------------------------------------------------


def maps(figures: Figures, sample: Sample, *, seed: int, with_tsne: bool) -> list[Block]:
    """The features in two dimensions: their principal components, and t-SNE; thumbnails on request."""
    if len(sample.features) < 4:
        return [page.text('There are too few images for a map.', 'missing')]
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
    words = [f'The features of {sample}. Principal components keep the large distances'
             + ('; t-SNE keeps who is near to whom, and its axes, sizes and gaps between groups mean nothing.'
                if with_tsne else '.'),
             '' if names else 'There are no labels to colour them by.',
             f'{len(names)} classes share colours and marks: no legend.' if len(names) > 20 else '']
    return [page.text(' '.join(filter(None, words)), 'note'), {'kind': 'side by side', 'blocks': drawn},
            page.on_request('The same map with thumbnails of the images',
                            _map_with_images(figures, sample, plans[-1], seed))]


def _map_with_images(figures, sample, plan, seed) -> Block:
    name, title, points, (x_label, y_label) = plan
    few = np.random.default_rng(seed).permutation(len(points))[:_THUMBNAILS]
    pictures = {row: images.picture(sample.source, int(sample.rows[row])) for row in few.tolist()}
    pictures = {row: image for row, image in pictures.items() if image is not None}
    figure = charts.thumbnail_map(points[list(pictures)], list(pictures.values()), x_label=x_label,
                                  y_label=y_label, title=title)
    return figures.add(
        f'map_{name}_images', figure, ['x', 'y', 'row'],
        [[*points[row].tolist(), int(sample.original[row])] for row in pictures],
        dense=True, alt=f'{title} of the features, with the images themselves',
        caption=f'Of {len(pictures)} images chosen at random, those that do not lie over another.')
