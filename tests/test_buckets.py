"""Every kind of path in gs:// and s3://, the table of docs/buckets.md (on disk: the parts' tests); stores that fail."""

import gzip
import io
import json
import os
import pathlib
import re
import subprocess
import threading
import time

import fsspec
import jax
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclr_jax import buckets, storage
from simclr_jax.data import bucket_listing
from simclr_jax.data.bucket_listing import Share
from simclr_jax.data.folder import Listing
from simclr_jax.data.loading import load_source
from simclr_jax.data.shapes import make_shapes
from simclr_jax.evaluate.embed import embed, read_features
from simclr_jax.evaluate.finetune import finetune
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.inspect.plan import plan
from simclr_jax.report.report import report
from simclr_jax.runtime.compile_cache import use_compile_cache
from simclr_jax.runtime.lock import WorkdirLock
from simclr_jax.studies.grid import Cell, Grid
from simclr_jax.studies.study import study
from simclr_jax.train import pretrain
from simclr_jax.training.checkpoint import Checkpointer
from simclr_jax.weights.write.export import export
from tests.evaluate.runs import small_config, task_config
from tests.stores import BUCKET, last_state

pytestmark = pytest.mark.usefixtures('one_device')
IMAGES, LABELS = make_shapes('train', 16, 48)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


def config(root, **fields):
    found = small_config(source=f'folder:{root}/images', train_split='train', test_split='none')
    found.batch_size, found.log.every_steps, found.checkpoint.every_epochs = 16, 1, 0.1
    found.update_from_flattened_dict(fields)
    return found


@pytest.fixture(scope='module', params=['gs', 's3'])
def root(request, tmp_path_factory, stores):
    """A path of each store with images, arrays, a TFDS set, and a run on the images in `run`."""
    root = f'{request.param}://{BUCKET}/top'
    for number, (image, label) in enumerate(zip(IMAGES, LABELS)):
        storage.write_atomically(f'{root}/images/{"train" if number < 32 else "test"}/{label % 2}/{number:02}.png',
                                 png(image))
    storage.write_by(f'{root}/arrays.npz', lambda file: np.savez(file, images=IMAGES, labels=LABELS))
    here = str(tmp_path_factory.mktemp('tfds'))
    tfds.dataset_builders.store_as_tfds_dataset(
        name='tiny', version='1.0.0', data_dir=here,
        split_datasets={'train': tf.data.Dataset.from_tensor_slices({'image': IMAGES, 'label': LABELS})},
        features=tfds.features.FeaturesDict({'image': tfds.features.Image(shape=(16, 16, 3)),
                                             'label': tfds.features.ClassLabel(num_classes=20)}))
    for path in filter(pathlib.Path.is_file, pathlib.Path(here).rglob('*')):
        storage.write_atomically(f'{root}/tfds/{path.relative_to(here)}', path.read_bytes())
    pretrain(config(root), f'{root}/run')
    return root


# ---- the table: a function for each kind of path; it is the kind's row, and its test in each column ---------


def checkpoints(root):
    with Checkpointer(f'{root}/run', read_only=True) as found:
        assert found.latest_step() == 2
        assert found.restore_encoder()['params']
    assert {name for name, is_dir in storage.scan(f'{root}/run/checkpoints') if is_dir} == {'1', '2'}


def config_and_versions(root):
    for name in ('config.json', 'versions.json', 'data.json'):
        assert json.loads(storage.read_bytes(f'{root}/run/{name}'))


def metrics_and_log(root):
    rows = storage.read_bytes(f'{root}/run/metrics.jsonl').decode().splitlines()
    assert [json.loads(row)['step'] for row in rows] == [1, 2]
    assert b'simclr on folder:' in storage.read_bytes(f'{root}/run/log.txt')


def tensorboard(root):
    (file, _), = storage.scan(f'{root}/run/tensorboard')
    assert storage.size(f'{root}/run/tensorboard/{file}') > 200


def results(root):
    settings = task_config('finetune', f'{root}/run', num_epochs=1.0, init='pretrained', batch_size=8)
    names = [name for label in (0, 1) for name, _ in storage.scan(f'{root}/images/train/{label}')]
    storage.write_atomically(f'{root}/subset.txt', '\n'.join(names[:20]).encode())
    settings.finetune.subset_file = f'{root}/subset.txt'
    settings.data.test_split = 'test'
    finetune(settings, f'{root}/tuned')
    lines = storage.read_bytes(f'{root}/tuned/results.jsonl').decode().splitlines()
    assert json.loads(lines[-1])['pretrained'] == f'{root}/run' and json.loads(lines[-1])['num_train'] == 20
    load_pretrained(f'{root}/tuned/finetuned.safetensors')          # weights


def report_page(root):
    report(task_config('report', '', max_images=8, num_queries=1, tsne=False), f'{root}/run')
    assert storage.size(f'{root}/run/report.html') > 1000 and storage.scan(f'{root}/run/report')


def embed_features(root):
    files = embed(task_config('embed', f'{root}/run', file='f.npz'), f'{root}/run')
    assert read_features(files[0]).features.shape[0] == 32


def export_files(root):
    export(task_config('export', f'{root}/run', formats=('flax',)), f'{root}/run')
    assert json.loads(storage.read_bytes(f'{root}/run/export/card.json'))['files']
    assert load_pretrained(f'{root}/run/export').step == 2


def plan_file(root):
    settings = config(root, **{'plan.search': False, 'batch_size': 16})
    plan(settings, f'{root}/plan')
    assert json.loads(storage.read_bytes(f'{root}/plan/plan.json'))['batch_size'] == 16


def study_pages(root):
    settings = config(root, **{'data.test_split': 'test'})
    with settings.unlocked():
        settings.study.grid = Grid('A study', ('kind',), (Cell(('one',), {}),), 'points', '')
    study(settings, f'{root}/study')
    assert storage.size(f'{root}/study/study.md') and storage.exists(f'{root}/study/cells/one/cell.json')


def data_folder(root):
    source = load_source(f'folder:{root}/images', 'train')
    assert len(source) == 32 and np.asarray(Image.open(io.BytesIO(source.load(3)))).shape == (16, 16, 3)
    assert source.fingerprint() == load_source(f'folder:{root}/images', 'train').fingerprint()


def data_arrays(root):
    np.testing.assert_array_equal(load_source(f'arrays:{root}/arrays.npz', 'train').images, IMAGES)


def data_tfds(root):
    source = load_source('tiny', 'train', data_dir=f'{root}/tfds', in_memory_bytes=1 << 30)
    np.testing.assert_array_equal(np.sort(source.images.sum(axis=(1, 2, 3))), np.sort(IMAGES.sum(axis=(1, 2, 3))))
    assert source.fingerprint()


def data_cache(root):
    here = storage.user_cache('of-tests')
    source = load_source(f'folder:{root}/images', 'train', cache='decoded', cache_dir=here)
    assert source.load(0).shape == (16, 16, 3)
    with pytest.raises(ValueError, match='name a local directory'):       # the cache itself is local
        load_source(f'folder:{root}/images', 'train', cache='decoded', cache_dir=f'{root}/cache')


def compile_cache(root):
    before = {name: getattr(jax.config, name) for name in (
        'jax_compilation_cache_dir', 'jax_persistent_cache_enable_xla_caches', 'jax_compilation_cache_max_size')}
    from jax.experimental.compilation_cache import compilation_cache as cc
    try:
        cc.reset_cache()
        assert use_compile_cache(f'{root}/programs') == ''
        jax.jit(lambda x: x * 3 + len(root))(np.arange(7.0)).block_until_ready()
        assert storage.scan(f'{root}/programs')
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        cc.reset_cache()


def lock(root):
    first, second = (WorkdirLock(f'{root}/run', is_lead=True) for _ in range(2))
    first.acquire()
    with pytest.raises(ValueError, match=rf'Another run is using .*/run \(process {os.getpid()}.*\): wait for it'):
        second.acquire()
    with first:
        pass
    with second:
        second.acquire()


KINDS = {'checkpoints': checkpoints, 'config.json, versions.json, data.json': config_and_versions,
         'metrics.jsonl, log.txt': metrics_and_log, 'TensorBoard': tensorboard,
         'results.jsonl, finetune.subset_file, weights': results, 'report': report_page, 'embed': embed_features,
         'export': export_files, 'plan': plan_file, 'study': study_pages, 'data: `folder:`': data_folder,
         'data: `arrays:`': data_arrays, 'data: TFDS, `data.dir`': data_tfds,
         'data.cache (local), of images in': data_cache, 'compile_cache': compile_cache, 'the lock of a workdir': lock}


@pytest.mark.parametrize('kind', KINDS)
def test_a_path_of_every_kind(kind, root):
    before = set(os.listdir('.'))
    KINDS[kind](root)
    assert set(os.listdir('.')) == before         # no ./gs:


def test_the_page_has_this_table():
    page = (pathlib.Path(__file__).parent.parent / 'docs' / 'buckets.md').read_text()
    assert re.findall(r'^\| (.+) \| yes \| yes \| yes \|$', page, re.MULTILINE) == list(KINDS)


# ---- what is refused, in a sentence ----------------------------------------------------------------------


@pytest.mark.parametrize('workdir, sentence', [
    ('hdfs://host/run', "cannot hold a run: a workdir is a local directory, gs://BUCKET/... or s3://BUCKET/"),
    ('gs:/bucket/run', 'is not a path in a bucket: write gs://bucket/run'),
    (f'gs://{BUCKET}', 'is a whole bucket: name a directory in it'),
    ('gs://no-such-bucket/run', "There is no bucket 'gs://no-such-bucket': make it, or correct the name"),
    ('s3://no-such-bucket/run', "There is no bucket 's3://no-such-bucket': make it, or correct the name")])
def test_a_workdir_that_will_not_do_is_refused_before_anything_is_made(workdir, sentence, stores, tmp_path,
                                                                      monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, storage.StoreError), match=re.escape(sentence)):
        pretrain(small_config(), workdir)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('store, status, sentence', [
    *((store, 403, 'this account has no permission to do that') for store in ('gs', 's3')),
    ('gs', 401, 'credentials')])            # S3 answers 403
def test_no_permission_to_write_and_no_credentials_are_told(store, status, sentence, stores):
    with stores[store].failing(lambda method, path: status if method in ('PUT', 'POST') else None):
        with pytest.raises(storage.StoreError, match=sentence):
            storage.check_workdir(f'{store}://{BUCKET}/forbidden')


def test_s3_without_any_credentials_is_told(stores, monkeypatch, tmp_path):
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'):
        monkeypatch.setenv(name, str(tmp_path / 'none'))
    fsspec.get_filesystem_class('s3').clear_instance_cache()        # a process makes one client
    with pytest.raises(storage.StoreError, match='no credentials were found.*aws configure'):
        storage.check_workdir(f's3://{BUCKET}/run')
    fsspec.get_filesystem_class('s3').clear_instance_cache()


def test_a_lock_that_another_host_renews_no_more_is_taken_over(stores, monkeypatch):
    first, second = (WorkdirLock(f's3://{BUCKET}/taken-over', is_lead=True) for _ in range(2))
    monkeypatch.setattr('simclr_jax.runtime.lock.DEAD', 1.0)
    monkeypatch.setattr('simclr_jax.runtime.lock.RENEWED', 0.2)
    main = threading.main_thread()          # renewed is a lock by a thread
    monkeypatch.setattr('socket.gethostname', lambda: 'here' if threading.current_thread() is main else 'another-host')
    with first, second:
        first.acquire()
        time.sleep(0.5)
        with pytest.raises(ValueError, match='Another run is using .* on another-host'):
            second.acquire()
        monkeypatch.setattr('simclr_jax.runtime.lock.RENEWED', 3.0)        # as if it were stopped
        time.sleep(0.5)
        second.acquire()
        first.check()
        time.sleep(2.0)
        with pytest.raises(ValueError, match='Another run has taken over .*taken-over'):
            first.check()
        second.check()


def test_the_command_names_a_missing_package_and_makes_nothing(command, tmp_path):
    (tmp_path / 'gcsfs.py').write_text('raise ImportError("No module named gcsfs", name="gcsfs")')
    argv, keywords = command('--config=configs/smoke.py:smoke', '--workdir=gs://bucket/run')
    keywords['env']['PYTHONPATH'] += os.pathsep + str(tmp_path)
    done = subprocess.run(argv, timeout=120, **keywords)
    assert done.returncode == 1
    assert "error: 'gs://bucket/run" in done.stderr and "pip install 'simclr_jax[gcs]'" in done.stderr
    assert 'Traceback' not in done.stderr and not os.path.exists('gs:')


# ---- patience ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('store', ['gs', 's3'])
@pytest.mark.parametrize('fault', [429, 503, 'reset'])
def test_a_store_that_is_busy_is_asked_again(fault, store, stores):
    proxy, path = stores[store], f'{store}://{BUCKET}/busy/{fault}'
    storage.write_atomically(path, b'1')
    with proxy.failing(lambda method, path: fault if proxy.count < 3 else None):
        storage.write_atomically(path, b'2')
    with proxy.failing(lambda method, path: fault if proxy.count < 3 else None):
        assert storage.read_bytes(path) == b'2'
    assert proxy.count == 3


@pytest.mark.parametrize('store', ['gs', 's3'])
def test_one_that_stays_away_is_given_up_once(store, stores, monkeypatch):
    monkeypatch.setenv('SIMCLR_JAX_PATIENCE', '1')
    path = f'{store}://{BUCKET}/away'
    storage.write_atomically(path, b'1')
    with stores[store].failing(lambda method, path: 'reset'):
        with pytest.raises(storage.StoreError, match=f"'{store}://' has not answered for 1 s .*same command resumes"):
            storage.read_bytes(path)
        started = time.monotonic()
        with pytest.raises(storage.StoreError):
            storage.write_atomically(path, b'2')
        assert time.monotonic() - started < 1
    assert storage.read_bytes(path) == b'1'


def test_a_run_whose_store_goes_away_names_its_last_good_checkpoint(stores, monkeypatch):
    monkeypatch.setenv('SIMCLR_JAX_PATIENCE', '1')
    root, proxy, is_away = f'gs://{BUCKET}/gone', stores['gs'], []

    class Cut:
        def write(self, step, metrics):
            if step == 5:
                while not storage.exists(f'{root}/checkpoints/4/commit_success.txt'):
                    time.sleep(0.1)         # it is written while the run goes on
                is_away.append(step)

        note = image = lambda self, *_: None

    settings = small_config(test_split='none')
    settings.num_train_steps, settings.batch_size, settings.log.every_steps = 8, 16, 1
    settings.checkpoint.every_epochs = 0.25         # every 2 steps
    with proxy.failing(lambda method, path: 'reset' if is_away else None):
        with pytest.raises(OSError, match='the last good one is that of step 4.*the same command resumes'):
            pretrain(settings, root, writers=[Cut()])
    buckets.call(f'{root}/config.json', 'exists')
    with Checkpointer(root, read_only=True) as found:
        assert found.latest_step() == 4
    rows = storage.read_bytes(f'{root}/metrics.jsonl').decode().splitlines()
    assert len(rows) == 4                           # what is published is what the checkpoint holds
    pretrain(settings, root)                        # on this host the lock of a run that is gone is no hindrance
    rows = storage.read_bytes(f'{root}/metrics.jsonl').decode().splitlines()
    assert [json.loads(row)['step'] for row in rows] == list(range(1, 9))


# ---- killed, and resumed -------------------------------------------------------------------------------------


def test_a_run_killed_in_a_bucket_ends_as_the_unbroken_one(run_main, stores, tmp_path):
    arguments = ('--config=configs/smoke.py:smoke', '--config.num_train_steps=10', '--config.batch_size=16',
                 '--config.augment.image_size=16', '--config.encoder.name=tests.encoders:OneBlock',
                 '--config.data.train_split=train[:64]', '--config.checkpoint.every_epochs=0.5',       # every 2 steps
                 '--config.log.every_steps=1', '--config.data.test_split=none')
    workdir = f'gs://{BUCKET}/killed'
    assert run_main(*arguments, f'--workdir={workdir}', signalled='9 5').returncode == -9
    step = last_state(workdir)[0]
    rows = storage.read_bytes(f'{workdir}/metrics.jsonl').decode().splitlines()
    assert 0 < step <= len(rows) < 10
    done = run_main(*arguments, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert f'resumed at step {step}/10' in done.stdout
    straight = run_main(*arguments, f'--workdir={tmp_path}')
    assert straight.returncode == 0, straight.stderr
    (last, state), (_, expected) = last_state(workdir), last_state(str(tmp_path))
    assert last == 10
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    rows = storage.read_bytes(f'{workdir}/metrics.jsonl').decode().splitlines()
    assert [json.loads(row)['step'] for row in rows] == list(range(1, 11))


# ---- large listings --------------------------------------------------------------------------------------------


def test_each_host_lists_its_share_of_the_directories(stores):
    root, asked = f'gs://{BUCKET}/shared', []
    for number in range(12):
        storage.write_atomically(f'{root}/class{number % 6}/{number}.png', b'x')

    def other_of(mine):         # what a second process, with the other classes, would give
        files = json.loads(gzip.decompress(mine)) if mine[:2] == b'\x1f\x8b' else None
        if files is None:       # neither has a list that is kept
            return [mine, mine]
        assert {file[:6] for file in files} == {'class0', 'class2', 'class4'}
        return [mine, gzip.compress(json.dumps({f'class{n % 6}/{n}.png': 1 for n in range(12) if n % 2}).encode())]

    with stores['gs'].failing(lambda method, path: asked.append(path)):
        found = Listing(root, Share(0, 2, other_of))
    assert not [path for path in asked if 'class1' in path]
    assert found.notes == [] and found.names() == ([f'class{n}' for n in range(6)], [])
    assert found.sizes['class1/7.png'] == 1


def test_a_long_listing_is_kept_and_not_made_again(stores, monkeypatch):
    monkeypatch.setattr(bucket_listing, 'KEPT_FROM', 5)
    root, asked = f'gs://{BUCKET}/kept', []
    for number in range(7):
        storage.write_atomically(f'{root}/{number % 2}/{number}.png', b'x')
    note, = Listing(root).notes
    assert '7 files, as listed on' in note and os.path.exists(note.rpartition('remove ')[2].rstrip('.'))
    bucket_listing.forget()                # as the next run does
    with stores['gs'].failing(lambda method, path: asked.append(path)):
        found = Listing(root)
        assert found.notes == [note] and found.names('1') == ([], ['1.png', '3.png', '5.png'])
    assert not asked
