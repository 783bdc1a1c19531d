"""The disk cache: the same pixels as the source, and never a cache that is not whole."""

import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import augment_config
from simclr_jax.data import cache, loading, pipeline
from simclr_jax.data.decode import BadImage
from simclr_jax.data.source import Source

SHAPES = [(300, 400), (400, 300), (256, 500), (200, 90), (1, 1), (1, 900), (301, 301), (700, 257)]


class Files(Source):
    """A source of encoded files in a folder that counts how often it is read."""

    uniform = False

    def __init__(self, folder):
        self.files = sorted(pathlib.Path(folder).glob('*.png'))
        self.labels = np.arange(len(self.files), dtype=np.int32)
        self.loads = 0
        super().__init__(f'folder:{folder}', 'train', len(self.files), tuple(f.stem for f in self.files))

    def load(self, index):
        self.loads += 1
        return self.files[index].read_bytes()

    def name_of(self, index):
        return self.files[index].name

    def fingerprint(self, *, with_times):
        assert with_times
        facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self.files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


@pytest.fixture
def pixels(tmp_path):
    """Images in tmp_path/images, and what is in them."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
    (tmp_path / 'images').mkdir()
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f'images/{number}.png', compress_level=1)
    return arrays


def build(tmp_path, kind='decoded', **options):
    source = Files(tmp_path / 'images')
    return cache.cached(source, kind, str(tmp_path / 'cache'), **options), source


def shards(tmp_path):
    return sorted((tmp_path / 'cache').glob('*/*.array_record'))


def assert_same(result, pixels):
    assert result.num_examples == len(pixels)
    for index, array in enumerate(pixels):
        np.testing.assert_array_equal(result.load(index), array)


def test_decoded_images_are_those_of_the_source_bit_for_bit(tmp_path, pixels):
    result, source = build(tmp_path)
    assert_same(result, pixels)
    assert result.load(0).dtype == np.uint8 and not result.uniform
    assert result.labels.dtype == np.int32 and result.labels.tolist() == list(range(len(SHAPES)))
    assert (result.name, result.split, result.class_names) == (source.name, 'train', source.class_names)
    assert result.name_of(3) == '3.png' and result.skipped == []


def test_resized_images_are_pillows_and_small_ones_are_not_enlarged(tmp_path, pixels):
    result, _ = build(tmp_path, 'resized:256')
    sizes = [(256, 341), (341, 256), (256, 500), (200, 90), (1, 1), (1, 900), (256, 256), (697, 256)]
    for index, (array, (height, width)) in enumerate(zip(pixels, sizes)):
        expected = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(result.load(index), np.asarray(expected))


def test_kinds_lie_side_by_side_and_a_second_call_reads_no_image_again(tmp_path, pixels):
    build(tmp_path), build(tmp_path, 'resized:256'), build(tmp_path, 'resized:128')
    for kind in ('decoded', 'resized:256', 'resized:128'):
        result, source = build(tmp_path, kind)
        assert source.loads == 0 and len(result) == len(pixels)
    assert_same(build(tmp_path)[0], pixels)


def test_any_thread_may_read_any_image(tmp_path, pixels):
    result, _ = build(tmp_path)
    indices = np.random.default_rng(0).integers(0, len(pixels), 100).tolist()
    with futures.ThreadPoolExecutor(4) as pool:
        for index, image in zip(indices, pool.map(result.load, indices)):
            np.testing.assert_array_equal(image, pixels[index])


def change_a_file(tmp_path):
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / 'images/2.png')


def add_a_file(tmp_path):
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / 'images/9.png')


def touch_a_file(tmp_path):
    os.utime(tmp_path / 'images/2.png', (1, 1))


def truncate_a_shard(tmp_path):
    os.truncate(shards(tmp_path)[0], 1000)


def remove_a_shard(tmp_path):
    shards(tmp_path)[0].unlink()


def empty_the_content(tmp_path):
    next((tmp_path / 'cache').glob('*/cache.json')).write_text('')


def change_content(tmp_path, **changes):
    path = next((tmp_path / 'cache').glob('*/cache.json'))
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_another_format(tmp_path):
    change_content(tmp_path, format=0)


def write_other_classes(tmp_path):
    change_content(tmp_path, class_names=['one', 'two'])


@pytest.mark.parametrize('harm', [change_a_file, add_a_file, touch_a_file, truncate_a_shard, remove_a_shard,
                                  empty_the_content, write_another_format, write_other_classes])
def test_what_is_not_the_cache_of_these_files_is_built_anew(tmp_path, pixels, harm, caplog):
    build(tmp_path)
    harm(tmp_path)
    result, source = build(tmp_path)
    assert source.loads and 'is rebuilt: ' in caplog.text
    assert_same(result, [np.asarray(Image.open(file)) for file in source.files])
    assert len(shards(tmp_path)) == 1
    assert build(tmp_path)[1].loads == 0


def test_a_damaged_record_is_named_and_the_others_stay_readable(tmp_path, pixels):
    result, _ = build(tmp_path)
    path, = shards(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1  # In the second image; the size stays the same.
    path.write_bytes(content)
    np.testing.assert_array_equal(result.load(0), pixels[0])
    sentence = rf"^Record 1 of the cache file '{path}' \(1.png\) is damaged or gone: delete that folder"
    with pytest.raises(ValueError, match=sentence):
        result.load(1)


def test_who_reads_a_cache_that_was_replaced_gets_no_other_images(tmp_path, pixels):
    old, _ = build(tmp_path)
    change_a_file(tmp_path)
    build(tmp_path)
    with pytest.raises(ValueError, match='is damaged or gone'):
        old.load(0)


def test_unreadable_images_are_left_out_and_named_and_the_others_keep_their_numbers(tmp_path, pixels):
    whole = (tmp_path / 'images/6.png').read_bytes()
    (tmp_path / 'images/1.png').write_bytes(b'')
    (tmp_path / 'images/6.png').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r'^1 of the 8 .* \(1.png\): 12.5%, more than data.max_bad_share'):
        build(tmp_path)  # One is enough.
    assert not shards(tmp_path)

    source = Files(tmp_path / 'images')
    source.max_bad_share = 0.25
    for _ in range(2):
        result = cache.cached(source, 'decoded', str(tmp_path / 'cache'))
        assert result.skipped == ['1.png', '6.png'] and result.max_bad_share == 0.25
        assert result.num_examples == 8 and result.labels.tolist() == list(range(8))
        for index, array in enumerate(pixels):
            assert (index in result.unreadable) == (index in (1, 6))
            if index in (1, 6):
                with pytest.raises(BadImage, match=f"^'{index}.png' could not be read"):
                    result.load(index)
            else:
                np.testing.assert_array_equal(result.load(index), array)
    with pytest.raises(ValueError, match=r'^2 of the 8 .* \(1.png, 6.png\): 25.0%, more than'):
        build(tmp_path)


def test_a_source_without_one_readable_image_is_refused(tmp_path, pixels):
    for file in (tmp_path / 'images').iterdir():
        file.write_bytes(b'')
    with pytest.raises(ValueError, match='^None of 8 images .* can be read'):
        build(tmp_path)


SLOW = """
import sys, time
sys.path[:0] = sys.argv[2:]
from simclr_jax.data import cache
from test_cache import Files

class Slow(Files):
    def load(self, index):
        if self.loads > 8 + 5:   # The sample, and then most of the images.
            print('now', flush=True)
            time.sleep(60)
        return super().load(index)

assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
cache.cached(Slow(sys.argv[1] + '/images'), 'decoded', sys.argv[1] + '/cache', num_threads=1, is_lead=False)
"""


def test_a_build_that_is_killed_leaves_no_cache_and_no_lock(tmp_path, pixels):
    paths = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[2])]
    process = subprocess.Popen([sys.executable, '-c', SLOW, str(tmp_path), *paths], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'now\n'
    half = shards(tmp_path)
    assert half and not list((tmp_path / 'cache').glob('*/cache.json'))

    with futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(build, tmp_path)
        with pytest.raises(futures.TimeoutError):  # The lock is held.
            waiting.result(0.2)
        process.kill()
        process.wait()
        result, source = waiting.result(30)
    assert source.loads == 2 * len(SHAPES)  # The sample and the images; nothing of the half is used.
    assert_same(result, pixels)
    assert not any(path.exists() for path in half)
    assert len([path for path in (tmp_path / 'cache').iterdir() if path.suffix != '.lock']) == 1


def test_two_at_once_build_one_cache(tmp_path, pixels):
    with futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(build, [tmp_path] * 2))
    assert sorted(source.loads for _, source in results) == [0, 2 * len(SHAPES)]
    for result, _ in results:
        assert_same(result, pixels)


class Endless(Files):
    """The same images over and over: more than any disk holds."""

    def __init__(self, folder):
        super().__init__(folder)
        self.num_examples = 10 ** 13
        self.labels = np.broadcast_to(np.int32(0), self.num_examples)

    def load(self, index):
        return super().load(index % len(self.files))


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, pixels):
    with pytest.raises(OSError, match=r'takes about [\d,.]+ GB, but .* has [\d,.]+ GB left: choose another'):
        cache.cached(Endless(tmp_path / 'images'), 'decoded', str(tmp_path / 'cache'))
    assert not shards(tmp_path)


def test_a_disk_that_runs_full_leaves_nothing(tmp_path, pixels):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(OSError, match='cannot be written .*: make room, or choose another'):
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in (tmp_path / 'cache').iterdir() if path.suffix != '.lock'] == []
    assert_same(build(tmp_path)[0], pixels)


class Streamed(Source):
    """A source that is read in order only, of encoded images."""

    def __init__(self, files):
        self.encoded = [file.read_bytes() for file in files]
        self.max_bad_share = 0.5
        super().__init__('streamed', 'train', len(files), None)

    def stream(self, *, seed, start, shard_index, shard_count):
        raise NotImplementedError

    def ordered(self, *, shard_index, shard_count, is_decoded):
        import tensorflow as tf
        assert (shard_index, shard_count, is_decoded) == (0, 1, False)
        examples = tf.data.Dataset.from_tensor_slices(self.encoded).enumerate()
        return examples.map(lambda index, image: {
            'image': image, 'label': tf.cast(index % 3, tf.int32), 'epoch': np.int64(0), 'index': index})

    def fingerprint(self, *, with_times):
        return 'as ever'


def test_a_streamed_source_gets_random_access(tmp_path, pixels):
    source = Streamed(sorted((tmp_path / 'images').iterdir()))
    source.encoded[3] = b'no image'
    for _ in range(2):
        result = cache.cached(source, 'resized:256', str(tmp_path / 'cache'))
        np.testing.assert_array_equal(result.load(5), pixels[5])
        assert result.load(0).shape == (256, 341, 3)
        assert result.skipped == ['example 3'] and result.name_of(4) == 'example 4'
        assert result.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        source.ordered = None  # The second call does not read.


def test_what_is_trained_on_is_the_same_with_and_without_a_cache(tmp_path, pixels):
    from simclr_jax.views.from_config import views_of  # imports jax, which a build must not

    view = views_of(augment_config(image_size=16, strength=1.0))[0]
    for number in range(8, 40):
        Image.fromarray(pixels[0][number:, :number]).save(tmp_path / f'images/{number}.png')
    (tmp_path / 'images/20.png').write_bytes(b'')
    source = loading.load_source(f'folder:{tmp_path}/images', 'train')
    crops = []
    for given in (source, cache.cached(source, 'decoded', str(tmp_path / 'cache'))):
        batches = pipeline.train_batches(
            given, seed=1, batch_size=20, form='crops', image_size=16, view1=view, view2=view)
        crops.append([next(batches) for _ in range(4)])
    for without, with_cache in zip(*crops):
        for name in ('crop1', 'crop2', 'label', 'epoch', 'index'):
            np.testing.assert_array_equal(without[name], with_cache[name])


def test_progress_counts_every_image_for_the_lead_alone(tmp_path, pixels, capsys):
    build(tmp_path)
    assert capsys.readouterr().out == f'cache of folder:{tmp_path}/images, train: 8 images\n'
    build(tmp_path, 'resized:9', is_lead=False)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('kind, directory, sentence', [
    ('resize:256', 'd', "^data.cache is 'resize:256'; it must be '', 'decoded', or 'resized:N'"),
    ('resized:0', 'd', "^data.cache is 'resized:0'; it must be"),
    ('decoded', '', '^data.cache is \'decoded\', but data.cache_dir is empty: name a directory.$')])
def test_a_wrong_argument_is_named(tmp_path, pixels, kind, directory, sentence):
    with pytest.raises(ValueError, match=sentence):
        cache.cached(Files(tmp_path / 'images'), kind, directory and str(tmp_path / directory))


def test_images_in_memory_need_no_cache(tmp_path, pixels):
    source = Files(tmp_path / 'images')
    source.uniform = True
    with pytest.raises(ValueError, match="are in memory: set data.cache to ''.$"):
        cache.cached(source, 'decoded', str(tmp_path))
