"""What a run says before any training: encoded once, kept in the workdir, not held on the devices."""

import json

import jax
import pytest

from simclr_jax.data.shapes import CLASS_NAMES, make_shapes
from simclr_jax.data.source import ArraySource
from simclr_jax.evaluate import final, floors
from simclr_jax.train import pretrain
from tests.evaluate.runs import small_config

pytestmark = pytest.mark.usefixtures('one_device')


class Counted(ArraySource):
    """Images in memory, and how often a batch of them was read."""

    reads = 0

    def __getattribute__(self, name):
        if name == 'images':
            self.reads += 1
        return super().__getattribute__(name)


def test_the_floors_are_encoded_once_and_their_encoder_is_freed(tmp_path):
    config, sources, results, live = small_config(), [], [], []
    config.eval.update({'pixel_floor': True, 'linear_at_end': False})

    def num_kernels():                          # of the head's first layer, on the devices
        return sum(array.shape == (32, 64) for array in jax.live_arrays())

    def count(encode, step):
        live.append(num_kernels() - before)
        return {}

    before = num_kernels()

    for _ in range(2):                          # the second goes on where the first has ended
        sources.append(Counted('shapes', 'test', *make_shapes('test', 16, 64), CLASS_NAMES))
        results.append(pretrain(config, str(tmp_path), test_source=sources[-1], evaluators=[count]))
    assert list(results[0]) == ['raw pixels', 'random', 'pretrained'] and results[0] == results[1]
    assert sources[0].reads - sources[1].reads == 2         # of the pixels, and of the random encoder
    assert live == [2]                          # the parameters, and the momentum of the optimiser


def test_nothing_is_encoded_before_the_first_step_and_all_images_only_after_the_last(tmp_path, monkeypatch, capsys):
    events, results = [], []

    def said(event, function):
        return lambda *args, **rest: (events.append(event), function(*args, **rest))[1]

    monkeypatch.setattr(floors, 'heldout_accuracy', said('held out', floors.heldout_accuracy))
    for module in (floors, final):
        monkeypatch.setattr(module, 'frozen_accuracies', said('all', module.frozen_accuracies))
    trained = said('step', lambda encode, step: {})
    trained.every_steps = 1
    for most, workdir in ((0, 'all'), (50, 'some'), (50, 'some')):
        config = small_config()
        config.log.every_steps = 1
        config.eval.update({'pixel_floor': True, 'linear_at_end': False, 'knn_max_images': most})
        results.append(pretrain(config, str(tmp_path / workdir), evaluators=[trained]))
    assert events == ['step', 'step', 'held out', 'all', 'all', 'all'] * 2 + ['all']         # the floors are kept
    assert results[0] == results[1] == results[2] and list(results[0]) == ['raw pixels', 'random', 'pretrained']
    assert capsys.readouterr().out.count('on 50 training images: the baseline of kNN') == 1


def test_floors_measured_by_other_pixels_are_forgotten(tmp_path):
    config, kept = small_config(), tmp_path / 'floors.json'
    config.eval.linear_at_end = False
    pretrain(config, str(tmp_path))
    first = kept.read_text()
    config.eval.update({'resize': 'bilinear', 'antialias': True})
    pretrain(config, str(tmp_path))
    assert kept.read_text() != first and '"bilinear"' in kept.read_text()
    older = json.loads(kept.read_text())
    for name in ('resize', 'antialias', 'resize_to'):           # earlier versions did not keep them
        del older['settings']['eval'][name]
    older['floors']['random']['knn_accuracy'] = 0.25
    kept.write_text(json.dumps(older))
    assert pretrain(config, str(tmp_path))['random'] == {'knn_accuracy': 0.25}
