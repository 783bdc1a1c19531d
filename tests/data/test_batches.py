"""From the host to the views: a data set in memory, the four forms, and the thread that reads ahead."""

import functools
import json
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.config import augment_config
from simclr_jax.data.batches import Inputs, Prefetch, centre_crops, choose_form, eval_batches
from simclr_jax.data.pipeline import epoch_and_index, train_batches
from simclr_jax.data.source import ArraySource
from simclr_jax.runtime import sharding
from simclr_jax.views import device as device_augment
from simclr_jax.views.fields import Blur, Crop, SmallViews, Solarize, View
from simclr_jax.views.from_config import views_of

SIZE, N, SEED = 8, 22, 5
VIEW = views_of(augment_config(image_size=SIZE, strength=0.5))[0]
PLAIN = View()      # no operation at all


def make_source(num_examples=N, size=SIZE):
    """Images whose first pixel tells their number."""
    images = np.random.default_rng(0).integers(0, 256, (num_examples, size, size, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_examples)
    labels = np.arange(num_examples, dtype=np.int32) % 3
    return ArraySource('numbers', 'train', images, labels, ('a', 'b', 'c'))


@functools.cache
def inputs_of(batch_size, view1, view2, seed, devices):
    """(inputs, their compiled views, the mesh)"""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    inputs = Inputs('memory', view1, view2, SIZE, seed, batch_size)
    return inputs, jax.jit(inputs.make_prepare(mesh)), mesh


def take(num_steps, *, batch_size, start=0, devices=1, view1=PLAIN, view2=PLAIN, seed=SEED):
    """The prepared batches of `num_steps` steps of the data set in memory, on the host."""
    inputs, prepare, mesh = inputs_of(batch_size, view1, view2, seed, devices)
    with inputs.batches(make_source(), mesh, start_step=start) as batches:
        with jax.transfer_guard('disallow'):
            prepared = [prepare(next(batches), sharding.put_replicated(mesh, np.int32(step)))
                        for step in range(start, start + num_steps)]
    return jax.device_get(prepared)


def test_memory_gives_the_examples_in_the_order_of_the_stream():
    batches = take(11, batch_size=6)
    numbers = np.concatenate([np.rint(255 * batch['view1'][:, 0, 0, 0]) for batch in batches])
    epoch, index = epoch_and_index(SEED, np.arange(66), N)
    np.testing.assert_array_equal(numbers, index)
    for e in range(3):                                                      # each example once an epoch
        assert sorted(numbers[epoch == e]) == list(range(N))
    labels = np.concatenate([batch['label'] for batch in batches])
    np.testing.assert_array_equal(labels, index % 3)
    np.testing.assert_array_equal(np.concatenate([batch['index'] for batch in batches]), index)


def test_memory_resumes_at_any_step_also_across_epochs():
    straight = take(9, batch_size=6, view1=VIEW, view2=VIEW)
    for start in (1, 3, 4, 8):                                              # 22 = 3 * 6 + 4
        resumed = take(9 - start, batch_size=6, start=start, view1=VIEW, view2=VIEW)
        jax.tree.map(np.testing.assert_array_equal, resumed, straight[start:])


def test_a_view_depends_on_seed_epoch_and_example_alone():
    six = take(11, batch_size=6, view1=VIEW, view2=VIEW)                    # three epochs
    eleven = take(6, batch_size=11, view1=VIEW, view2=VIEW)
    for name in ('view1', 'view2', 'label'):
        rows = [np.concatenate([batch[name] for batch in batches]) for batches in (six, eleven)]
        np.testing.assert_allclose(*rows, atol=1e-6)
    views = np.concatenate([batch['view1'] for batch in six])
    _, index = epoch_and_index(SEED, np.arange(66), N)
    first, second = (views[np.flatnonzero(index == 7)[e]] for e in (0, 1))
    assert abs(first - second).max() > 0.01                                 # another epoch, another view
    assert abs(six[0]['view1'] - six[0]['view2']).max(axis=(1, 2, 3)).min() > 0.01
    other = take(1, batch_size=6, view1=VIEW, view2=VIEW, seed=SEED + 1)
    assert abs(other[0]['view1'] - six[0]['view1']).max() > 0.01


def test_eight_devices_make_the_views_of_one():
    one, eight = (take(2, batch_size=16, view1=View(crop=VIEW.crop), view2=View(blur=Blur(1.0)), devices=devices)
                  for devices in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)


def test_the_views_have_operations_of_their_own():
    white = View(solarize=Solarize(1.0, threshold=0.0))
    batch, = take(1, batch_size=6, view1=PLAIN, view2=white)
    np.testing.assert_allclose(batch['view2'], 1.0 - batch['view1'], atol=1e-6)


def test_small_views_are_drawn_from_keys_of_their_own_and_leave_the_two_as_they_are():
    """In memory, and of files, where the host makes the crops."""
    mesh, source, small = sharding.make_mesh(jax.devices()[:1]), make_source(), SmallViews(View(crop=VIEW.crop), 3, 4)
    inputs = Inputs('memory', small.view, small.view, SIZE, SEED, 6, small=small)
    prepare = jax.jit(inputs.make_prepare(mesh))
    batch, alone = prepare(next(inputs.batches(source, mesh)), 0), take(
        1, batch_size=6, view1=small.view, view2=small.view)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), {name: batch[name] for name in alone}, alone)
    assert batch['small'].shape == (6, 3, 4, 4, 3)
    for row, place in ((0, 0), (5, 2)):
        key = jax.random.fold_in(jax.random.key(SEED), 0x51EB)
        for number in (0, int(batch['index'][row]), 2 + place):         # epoch, example, slot
            key = jax.random.fold_in(key, number)
        view = device_augment.augment(source.images[batch['index'][row]], key, small.view, image_size=4)
        np.testing.assert_allclose(batch['small'][row, place], view, atol=1e-6)

    crop = View(crop=Crop(1.0, 'uniform', (0.2, 0.5)))
    options = {'seed': SEED, 'batch_size': 6, 'form': 'crops', 'view1': crop, 'view2': crop, 'image_size': SIZE}
    with_small = next(train_batches(source, **options, small=SmallViews(crop, 3, SIZE)))
    without = next(train_batches(source, **options))
    for name in without:
        np.testing.assert_array_equal(with_small[name], without[name])
    crops = np.concatenate([with_small['small'], with_small['crop1'][:, None], with_small['crop2'][:, None]], axis=1)
    assert len(np.unique(crops[0].reshape(5, -1), axis=0)) == 5         # each its own box
    whole = next(train_batches(source, **options | {'view1': PLAIN}, small=SmallViews(PLAIN, 2, SIZE)))
    np.testing.assert_array_equal(whole['small'], np.stack([whole['crop1']] * 2, axis=1))


def make_prepare(form, view1=VIEW, view2=VIEW):
    return Inputs(form, view1, view2, SIZE, SEED, 4).make_prepare(sharding.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize('dtype, tolerance', [
    (np.uint8, 0.5 / 255), (jnp.bfloat16, 2 ** -9), (np.float32, 0.0)])
def test_views_of_the_host_arrive_as_floats(dtype, tolerance):
    values = np.random.default_rng(0).uniform(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    sent = np.rint(255 * values).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)
    batch = make_prepare('views')({'view1': sent, 'view2': sent, 'label': np.arange(4)}, 0)
    assert batch['view1'].dtype == batch['view2'].dtype == np.float32
    np.testing.assert_allclose(batch['view1'], values, atol=tolerance + 1e-7)
    np.testing.assert_array_equal(batch['label'], np.arange(4))


def test_crops_and_padded_images_become_the_views_of_their_keys():
    """A crop that fills its image: both forms, and the image in memory, then lack only the crop itself."""
    view = VIEW.replace(crop=Crop(0.0))
    images = make_source().images[:4]
    where = {'label': np.zeros(4, np.int32), 'epoch': np.int32([0, 0, 1, 2]), 'index': np.int32([3, 1, 4, 1])}
    box = np.tile(np.int32([2, 3, SIZE, SIZE]), (4, 1))
    padded = np.full((4, 2 * SIZE, 2 * SIZE, 3), 255, np.uint8)
    padded[:, 2:2 + SIZE, 3:3 + SIZE] = images
    of_crops = jax.jit(make_prepare('crops', view1=view, view2=view))(
        {'crop1': images, 'crop2': images, **where}, 0)
    of_padded = jax.jit(make_prepare('padded', view1=view, view2=view))(
        {'image': padded, 'box1': box, 'box2': box, **where}, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), of_crops, of_padded)
    root = jax.random.fold_in(jax.random.key(SEED), 0x51EB)
    one_view = jax.jit(functools.partial(device_augment.augment, view=view, image_size=SIZE))
    for row, (epoch, index) in enumerate(zip(where['epoch'], where['index'])):
        for slot, name in enumerate(('view1', 'view2')):
            key = root
            for number in (epoch, index, slot):
                key = jax.random.fold_in(key, number)
            alone = one_view(images[row], key)
            np.testing.assert_allclose(of_crops[name][row], alone, atol=1e-6)


def test_the_form_follows_from_source_and_config():
    source, files = make_source(), make_source()
    files.uniform = False

    def form(source, augment_on, pad_to=0):
        return choose_form(augment_on, source=source, image_size=SIZE, pad_to=pad_to)

    assert form(source, 'device') == form(source, 'device', 64) == 'memory'
    assert form(source, 'host') == form(files, 'host', 64) == 'views'
    assert form(files, 'device') == form(None, 'device') == 'crops'
    assert form(files, 'device', 64) == 'padded'
    with pytest.raises(ValueError, match="data.augment_on is 'gpu': it takes 'host' or 'device'"):
        form(source, 'gpu')


@pytest.mark.parametrize('form', ['views', 'crops', 'padded'])
def test_an_abstract_batch_is_what_the_form_takes(form):
    mesh = sharding.make_mesh(jax.devices()[:1])
    batch = Inputs(form, VIEW, VIEW, SIZE, SEED, 4, pad_to=32).abstract_batch(mesh)
    views = jax.eval_shape(make_prepare(form), batch, 0)
    image = (4, SIZE, SIZE, 3), 'float32'
    assert {name: (view.shape, view.dtype.name) for name, view in views.items()} == {
        'view1': image, 'view2': image, 'label': ((4,), 'int32'), 'index': ((4,), 'int32')}


# ---- reading ahead -----------------------------------------------------------------------------------


def threads_end(count):
    """Whether there are no more threads than `count` in a while."""
    deadline = time.time() + 10
    while threading.active_count() > count and time.time() < deadline:
        time.sleep(0.01)
    return threading.active_count() <= count


def test_reading_ahead_keeps_the_order_and_is_bounded():
    drawn = []

    def batches():
        for number in range(20):
            drawn.append(number)
            yield number

    before = threading.active_count()
    with Prefetch(batches(), lambda number: -number, ahead=3) as prefetch:
        assert [next(prefetch) for _ in range(3)] == [0, -1, -2]
        deadline = time.time() + 10
        while len(drawn) < 6 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(drawn) == 6              # three taken, and three ahead
        assert list(prefetch) == [-number for number in range(3, 20)]
    assert threads_end(before)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with Prefetch(iter(int, 1), lambda number: number) as prefetch:     # endless
        next(prefetch)
    assert threads_end(before)


def test_an_error_of_the_batches_reaches_the_loop():
    def batches():
        yield 1
        raise ValueError('More than 5 % of the images cannot be read.')

    with Prefetch(batches(), lambda number: number) as prefetch:
        assert next(prefetch) == 1
        with pytest.raises(ValueError, match='More than 5 %'):
            next(prefetch)


def test_the_time_that_the_loop_waited_is_counted():
    def batches():
        while True:
            time.sleep(0.05)
            yield 0

    with Prefetch(batches(), lambda number: number) as slow:
        for _ in range(4):
            next(slow)
        assert slow.waited > 0.1
    with Prefetch(iter(range(9)), lambda number: number) as fast:
        time.sleep(0.3)
        next(fast), next(fast)
        assert fast.waited < 0.05


# ---- evaluation --------------------------------------------------------------------------------------


def test_every_example_is_evaluated_once_whatever_the_batch():
    source = make_source(size=12)
    seen = list(eval_batches(source, batch_size=8, image_size=SIZE, crop_proportion=0.5))
    assert [len(batch['label']) for batch in seen] == [8, 8, 8] and seen[2]['valid'].sum() == 6
    labels = np.concatenate([batch['label'][batch['valid']] for batch in seen])
    np.testing.assert_array_equal(labels, source.labels)
    crops = centre_crops(seen[0]['image'], image_size=6, proportion=0.5)
    np.testing.assert_allclose(crops, source.images[:8, 3:9, 3:9] / np.float32(255), atol=1e-6)
    floats = np.zeros((2, 6, 6, 3), np.float32)
    assert centre_crops(floats, image_size=6, proportion=0.5).shape == floats.shape


# ---- where tensorflow is not installed ---------------------------------------------------------------

WITHOUT = """
import sys
for name in ('tensorflow', 'tensorflow_datasets'):
    sys.modules[name] = None            # importing it raises ImportError
from simclr_jax.evaluate.linear import linear
from simclr_jax.train import pretrain
from tests.evaluate.runs import small_config, task_config
file, workdir = sys.argv[1:]
config = small_config(source=f'arrays:{file}', train_split='train', test_split='test')
config.update({'num_train_steps': 1, 'batch_size': 32})
config.encoder.name = 'tests.encoders:OneBlock'
pretrain(config, workdir)
linear(task_config('linear', workdir, batch_size=32, num_epochs=1.0), workdir)
"""


def test_training_and_linear_evaluation_of_arrays_need_no_tensorflow(command, tmp_path):
    images = make_source(64, 20).images
    labels = np.arange(64) % 2
    np.savez(tmp_path / 'set.npz', train_images=images, train_labels=labels,
             test_images=images, test_labels=labels)
    _, options = command()
    arguments = f'{tmp_path}/set.npz', f'{tmp_path}/w'
    done = subprocess.run([sys.executable, '-c', WITHOUT, *arguments], timeout=300, **options)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()]
    assert {row['evaluation'] for row in rows} == {'frozen', 'linear'}
