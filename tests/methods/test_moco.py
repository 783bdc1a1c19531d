"""MoCo v2 and v3 step by step against float64 numpy, their queue, and who shares statistics with whom."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.methods.moco import enqueue
from simclr_jax.training.optimizers import make_optimizer
from simclr_jax.training.steps import make_init_state, make_train_step
from tests.methods.small_network import (
    SIZE,
    assert_trees_close,
    finite_differences,
    float64,
    lars,
    make_batch,
    make_network,
    predict,
    start,
    unit,
)

N, WIDTH = 6, 8     # images of a batch, and the units of a hidden layer
DECAY = 0.01


def start_training(name, groups=1, optimizer=make_optimizer('sgd'), seed=0, learning_rate=0.0, **settings):
    """The initial state as a function of nothing, and the step, both compiled."""
    method = make_method('moco', network=make_network(name, WIDTH, groups)[0], **{'num_train_steps': 5, **settings})
    init_state = make_init_state(method, optimizer, seed=0, image_size=SIZE)
    rate = learning_rate if callable(learning_rate) else lambda step: jnp.float32(learning_rate)
    return jax.jit(init_state), jax.jit(make_train_step(method, optimizer, rate, seed=seed))


def embed(params, images, *norm):
    """Unit rows: the prediction if the parameters have a predictor, else the projection."""
    return unit(predict(params, images, *norm))


def cross_entropy(logits, labels):
    """torch.nn.CrossEntropyLoss."""
    return np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels)])


def follow(target, params, momentum):
    return jax.tree.map(lambda k, q: k * momentum + q * (1 - momentum), target,
                        {name: params[name] for name in target})


def moments_of(batch_stats):
    """The running mean and variance [2, C] of the encoder's BatchNorm, the only one of v2."""
    norm = batch_stats['encoder']['norm']
    return np.stack([norm['mean'], norm['var']])


def strided(rows, groups):
    return [np.arange(rows)[g::groups] for g in range(groups)]


def contiguous(rows, groups):
    return np.split(np.arange(rows), groups)


@pytest.mark.parametrize('symmetric', [False, True])
def test_every_step_of_v2_is_the_originals(symmetric):
    """moco/builder.py forward, the demo notebook's when symmetric, with torch.optim.SGD, in float64."""
    groups = 1 if symmetric else 2
    size, momentum, temperature = 2 * N + 5 if symmetric else N + 1, 0.7, 0.2  # not a multiple of the keys
    rate = lambda step: 0.5 / (1 + step)
    init_state, train_step = start_training(
        'moco_v2', groups,
        make_optimizer('sgd', momentum=0.9, weight_decay_groups=(('', DECAY),)), learning_rate=rate,
        temperature=temperature, momentum=momentum, queue_size=size, symmetric=symmetric)

    state = init_state()
    q, k = float64(state.params), float64(state.params)
    velocity = jax.tree.map(np.zeros_like, q)
    queue, pointer = np.float64(state.method_state['queue']), 0
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, rtol=1e-6)
    running, running_k = (moments_of(state.variables(name)['batch_stats']) for name in ('online', 'target'))
    for step in range(6):
        batch = make_batch(step, N)
        k = follow(k, q, momentum)
        assert_trees_close(state.method_state['target']['params'], k)
        views = [batch['view1'], batch['view2']]
        pairs = [(0, 1), (1, 0)] if symmetric else [(0, 1)]
        stats_q, stats_k = [], []
        keys = {b: embed(k, views[b], strided(N, groups), stats_k) for _, b in pairs}

        def loss_of(params, stats=None):
            total = 0.0
            for a, b in pairs:
                query = embed(params, views[a], contiguous(N, groups), stats)
                positive = (query * keys[b]).sum(1, keepdims=True)
                logits = np.concatenate([positive, query @ queue.T], axis=1) / temperature
                total += cross_entropy(logits, [0] * N)
            return total

        loss, gradient = loss_of(q, stats_q), finite_differences(loss_of, q)
        running = 0.9 * running + 0.1 * np.mean(stats_q, axis=0)
        running_k = 0.9 * running_k + 0.1 * np.mean(stats_k, axis=0)
        velocity = jax.tree.map(lambda v, g, w: 0.9 * v + g + DECAY * w, velocity, gradient, q)
        q = jax.tree.map(lambda w, v: w - rate(step) * v, q, velocity)
        # The two keys of an image are neighbours here; the order within a step matters to nobody.
        for row in np.stack([keys[b] for b in sorted(keys)], axis=1).reshape(-1, 3):
            queue[pointer] = row
            pointer = (pointer + 1) % size

        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-3)
        assert_trees_close(state.params, q)
        assert_trees_close(state.method_state['queue'], queue)
        assert state.method_state['pointer'] == pointer
        assert_trees_close(moments_of(state.batch_stats), running)
        assert_trees_close(moments_of(state.method_state['target']['batch_stats']), running_k)


def test_every_step_of_v3_is_the_originals():
    """moco-v3 moco/builder.py forward and moco/optimizer.py LARS, in float64."""
    momentum, temperature, num_steps = 0.6, 0.8, 5
    rate = lambda step: 0.1 * (1 + step)
    init_state, train_step = start_training(
        'moco_v3', 1, make_optimizer('lars', rate_in_momentum=False, weight_decay=DECAY, trust_coefficient=0.1),
        learning_rate=rate, temperature=temperature, momentum=momentum, momentum_rises=True,
        queue_size=0, symmetric=True, num_train_steps=num_steps)
    state = init_state()
    assert set(state.method_state) == {'target'}

    q = float64(state.params)
    k = {name: q[name] for name in ('encoder', 'head')}
    velocity = jax.tree.map(np.zeros_like, q)
    everything = [np.arange(N)]  # synchronised, one pass a view
    for step in range(num_steps):
        batch = make_batch(10 + step, N)
        k = follow(k, q, 1 - (1 - momentum) * (1 + np.cos(np.pi * step / num_steps)) / 2)
        assert_trees_close(state.method_state['target']['params'], k)
        keys = [embed(k, batch[view], everything) for view in ('view1', 'view2')]

        def loss_of(params):
            total = 0.0
            for view, key in (('view1', keys[1]), ('view2', keys[0])):
                logits = embed(params, batch[view], everything) @ key.T / temperature
                total += cross_entropy(logits, range(N)) * 2 * temperature
            return total

        loss, gradient = loss_of(q), finite_differences(loss_of, q)
        velocity = lars(velocity, gradient, q, DECAY)
        q = jax.tree.map(lambda w, v: w - rate(step) * v, q, velocity)
        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
        assert_trees_close(state.params, q)
    assert_trees_close(state.method_state['target']['params'], k)  # at the end the momentum is 1


@pytest.mark.parametrize('size, count', [(6, 3), (7, 3), (5, 5), (11, 4), (13, 1)])
def test_the_queue_holds_the_last_keys_in_order_over_many_wraps(size, count):
    push = jax.jit(enqueue)
    rng = np.random.default_rng(0)
    queue = rng.normal(size=(size, 2)).astype(np.float32)
    state, oracle = {'queue': queue, 'pointer': jnp.int32(0)}, collections.deque(queue, maxlen=size)
    for pushed in range(1, 40):
        keys = rng.normal(size=(count, 2)).astype(np.float32)
        state = push(**state, keys=keys)
        oracle.extend(keys)
        assert state['pointer'] == pushed * count % size and state['pointer'].dtype == jnp.int32
        oldest_first = np.roll(state['queue'], -int(state['pointer']), axis=0)
        np.testing.assert_array_equal(oldest_first, np.stack(oracle))


@pytest.mark.parametrize('symmetric, size, keys', [(False, N - 1, N), (True, 2 * N - 1, 2 * N)])
def test_a_queue_of_less_than_one_step_is_refused_in_one_sentence(symmetric, size, keys):
    init_state, train_step = start_training('moco_v2', queue_size=size, symmetric=symmetric)
    with pytest.raises(ValueError, match=f'method.queue_size is {size}, less than the {keys} keys') as error:
        jax.eval_shape(train_step, jax.eval_shape(init_state), make_batch(0, N))
    assert '\n' not in str(error.value) and '. ' not in str(error.value)


def make_keys(key_groups, groups, symmetric=False):
    """(params, compiled (batch, key) -> keys that enter the queue) of a fresh target."""
    method, params, stats, method_state = start(
        'moco_v2', width=WIDTH, groups=groups, queue_size=64, key_groups=key_groups, symmetric=symmetric)
    return params, jax.jit(lambda batch, key: method.loss(
        params, stats, method_state, batch, key)[1].carry['keys'])


@pytest.mark.parametrize('key_groups, rows', [
    ('strided', [[0, 3], [1, 4], [2, 5]]), ('same', [[0, 1], [2, 3], [4, 5]])])
def test_keys_are_normalised_in_the_groups_that_are_asked_for(key_groups, rows):
    params, keys = make_keys(key_groups, groups=3)
    batch = make_batch(3, N)
    expected = embed(float64(params), batch['view2'], rows)
    np.testing.assert_allclose(keys(batch, jax.random.key(0)), expected, rtol=1e-3, atol=1e-4)


def test_shuffled_keys_are_those_of_random_groups_back_in_the_rows_of_their_queries():
    params, keys = make_keys('shuffled', groups=2)
    params, batch = float64(params), make_batch(3, N)
    splits = [[(0, *pair), tuple({1, 2, 3, 4, 5} - set(pair))]
              for pair in itertools.combinations(range(1, 6), 2)]          # all ten ways to halve six rows
    expected = np.stack([embed(params, batch['view2'], [list(half) for half in split])
                         for split in splits])
    drawn = []
    for seed in range(30):
        distance = np.abs(expected - keys(batch, jax.random.key(seed))).max((1, 2))
        drawn.append(distance.argmin())
        assert np.sort(distance)[0] < 1e-3 < 1e-2 < np.sort(distance)[1]
    assert len(set(drawn)) >= 7


def test_every_step_shuffles_anew_and_the_seed_decides_how():
    steps, histories = 4, []
    for seed in (0, 1):
        init_state, train_step = start_training('moco_v2', 2, seed=seed, queue_size=N * steps, key_groups='shuffled')
        for _ in range(2):
            state = init_state()
            for _ in range(steps):
                state, _ = train_step(state, make_batch(0, N))     # the same images, and a learning rate of 0
            histories.append(np.round(state.method_state['queue'].reshape(steps, -1), 3))
    np.testing.assert_array_equal(histories[0], histories[1])
    assert len(np.unique(histories[0], axis=0)) > 1
    assert not np.array_equal(histories[0], histories[2])


def test_a_group_of_symmetric_keys_mixes_all_groups_of_queries_equally():
    n, groups, views = 8, 2, ('view1', 'view2')
    _, keys = make_keys('strided', groups, symmetric=True)
    batch = make_batch(0, n)
    before = keys(batch, jax.random.key(0))
    rows = len(before)
    query_group = np.repeat(np.arange(groups), rows // groups)
    for image, (place, view) in itertools.product(range(n), enumerate(views)):
        changed = {**batch, view: batch[view].copy()}
        changed[view][image] = 1 - changed[view][image]
        # Whoever shares its statistics with this image has another key now.
        moved = np.abs(keys(changed, jax.random.key(0)) - before).max(1) > 1e-6
        assert moved[image * len(views) + place] and moved.sum() == rows // groups
        assert (np.bincount(query_group[moved], minlength=groups) == rows // groups**2).all()


@pytest.mark.parametrize('settings, message', [
    ({'momentum': 1.5}, 'method.momentum is 1.5'),
    ({'queue_size': -1}, 'method.queue_size is -1'),
    ({'key_groups': 'mixed'}, "method.key_groups is 'mixed': choose one of strided, shuffled, same"),
    ({'queue': 3}, "does not fit method 'moco'.*queue"),
])
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        start('moco_v2', **settings)
