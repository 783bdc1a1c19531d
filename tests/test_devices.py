"""One device and eight (simulated) compute the same training run, whatever the method."""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from simclr_jax.config import base_config, smoke, use_method
from simclr_jax.data.shapes import make_shapes
from simclr_jax.models import resnet
from simclr_jax.runtime import sharding
from simclr_jax.train import build, pretrain

STEPS, BATCH, SIZE = 4, 32, 16
DEPTH = 4                                       # a stem with stride and pool, and one block: quickly compiled
MOCO = {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.05, 'encoder.norm_groups': 4,
        'method.momentum': 0.9, 'method.queue_size': 80}    # no multiple of the batch: keys wrap around
CASES = {
    'simclr': ('simclr', {}),
    'moco_v2 strided': ('moco_v2', MOCO),
    'moco_v2 shuffled': ('moco_v2', {**MOCO, 'method.key_groups': 'shuffled'}),
    'moco_v3': ('moco_v3', {}),
    'byol': ('byol', {}),
    'simsiam': ('simsiam', {}), 'barlow_twins': ('barlow_twins', {}), 'vicreg': ('vicreg', {}),
    'nnclr': ('nnclr', {'method.queue_size': 80}), 'sup_con': ('sup_con', {}),
    'instance_discrimination': ('instance_discrimination', {'method.negatives': 16}),
    'simclr_memory': ('simclr_memory', {'method.queue_size': 80, 'method.momentum': 0.9}),
    'byol, small views': ('byol', {}),
    'simclr in chunks': ('simclr', {'encoder_chunks': 2}),
}


class Run(NamedTuple):
    metrics: list[dict[str, float]]
    state: Any              # on the host
    start: Any              # the state that it started from, on the host
    bytes_per_device: int   # of the state at the end
    text: str               # of the compiled step


@pytest.fixture(scope='module', autouse=True)
def small_resnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DEPTHS, DEPTH, (resnet.BasicBlock, (1,)))
        yield


def make_config(method, overrides):
    config = smoke(base_config())
    use_method(config, method, num_layers=2, hidden_width=16, out_dim=8)
    config.batch_size = BATCH
    config.encoder.update({'depth': DEPTH, 'width': 0.25, 'stem': 'imagenet'})
    config.augment.image_size = SIZE
    config.optimizer.update({'learning_rate': 0.2, 'scaling': 'none'})
    config.schedule.warmup_epochs = 0.0
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def views(number):
    images, labels = make_shapes('train', SIZE, STEPS * BATCH)
    rows = slice(number * BATCH, (number + 1) * BATCH)
    noise = np.random.default_rng(number).normal(size=(2, BATCH, SIZE, SIZE, 3)).astype(np.float32)
    view1, view2 = images[rows] / np.float32(255) + 0.1 * noise
    index = np.arange(rows.start, rows.stop, dtype=np.int32)
    return {'view1': view1, 'view2': view2, 'label': labels[rows], 'index': index}


@functools.cache
def initial_state(case):
    mesh = sharding.make_mesh(jax.devices()[:1])
    _, init_state, _, _ = build(make_config(*CASES[case]), mesh, num_examples=STEPS * BATCH, num_classes=10,
                                num_steps=STEPS)
    return jax.device_get(jax.jit(init_state)())


@functools.cache
def train(case, num_devices, *, order=None, split=False):
    """A run of `case` on the first `num_devices` devices, the images of each batch in `order`."""
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    method, overrides = CASES[case]
    config = make_config(method, {**overrides, 'shard_state': split})
    _, init_state, train_step, shardings = build(
        config, mesh, num_examples=STEPS * BATCH, num_classes=10, num_steps=STEPS)
    # A split state is made where it lies, the others where it is cheap.
    state = (jax.jit(init_state, out_shardings=shardings)() if split
             else jax.device_put(initial_state(case), shardings))
    start = jax.device_get(state)
    step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    metrics = []
    for number in range(STEPS):
        rows = jax.tree.map(lambda leaf: leaf if order is None else leaf[list(order)], views(number))
        if 'small' in case:
            rows['small'] = np.stack([rows['view1'][:, :8, :8], rows['view2'][:, 8:, 8:]], axis=1)
        batch = sharding.put_batch(mesh, rows)
        if number == 0:
            step = step.lower(state, batch).compile()
        state, row = step(state, batch)
        metrics.append({name: float(value) for name, value in row.items() if name != 'trust_ratios'})
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    return Run(metrics, jax.device_get(state), start, held, step.as_text())


def assert_same(run, other):
    """Every metric of every step, every leaf of the last state, and bit for bit of the first."""
    jax.tree.map(np.testing.assert_array_equal, run.start, other.start)
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=str(path)),
        (run.metrics, run.state), (other.metrics, other.state))


def moved(text):
    """The shapes that a compiled program sends between devices and that could be an image's.

    These are all of an image's size or more, but for sums: of them, which gradients are too, only
    those with two spatial axes.
    """
    shapes = []
    for result, name in re.findall(r'= (.*?) ([a-z-]+?)(?:-start)?\(', text):
        for dims in re.findall(r'\[([\d,]+)\]', result):
            spatial = re.search(r'\b(16,16|8,8|4,4),\d', dims)
            large = math.prod(map(int, dims.split(','))) >= SIZE * SIZE * 3
            if (name in ('all-reduce', 'reduce-scatter') and spatial or large and name in (
                    'all-gather', 'all-to-all', 'ragged-all-to-all', 'collective-permute')):
                shapes.append(f'{name}[{dims}]')
    return shapes


@pytest.mark.parametrize('case', [case for case in CASES if 'chunks' not in case])
def test_eight_devices_make_the_run_of_one(case):
    one, eight = train(case, 1), train(case, 8)
    assert_same(eight, one)
    assert abs(one.metrics[-1]['loss'] - one.metrics[0]['loss']) > 1e-3         # it went somewhere
    for part in ('params', 'batch_stats', 'method_state'):
        leaves = [jax.tree.leaves(getattr(state, part)) for state in (one.start, one.state)]
        assert all((before != after).any() for before, after in zip(*leaves, strict=True))


def test_a_batch_that_eight_devices_cannot_share_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match='batch_size 60 is not divisible by the 8 devices'):
        pretrain(make_config('simclr', {'batch_size': 60}), str(tmp_path / 'workdir'))
    assert not (tmp_path / 'workdir').exists()


def test_a_queue_is_filled_in_order_and_wraps_around():
    state = train('moco_v2 strided', 8).state.method_state
    start = train('moco_v2 strided', 8).start.method_state
    assert start['pointer'] == 0 and state['pointer'] == STEPS * BATCH % 80
    np.testing.assert_allclose(np.linalg.norm(state['queue'], axis=1), 1.0, rtol=1e-5)
    assert not (state['queue'] == start['queue']).all(1).any()                  # 128 keys have passed


def test_eight_devices_in_chunks_make_the_run_of_one_whose_chunks_hold_the_same_images():
    """Each device cuts its own rows, so the chunks of one device are others unless its rows are laid
    out alike: first the first half of every device's images, then the second halves."""
    own = np.arange(BATCH).reshape(8, 2, -1)                                    # device, chunk, image
    alike = tuple(own.swapaxes(0, 1).ravel().tolist())
    eight = train('simclr in chunks', 8)
    assert_same(eight, train('simclr in chunks', 1, order=alike))
    whole = train('simclr', 8)
    assert abs(eight.metrics[0]['loss'] - whole.metrics[0]['loss']) > 1e-4      # other statistics


@pytest.mark.parametrize('case', ['simclr', 'moco_v2 strided', 'moco_v3', 'byol', 'simclr in chunks'])
def test_no_image_crosses_devices(case):
    assert 'all-reduce' in train(case, 8).text                                  # the devices do talk
    assert not moved(train(case, 8).text)


def test_shuffled_keys_move_images_which_the_search_for_moved_images_sees():
    assert moved(train('moco_v2 shuffled', 8).text)


@pytest.mark.parametrize('case', ['moco_v2 strided', 'byol'])
def test_a_split_state_makes_the_same_run_and_each_device_holds_a_part(case):
    whole, split = train(case, 8), train(case, 8, split=True)
    assert_same(split, whole)
    leaves = jax.tree.leaves(whole.state)
    assert whole.bytes_per_device == sum(leaf.nbytes for leaf in leaves)
    shared = [any(size % 8 == 0 for size in leaf.shape) for leaf in leaves]
    assert split.bytes_per_device == sum(
        leaf.nbytes // (8 if can else 1) for leaf, can in zip(leaves, shared))
    assert split.bytes_per_device < whole.bytes_per_device / 4
