"""pretrain() in this process: what it refuses, what it measures, and data of every kind."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate import final, floors, linear as linear_module
from simclr_jax.evaluate.linear import linear
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.train import pretrain
from simclr_jax.training.steps import make_encode
from tests.runs import small_config

pytestmark = pytest.mark.usefixtures('one_device')
SPLITS = {'data.train_split': 'train', 'data.test_split': ''}


@pytest.mark.parametrize('overrides, sentence', [
    ({'method.name': 'simclrr'}, "method.name is 'simclrr'"),
    ({'method.name': 'byol'}, "unexpected keyword argument 'decoupled'.*method.name alone does not change it"),
    ({'batchsize': 3}, "The config has no field 'batchsize'; did you mean 'batch_size'?"),
    ({'augment.strength': 2.0}, "The config has no field 'augment.strength'; "),
    ({'encoder.depht': 18}, "no field 'encoder.depht'; did you mean 'encoder.depth'?"),
    ({'optimizer.learning_rate': float('nan')}, 'optimizer.learning_rate is nan: it must be 0 or more'),
    ({'encoder.depth': 20}, 'encoder.depth is 20: it takes 10, 18, .*200\\.'),
    ({'encoder.dtype': 'float16'}, "encoder.dtype is 'float16': it takes auto, float32, bfloat16.$"),
    ({'optimizer.name': 'lamb'}, "There is no optimizer 'lamb': optimizer.name .* takes lars, sgd, adamw.$"),
    ({'optimizer.weight_decay_groups': (('probes', 0.1),)}, 'probes'),
    ({'schedule.name': 'cosine'}, "schedule.name is 'cosine': it takes warmup_cosine"),
    ({'encoder.name': 'resnett'}, "encoder.name is 'resnett': it takes resnet, .*, and a part of your own"),
    ({'log.writers': ('wandbb',)}, "log.writers is 'wandbb': it takes wandb, mlflow, tensorboard, and a part of your"),
    ({'data.source': ''}, 'data.source is empty: give --config.data.source=folder:PATH'),
    ({'data.source': 'folder:nowhere'}, "data.source is folder:nowhere: there is no directory '/.*/nowhere'.$"),
    ({'batch_size': 1024}, '^batch_size is 1024, .*has only 64 images: choose a smaller batch'),
    ({'batch_size': 1}, 'batch_size is 1: a contrastive loss'),
    ({'eval.layer': 9}, '9'),
    ({'eval.encoder': 'target'}, "eval.encoder is 'target': this method has no target network"),
    ({'eval.encoder': 'teacher'}, "eval.encoder is 'teacher': it takes 'online' or 'target'"),
    ({'predictor.mode': 'nonlinear'}, "'simclr' has no predictor"),
    ({'eval.layer': 9, 'eval.online_probe': False}, 'layer is 9: the head has layers 0'),
    ({'data.train_split': 'training'}, "no split 'training'"),
    ({'data.test_split': 'testing'}, "no split 'testing'"),
    ({'augment.jitter.probability': 2.0}, 'probability'),
    ({'data.augment_on': 'gpu'}, "data.augment_on is 'gpu': it takes 'host' or 'device'"),
    ({'data.transfer': 'float16'}, "data.transfer is 'float16'; it takes 'uint8'"),
    ({'data.pad_to': 20}, 'data.pad_to is 20; it must be at least 32'),
    ({'augment.view2': {'blurr': {'probability': 0.1}}}, "'blurr'"),
], ids=lambda value: ' '.join(value) if isinstance(value, dict) else '')
def test_what_cannot_train_is_named_before_anything_is_written(overrides, sentence, tmp_path):
    view2 = overrides.pop('augment.view2', {})
    config = small_config(**{'encoder.name': 'resnet'})
    with config.unlocked():
        for name, value in overrides.items():
            block, _, field = name.rpartition('.')
            (config[block] if block else config)[field] = value
    config.augment.view2 = view2
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        pretrain(config, str(tmp_path / 'workdir'))
    assert not (tmp_path / 'workdir').exists()


def save_npz(path, *, labels=None, test_labels=None, size=16):
    images, classes = make_shapes('train', size, 64)
    test_images, test_classes = make_shapes('test', size, 40)
    arrays = {'train_images': images, 'test_images': test_images}
    if labels:
        arrays['train_labels'] = classes.astype(labels)
    if test_labels:
        arrays['test_labels'] = test_classes.astype(test_labels)
    np.savez(path, **arrays)
    return f'arrays:{path}'


def test_labels_of_any_integer_type_are_measured_and_probed(tmp_path):
    source = save_npz(tmp_path / 'set.npz', labels=np.uint8, test_labels=np.uint8)
    config = small_config(**SPLITS, **{'data.source': source})
    results = pretrain(config, str(tmp_path / 'w'))
    assert set(results) == {'random', 'pretrained'}
    assert all(0 <= value <= 1 for row in results.values() for value in row.values())
    assert set(linear(config, str(tmp_path / 'w'))) == {'random', 'pretrained'}
    rows = [json.loads(line) for line in (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()]
    assert [(row['evaluation'], row['encoder']) for row in rows] == [
        ('frozen', 'random'), ('frozen', 'pretrained'), ('linear', 'random'), ('linear', 'pretrained')]


@pytest.mark.parametrize('labels, sentence', [
    (None, 'No labels: the online probe, kNN and the linear probe are off.'),
    (np.int64, 'No labels in test: kNN and the linear probe are off.'),
], ids=['no labels', 'no test labels'])
def test_what_cannot_be_measured_is_said_and_training_goes_on(labels, sentence, tmp_path, capsys):
    source = save_npz(tmp_path / 'set.npz', labels=labels)
    assert pretrain(small_config(**SPLITS, **{'data.source': source}), str(tmp_path / 'w')) == {}
    said = capsys.readouterr().out
    assert sentence in said
    assert not (tmp_path / 'w' / 'results.jsonl').exists()
    assert said.endswith(f'Finished: step 2 of 2; the encoder is in {tmp_path}/w. Nothing was measured: '
                         '--config.task=report shows nearest neighbours.\n')
    rows = [json.loads(line) for line in (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in rows] == [2] and {'loss', 'feature_rank'} <= rows[0].keys()     # every 4 steps


def test_what_python_gives_that_is_no_config_or_path_is_named(tmp_path):
    for config, workdir, sentence in (({'a': 1}, tmp_path, 'config is of dict'),
                                      (small_config(), None, 'A path was expected, not None'),
                                      (small_config(), '', '--workdir is empty')):
        with pytest.raises(ValueError, match=sentence):
            pretrain(config, workdir)


def test_a_folder_with_broken_files_trains_is_measured_and_counts_them(tmp_path, capsys, monkeypatch):
    for split, count in (('train', 64), ('test', 20)):
        images, labels = make_shapes(split, 20, count)
        for number, (image, label) in enumerate(zip(images, labels)):
            path = tmp_path / 'images' / split / f'class{label % 2}' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (tmp_path / 'images' / 'train' / 'class0' / 'broken.jpg').write_bytes(b'no image')
    (tmp_path / 'images' / 'test' / 'class1' / 'empty.png').write_bytes(b'')
    monkeypatch.chdir(tmp_path)
    results = pretrain(small_config(**SPLITS, **{'data.source': 'folder:images'}), str(tmp_path / 'w'))
    assert set(results) == {'random', 'pretrained'}
    kept = json.loads((tmp_path / 'w' / 'config.json').read_text())
    assert kept['data']['source'] == f'folder:{tmp_path}/images'
    monkeypatch.chdir('/')              # where the run, and what evaluates it, still finds its images
    assert pretrain(small_config(**SPLITS, **{'data.source': ''}), str(tmp_path / 'w')) == results
    assert set(linear(small_config(**SPLITS, **{'data.source': ''}), str(tmp_path / 'w'))) == {'random', 'pretrained'}
    said = capsys.readouterr().out
    assert '2 files could not be read and were skipped: class0/broken.jpg, class1/empty.png' in said


def test_the_raw_pixels_stand_beside_the_encoders_if_asked_for(tmp_path):
    config = small_config(**{'eval.pixel_floor': True})
    results = pretrain(config, str(tmp_path))
    assert list(results) == ['raw pixels', 'random', 'pretrained']
    assert all(set(row) == {'knn_accuracy'} for row in results.values())


def test_what_a_reader_would_not_expect_of_the_config_is_noted_once(tmp_path, capsys):
    pretrain(small_config('moco_v2', **{
        'method.queue_size': 128, 'eval.knn_k': 200,
        'optimizer.weight_decay_groups': (('^probe', 0.1),), 'optimizer.exclude': ('probe/kernel',)}),
        str(tmp_path / 'w'))
    shown = capsys.readouterr().out
    for sentence in ('method.queue_size is 128, more than the 64 images',
                     'eval.knn_k is 200, more than the 64 images: all are used.',
                     "optimizer.weight_decay_groups: '^probe' has no effect",
                     "optimizer.exclude: 'probe/kernel' has no effect"):
        assert shown.count(sentence) == 1, sentence


def test_a_workdir_is_that_of_its_config_from_the_first_step_on(tmp_path):
    """A run that failed in its first step lets go of the workdir, which is then no other config's."""
    config = small_config(**{'encoder.norm_groups': 3})
    for _ in range(2):
        with pytest.raises(ValueError, match='norm_groups=3'):
            pretrain(config, str(tmp_path))
    with pytest.raises(ValueError, match='made with another config'):
        pretrain(small_config(), str(tmp_path))


# --- the network that is measured, and what a log row says of it


@pytest.fixture(scope='module')
def measured_runs(tmp_path_factory):
    """{method: (workdir, variables of every encoder that the run measured)}, without the measuring."""
    runs = {}
    for method, encoder in (('simclr', 'online'), ('byol', 'target')):
        workdir, seen = tmp_path_factory.mktemp(method), []

        def accuracies(encode, *_, seen=seen, **__):
            seen.append(jax.device_get(encode.args[0]))
            return {'knn_accuracy': 0.5}

        with pytest.MonkeyPatch.context() as patch:
            for module in (floors, final):
                patch.setattr(module, 'frozen_accuracies', accuracies)
            pretrain(small_config(method, **{'eval.encoder': encoder, 'log.every_steps': 1}), str(workdir))
        runs[method] = str(workdir), seen
    return runs


def saved(workdir):
    return ocp.PyTreeCheckpointer().restore(f'{workdir}/checkpoints/2/state')


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('method', ['simclr', 'byol'])
def test_every_row_of_the_log_tells_spread_and_rank(method, measured_runs):
    lines = open(f'{measured_runs[method][0]}/metrics.jsonl').read().splitlines()
    rows = [row for row in map(json.loads, lines) if 'loss' in row]
    assert [row['step'] for row in rows] == [1, 2]
    for row in rows:
        for name, width in (('feature', 32), ('projection', 8 if method == 'byol' else 32)):
            assert 0 < row[f'{name}_spread'] <= 1
            assert 1 <= row[f'{name}_rank'] <= min(16, width)


def test_byol_measures_its_target_if_asked_to_and_before_training_the_one_it_began_with(measured_runs):
    workdir, (random, trained) = measured_runs['byol']
    assert_same(trained, saved(workdir)['method_state']['target'])
    for part in ('params', 'batch_stats'):
        assert jax.tree.structure(random[part]) == jax.tree.structure(trained[part])
    online = saved(workdir)['params']['encoder']
    assert (online['stem_conv']['kernel'] != trained['params']['encoder']['stem_conv']['kernel']).any()


def test_an_encoder_loads_from_its_workdir_online_or_target(measured_runs):
    workdir, _ = measured_runs['byol']
    state = saved(workdir)
    parts = {'online': {name: state[name] for name in ('params', 'batch_stats')},
             'target': state['method_state']['target']}
    for asked, encoder in (('online', 'online'), ('', 'target')):           # '': the run's eval.encoder
        pretrained = load_pretrained(workdir, network=asked)
        assert pretrained.whose == encoder and pretrained.network.predictor is None
        for kind in ('params', 'batch_stats'):
            assert set(pretrained.variables[kind]) == {'encoder', 'head'}
            assert_same(pretrained.variables[kind],
                        {part: parts[encoder][kind][part] for part in ('encoder', 'head')})
            assert jax.tree.structure(pretrained.initial[kind]) == jax.tree.structure(
                pretrained.variables[kind])
    features = make_encode(pretrained.network)(pretrained.variables, np.zeros((2, 16, 16, 3), np.uint8))
    assert features.shape == (2, 32)


def test_the_floor_is_the_online_network_before_training(measured_runs):
    for method, (workdir, (random, _)) in measured_runs.items():
        initial = load_pretrained(workdir).initial['params']['encoder']
        same = jax.tree.map(np.array_equal, initial, random['params']['encoder'])
        # BYOL's target starts elsewhere; scales and biases start at one and zero everywhere.
        assert all(jax.tree.leaves(same)) == (method == 'simclr')


@pytest.mark.parametrize('encoder, sentence', [
    ('target', 'has no target network, only an online one'), ('teacher', "'teacher'.*'online' or 'target'")])
def test_a_network_that_a_run_does_not_have_is_refused(encoder, sentence, measured_runs, tmp_path):
    workdir, _ = measured_runs['simclr']
    with pytest.raises(ValueError, match=sentence):
        load_pretrained(workdir, network=encoder)
    with pytest.raises(ValueError, match=sentence):
        linear(small_config(**{'linear.encoder': encoder, 'linear.pretrained': workdir}), str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()


def test_a_linear_evaluation_of_the_target_says_so(measured_runs, tmp_path, monkeypatch):
    workdir, _ = measured_runs['byol']
    seen = []

    def fit(batches, features_of, *, width, num_classes, **_):
        seen.append(jax.device_get(features_of(next(batches))))
        return np.zeros((width, num_classes)), np.zeros(num_classes)

    monkeypatch.setattr(linear_module, 'fit_classifier', fit)
    for encoder in ('target', 'online'):
        linear(small_config(**{'linear.encoder': encoder, 'linear.pretrained': workdir}), str(tmp_path))
    (random, target), (random_again, online) = seen[:2], seen[2:]
    np.testing.assert_array_equal(random, random_again)         # the same crops
    assert np.abs(target - online).max() > 1e-4
    rows = [json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]
    assert [row['protocol']['encoder'] for row in rows] == ['target', 'target', 'online', 'online']


def test_a_workdir_from_before_there_were_targets_still_loads(measured_runs, tmp_path):
    workdir, _ = measured_runs['simclr']
    old = shutil.copytree(workdir, tmp_path / 'old')
    config = json.loads((old / 'config.json').read_text())
    for name in ('predictor', 'encoder_chunks', 'shard_state'):
        del config[name]
    for group, name in (('eval', 'encoder'), ('encoder', 'remat'), ('linear', 'encoder'),
                        ('method', 'decoupled'), ('optimizer', 'rate_in_momentum')):
        config[group].pop(name, None)
    for name in ('bias', 'final_bias', 'norm', 'final_norm', 'init_stddev'):
        config['head'].pop(name, None)
    (old / 'config.json').write_text(json.dumps(config))
    now, then = load_pretrained(workdir), load_pretrained(str(old))
    assert then.whose == 'online' and then.network == now.network
    assert_same((then.variables, then.initial), (now.variables, now.initial))


# --- images as users have them


def test_a_folder_without_a_test_split_is_measured_on_a_tenth_that_is_kept(tmp_path, capsys):
    """Twelve-bit drawings in two class folders of 20, and one file that is no image."""
    root, rng = tmp_path / 'images', np.random.default_rng(0)
    for number in range(40):
        folder = root / f'kind{number % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        array = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        array[0, :2] = 0, 4095
        Image.fromarray(array).save(folder / f'{number:02}.png')
    (root / 'kind0/notes.txt').write_text('words')
    config, workdir = small_config(**SPLITS, **{'data.source': f'folder:{root}'}), tmp_path / 'w'
    results = pretrain(config, str(workdir))
    printed = capsys.readouterr().out
    assert set(results) == {'random', 'pretrained'} and 'train: 36 images, 2 classes' in printed
    for note in ('1 files are not images of a known format and are left out: 1 .txt.',
                 'uint16 images: 0 to 4095, the extremes of 40 of them, become 0 to 255 (data.range).',
                 '4 images, 10 % of each class, are held out of training (data.test_split='):
        assert note in printed
    kept = json.loads((workdir / 'config.json').read_text())['data']
    assert kept['test_split'] == '10%' and kept['range'] == [0, 4095]

    again = pretrain(config, str(workdir))       # a finished run, measured again
    assert again['pretrained'] == results['pretrained']
    for change, sentence in (({'test_split': 'none'}, "data.test_split is 'none', but the run began with "),
                             ({'range': (0, 255)}, r'data.range is \(0, 255\), but the run began with')):
        config.data.update({'test_split': '', **change})
        with pytest.raises(ValueError, match=sentence):
            pretrain(config, str(workdir))
