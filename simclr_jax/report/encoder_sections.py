"""The parts of a report that ask the network: views, neighbours, maps, similarities, confusions."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from simclr_jax.runtime import sharding
from simclr_jax.views.fields import OPS
from simclr_jax.data.source import Source
from simclr_jax.evaluate.embed import encode_source
from simclr_jax.evaluate.pretrained import Pretrained
from simclr_jax.report import analysis, charts, page, sheet, views
from simclr_jax.report.figures import Figures
from simclr_jax.report.images import picture, sample

_GALLERY, _PAIRS, _NEAREST, _THUMBNAILS = 6, {'small': 1000, 'large': 256}, 8, 400


class Split(NamedTuple):
    """A sample of a split with the features of its M readable images."""

    source: Source
    how: str                # which images, in words
    features: np.ndarray    # [M, D]
    rows: np.ndarray        # [M] into `source`
    original: np.ndarray    # [M] into the split that it is a sample of
    labels: np.ndarray      # [M]; -1 for none

    @property
    def is_whole(self) -> bool:
        return self.how.startswith('all')

    @property
    def is_labelled(self) -> bool:
        return bool(self.source.class_names) and bool((self.labels >= 0).all())


def read_split(pretrained: Pretrained, source: Source, *, most: int, seed: int, layer: int) -> Split:
    """A seeded sample of at most `most` images and their features."""
    source, original, how = sample(source, most, seed)
    features, rows, labels = encode_source(pretrained, source, layer=layer, mesh=one_device())
    return Split(source, how, features, rows, original[rows], labels)


def one_device() -> jax.sharding.Mesh:
    """A report is small, and should not depend on how many devices there are."""
    return sharding.make_mesh(jax.local_devices()[:1])


# ---- views -------------------------------------------------------------------------------------------


def views_and_similarities(figures: Figures, pretrained: Pretrained, source: Source, *,
                           operations: dict[str, dict], image_size: int, seed: int,
                           sequence: Sequence[str] = ()) -> tuple[str, str]:
    """The gallery of the views, and the similarities of views: two parts, from the same views.

    operations: {'view1', 'view2'}, see `config.view_config`; sequence: see `inputs.make_prepare`.
    """
    count = _PAIRS['small' if image_size <= 64 else 'large']
    rows, view1, view2 = views.two_views(source, count, **operations, image_size=image_size, seed=seed,
                                         mesh=one_device(), sequence=sequence)
    originals, kept = views.squares(source, rows[:_GALLERY], image_size)
    alone = views.each_alone(originals, **operations, seed=seed)
    return (_gallery(figures, originals, view1[kept], view2[kept], alone, operations),
            _similarities(figures, pretrained, view1, view2))


def _gallery(figures, originals, view1, view2, alone, operations) -> str:
    used = views.used_operations(**operations)
    columns = {'original': originals, 'view 1': view1, 'view 2': view2, **alone}

    def head(name):
        shares = used.get(name)
        return name if shares is None else f'{name} {" / ".join(f"{p:g}" for p in dict.fromkeys(shares))}'

    names = list(map(head, columns))
    rows = [[sheet.Cell(images[number], alt=f'image {number + 1}: {name}')
             for name, images in columns.items()] for number in range(len(originals))]
    figures.add_image('augmentations', sheet.as_png(rows, [name.replace(' ', '\n', 1) for name in names]))
    figures.add_csv('augmentations', ['operation', 'probability_view1', 'probability_view2'],
                    [[name, *shares] for name, shares in used.items()])
    off = [name for name in OPS if name not in used]
    caption = ('Training images (their central squares), two views of each as the run makes them, and each '
               'operation of the run alone. The number is its probability in the run, of view 1 / view 2 '
               f'where they differ; here it always runs. Off in this run: {", ".join(off) or "none"}.')
    return (page.paragraph(caption, 'note') + sheet.grid_html(names, rows, 'Augmentations')
            + _files('augmentations'))


def _similarities(figures, pretrained, view1, view2) -> str:
    both = [views.outputs(pretrained.network, pretrained.variables, view) for view in (view1, view2)]
    parts, medians = [], []
    for name, title, rows1, rows2 in (('features', 'Features h', both[0][0], both[1][0]),
                                      ('projections', 'Projections z', both[0][1], both[1][1])):
        positive, negative = analysis.view_similarities(rows1, rows2)
        figure = charts.histogram({'same image': positive, 'different images': negative},
                                  x_label='cosine similarity', title=title,
                                  limits=(min(0, negative.min()), 1))
        edges = np.linspace(-1, 1, 101)
        counts = [np.histogram(values, edges)[0] for values in (positive, negative)]
        medians.append(f'{name} {np.median(positive):.3f} against {np.median(negative):.3f}')
        parts.append(figures.add(
            f'similarities_{name}', figure, ['from', 'to', 'same_image', 'different_images'],
            list(zip(np.round(edges[:-1], 2), np.round(edges[1:], 2), *counts)),
            alt=f'Histogram of the cosines of {name}: of two views of one image, and of different images'))
    return page.paragraph(
        f'Cosine similarity of two views of the same image (positive pairs) and of different images '
        f'(negatives), for {len(view1):,} training images. The further apart, the better the views of an '
        f'image are told from all others. Medians: {"; ".join(medians)}.', 'note') + page.side_by_side(parts)


# ---- neighbours --------------------------------------------------------------------------------------


def nearest_and_confusion(figures: Figures, train: Split, test: Split, *, is_same: bool, k: int,
                          temperature: float, num_queries: int, seed: int) -> tuple[str, str]:
    """The sheet of neighbours, and the confusion matrix of the vote of the k nearest: two parts.

    is_same: `test` is `train`; an image is then not its own neighbour.
    """
    cosines, rows = analysis.neighbours(train.features, test.features, k=max(k, _NEAREST), is_same=is_same)
    sheet_html = _neighbour_sheet(figures, train, test, cosines, rows, num_queries, seed, is_same)
    if not (train.is_labelled and test.is_labelled):
        return sheet_html, missing('confusion matrix', 'the images have no labels.')
    num_classes = len(train.source.class_names)
    predictions = analysis.vote(cosines[:, :k], train.labels[rows[:, :k]], num_classes=num_classes,
                                temperature=temperature)
    return sheet_html, _confusion(figures, train, test, predictions, min(k, rows.shape[1]))


def _neighbour_sheet(figures, train, test, cosines, rows, num_queries, seed, is_same) -> str:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(test.features))[:num_queries])
    judged = train.is_labelled and test.is_labelled

    def cell(split, row, lines, is_right=None, alt=''):
        label = (split.source.class_names[split.labels[row]],) if split.is_labelled else ()
        return sheet.Cell(picture(split.source, int(split.rows[row])), (*label, *lines), is_right,
                          alt=f'{alt} {" ".join(label)}'.strip())

    groups, table = [], []
    for query in chosen:
        found = []
        for rank, (cosine, row) in enumerate(zip(cosines[query, :_NEAREST], rows[query, :_NEAREST]), 1):
            right = bool(test.labels[query] == train.labels[row]) if judged else None
            found.append(cell(train, row, (f'{cosine:.3f}',), right, f'neighbour {rank}'))
            table.append([int(test.original[query]), rank, int(train.original[row]), float(cosine), right])
        groups.append((cell(test, query, ('query',), alt='query'), found))
    figures.add_image('neighbours', sheet.as_png([[query, *found] for query, found in groups]))
    figures.add_csv('neighbours', ['query', 'rank', 'neighbour', 'cosine', 'same_class'], table)
    share = np.mean([row[-1] for row in table]) if judged and table else None
    caption = (
        f'{len(chosen)} images chosen at random (seed {seed}) from {_called(test)}, each with its {_NEAREST} '
        f'nearest by cosine among {_called(train)}'
        + (', itself left out' if is_same else '')
        + ('. A neighbour of the same class has a whole blue border and a tick, one of another class a '
           f'dashed orange border and a cross; {100 * share:.0f} % of those shown are right.' if judged else
           '. There are no labels, so that none is marked right or wrong.'))
    return (page.paragraph(caption, 'note')
            + sheet.queries_html([('', query, found) for query, found in groups]) + _files('neighbours'))


def _confusion(figures, train, test, predictions, k) -> str:
    names = list(map(str, train.source.class_names))
    counts = analysis.confusion(test.labels, predictions, len(names))
    table = ['true', *names], [[name, *row] for name, row in zip(names, counts.tolist())]
    accuracy = float((predictions == test.labels).mean())
    caption = (f'The vote of the {k} nearest of {_called(train)}, for {_called(test)}: '
               f'{100 * accuracy:.1f} % are right.' + ('' if train.is_whole and test.is_whole else
                               ' The images are a sample: this is no substitute for the evaluation above.'))
    shown = page.paragraph(caption, 'note')
    if len(names) <= 100:
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ticks = names if len(names) <= 30 else [''] * len(names)
        shown += figures.add(
            'confusion', charts.heatmap(share, ticks, ticks, y_label='true class', x_label='predicted class',
                                        unit='share of the true class (%)', cell_format='.0f'),
            *table, dense=True,
            alt='Confusion matrix: rows are true classes, columns predicted ones, in percent of the row',
            caption='' if len(names) <= 30 else f'{len(names)} classes in order; their names are in the CSV.')
    else:
        figures.add_csv('confusion', *table)
        shown += page.paragraph(f'{len(names)} classes are too many to draw: the counts are in '
                                'report/confusion.csv.', 'missing')
    totals = counts.sum(1)
    confused = [[names[true], names[said], count, f'{100 * count / totals[true]:.0f} %']
                for true, said, count in analysis.most_confused(counts, 8)]
    return shown + (page.table(['true class', 'taken for', 'images', 'of the class'], confused,
                               numeric=(2, 3), caption='Most frequent confusions') if confused else '')


# ---- maps --------------------------------------------------------------------------------------------


def maps(figures: Figures, split: Split, *, seed: int, with_tsne: bool) -> str:
    """The features in two dimensions: their principal components, and t-SNE; thumbnails on request."""
    if len(split.features) < 4:
        return page.paragraph('There are too few images for a map.', 'missing')
    labels = split.labels if split.source.class_names else None
    class_names = tuple(map(str, split.source.class_names or ()))
    places, share = analysis.pca(split.features)
    axes = [f'component {number} ({100 * part:.0f} % of the variance)'
            for number, part in enumerate(share, 1)]
    plans = [('pca', 'Principal components', places, axes)]
    if with_tsne:
        plans.append(('tsne', 't-SNE', analysis.tsne(split.features, seed=seed),
                      ['t-SNE 1 (no unit)', 't-SNE 2 (no unit)']))
    said = [split.labels.tolist(), split.original.tolist()]
    shown = page.paragraph(
        f'The features of {_called(split)}. Principal components keep the large distances'
        + ('; t-SNE keeps who is near to whom, and its axes, sizes and gaps between groups mean nothing.'
           if with_tsne else '.')
        + ('' if class_names else ' There are no labels to colour them by.')
        + (f' {len(class_names)} classes share colours and marks: no legend.'
           if len(class_names) > 20 else ''), 'note')
    shown += page.side_by_side([figures.add(
        f'map_{name}',
        charts.scatter(points, labels, class_names, x_label=x_label, y_label=y_label, title=title),
        ['x', 'y', 'label', 'row'], list(zip(*points.T.tolist(), *said)),
        alt=f'{title} of the features{", coloured by class" if class_names else ""}')
        for name, title, points, (x_label, y_label) in plans])
    few = np.random.default_rng(seed).permutation(len(split.features))[:_THUMBNAILS]
    images = {int(row): picture(split.source, int(split.rows[row])) for row in few}
    images = {row: _reduced(image) for row, image in images.items() if image is not None}
    name, title, points, (x_label, y_label) = plans[-1]
    drawn = figures.add(
        f'map_{name}_images',
        charts.thumbnail_map(points[list(images)], list(images.values()), x_label=x_label, y_label=y_label,
                             title=title),
        ['x', 'y', 'row'], [[*points[row].tolist(), int(split.original[row])] for row in images], dense=True,
        alt=f'{title} of the features, with the images themselves',
        caption=f'Of {len(images)} images chosen at random, those that do not lie over another.')
    return shown + page.details('The same map with thumbnails of the images', drawn)


def _reduced(image: np.ndarray) -> np.ndarray:
    """Every k-th pixel, so that the longer side is 64 at most: enough for a thumbnail of a chart."""
    stride = -(-max(image.shape[:2]) // 64)
    return image[::stride, ::stride]


def _called(split: Split) -> str:
    return f'{split.source.name}, {split.source.split} ({split.how} images)'


def _files(name: str) -> str:
    return f'<p class="note">{page.file_links([f"report/{name}.png", f"report/{name}.csv"])}</p>'


def missing(what: str, why: Any) -> str:
    """The sentence in the place of a part that could not be made."""
    return page.paragraph(f'No {what}: {why}', 'missing')
