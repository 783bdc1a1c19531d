"""Charts: what is drawn is what was given; files are whole."""

import csv
import io

import numpy as np

from simclr_jax import storage
from simclr_jax.report import charts
from simclr_jax.report.page import Cell

PNG = b'\x89PNG'


def test_axes_are_labelled_and_series_named():
    figure = charts.lines({'a': ([1, 2], [1.0, 2.0]), 'b': ([1, 4], [2.0, np.nan])}, x_label='step',
                          y_label='top-1 (%)')
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('step', 'top-1 (%)')
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b']
    assert charts.as_png(figure).startswith(PNG)


def test_series_of_a_group_share_a_colour_and_ticks_stand_at_the_points():
    series = {'yes, here': [50.0, 60.0], 'no, here': [40.0, 30.0], 'yes, paper': [55.0, 65.0]}
    figure = charts.lines({name: ([0.05, 10], values) for name, values in series.items()},
                          x_label='temperature', y_label='top-1 (%)', log_x=True, markers=True, groups={
                              name: name.split(',')[0] for name in series},
                          errors={'yes, here': [[1.0, 2.0], [3.0, 4.0]]}, legend_title='l2')
    axes = figure.axes[0]
    drawn = {bars.get_label(): bars.lines[0] for bars in axes.containers}
    colours, dashes = ({name: get(line) for name, line in drawn.items()} for get in (
        lambda line: line.get_color(), lambda line: line.get_linestyle()))
    assert colours['yes, here'] == colours['yes, paper'] != colours['no, here']
    assert dashes['yes, here'] == dashes['no, here'] != dashes['yes, paper']
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ['0.05', '10']
    assert not len(axes.get_xticks(minor=True))
    np.testing.assert_allclose([bar[:, 1] for bar in axes.collections[0].get_segments()],
                               [[49.0, 53.0], [58.0, 64.0]])
    assert figure.legends[0].get_title().get_text() == 'l2'


def test_a_heatmap_writes_its_numbers_beside_the_papers():
    ours, paper = np.array([[1.25, np.nan], [3.0, 4.0]]), np.array([[9.0, 8.0], [7.0, 6.0]])
    figure = charts.heatmaps({'ours': ours, 'paper': paper}, ['crop', 'colour'], ['crop', 'colour'],
                             x_label='second', y_label='first', unit='top-1 (%)')
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc='left') for axes in panels] == ['ours', 'paper']
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [
        ['1.2', '3.0', '4.0'], ['9.0', '8.0', '7.0', '6.0']]
    np.testing.assert_array_equal(panels[1].images[0].get_array(), paper)
    assert charts.as_png(figure).startswith(PNG)


def test_each_class_has_a_look_of_its_own():
    names = [f'class {number}' for number in range(20)]
    points = np.random.default_rng(0).normal(size=(40, 2))
    figure = charts.scatter(points, np.arange(40) % 20, names, x_label='PC 1', y_label='PC 2')
    looks = {(tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes())
             for drawn in figure.axes[0].collections}
    assert len(looks) == 20


def test_thumbnails_do_not_lie_over_each_other():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.99]])
    figure = charts.thumbnail_map(points, np.zeros((4, 5, 5, 3), np.uint8), x_label='a', y_label='b')
    assert len(figure.axes[0].images) == 2


def test_a_sheet_shows_each_image_once_and_marks_what_is_right():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    figure = charts.image_sheet([[Cell(image, ('query',)), Cell(image / 255, ('star', '0.9'), True)],
                                 [Cell(None, ('a_name_$of$_more_than_19_letters',), False)]])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 2
    for axes in shown:
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    assert [axes.get_xlabel() for axes in figure.axes[:3]] == [
        'query', '+ right\nstar\n0.9', 'x wrong\na_name_$..._letters']
    styles = [axes.spines['top'].get_linestyle() for axes in figure.axes[:3]]
    assert styles == ['-', '-', '--'] and charts.as_png(figure).startswith(PNG)


def test_what_is_not_there_is_an_empty_cell(tmp_path):
    path = tmp_path / 'table.csv'
    storage.write_csv(str(path), ['name', 'value'], [['a, "b"', float('nan')], ['c', None], ['d', 0]])
    assert list(csv.reader(path.open())) == [['name', 'value'], ['a, "b"', ''], ['c', ''], ['d', '0']]


def test_dollars_in_names_are_no_mathematics():
    names = ['US$', 'a$b$c', r'$\frac{$', 'plain']
    for figure in (charts.heatmaps({'': np.eye(4)}, names, names, x_label='x', y_label='y', unit='u'),
                   charts.scatter(np.random.default_rng(0).random((8, 2)), np.arange(8) % 4, names,
                                  x_label='x', y_label='y')):
        figure.savefig(io.BytesIO())
    heatmap = charts.heatmaps({'': np.eye(4)}, names, names, x_label='x', y_label='y', unit='u')
    assert [tick.get_text().replace(r'\$', '$') for tick in heatmap.axes[0].get_yticklabels()] == names
