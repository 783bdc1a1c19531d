"""Optimisers equal their formulas and optax, with exclusions and decay groups by path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax.training.leaves import Grouped
from simclr_jax.training.optimizers import make_optimizer, make_trust_ratios, make_update_metrics

RATES = [0.0, 0.3, 4.8, 1.7, 0.01]  # a warm-up that is not smooth: lr and momentum must not commute
DECAY = 0.05


def params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        'encoder': {'conv': {'kernel': normal(3, 3, 2, 4)},
                    'norm': {'scale': normal(4), 'bias': normal(4)}},
        'head': {'dense': {'kernel': normal(4, 3)}, 'frozen': {'kernel': np.zeros((3, 3), 'f')}},
        'probe': {'kernel': normal(4, 5), 'bias': normal(5)},
    }


ADAPTED = {  # what the official regexes batch_normalization, bias, head_supervised leave over
    'encoder': {'conv': {'kernel': True}, 'norm': {'scale': False, 'bias': False}},
    'head': {'dense': {'kernel': True}, 'frozen': {'kernel': True}},
    'probe': {'kernel': False, 'bias': False},
}


def gradients():
    """One tree a step; the same for every optimiser."""
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params())
            for _ in RATES]


def train(optimizer, tree=None):
    """Parameters after each step, the transformation built inside jit from a traced rate."""

    @jax.jit
    def step(tree, state, grads, learning_rate):
        updates, state = optimizer(learning_rate).update(grads, state, tree)
        return optax.apply_updates(tree, updates), state

    tree = params() if tree is None else tree
    state, history = optimizer(0.0).init(tree), []
    for learning_rate, grads in zip(RATES, gradients()):
        tree, state = step(tree, state, grads, jnp.float32(learning_rate))
        history.append(tree)
    return history


def by_hand(update):
    """Float64 parameters after each step of `update(w, v, g, lr, regular) -> w, v`."""
    treedef = jax.tree.structure(params())
    ws = [w.astype(np.float64) for w in jax.tree.leaves(params())]
    vs = [np.zeros_like(w) for w in ws]
    history = []
    for lr, grads in zip(RATES, gradients()):
        for k, (g, regular) in enumerate(zip(jax.tree.leaves(grads), jax.tree.leaves(ADAPTED))):
            ws[k], vs[k] = update(ws[k], vs[k], g.astype(np.float64), lr, regular)
        history.append(jax.tree.unflatten(treedef, list(ws)))
    return history


def assert_close(got, expected, rtol=1e-5, atol=1e-6):
    for ours, theirs in zip(got, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
                     ours, theirs)


def test_lars_equals_the_official_update_written_out():
    def update(w, v, g, lr, regular):
        trust = 1.0
        if regular:
            g = g + DECAY * w
            w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
            if w_norm > 0 and g_norm > 0:
                trust = 0.001 * w_norm / g_norm
        v = 0.9 * v + lr * trust * g
        return w - v, v

    assert_close(train(make_optimizer('lars', weight_decay=DECAY)), by_hand(update))


@pytest.mark.parametrize('groups', [(), (('^head/', 0.5),)])
def test_the_logged_trust_ratios_are_what_lars_multiplies_each_update_by(groups):
    settings = {'weight_decay': DECAY, 'weight_decay_groups': groups}
    trust_ratios, names = make_trust_ratios(**settings)
    tree, grads = params(), gradients()[0]
    assert names(tree) == ['encoder/conv/kernel', 'head/dense/kernel', 'head/frozen/kernel']
    lars = make_optimizer('lars', momentum=0.0, **settings)(1.0)
    updates, _ = lars.update(grads, lars.init(tree), tree)
    expected = []
    for (part, layer), decay in zip((('encoder', 'conv'), ('head', 'dense'), ('head', 'frozen')),
                                    (DECAY, *2 * (0.5 if groups else DECAY,))):
        direction = grads[part][layer]['kernel'] + decay * tree[part][layer]['kernel']
        expected.append(-np.mean(updates[part][layer]['kernel'] / direction))
    np.testing.assert_allclose(jax.jit(trust_ratios)(tree, grads), expected, rtol=1e-5)


@pytest.mark.parametrize('nesterov', [False, True])
def test_lars_with_the_rate_outside_equals_byols_update_written_out(nesterov):
    """byol/utils/optimizers.py: decay, trust ratio, momentum, and the learning rate last."""
    def update(w, v, g, lr, regular):
        trust = 1.0
        if regular:
            g = g + DECAY * w
            w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
            if w_norm > 0 and g_norm > 0:
                trust = 0.02 * w_norm / g_norm
        v = 0.9 * v + trust * g
        return w - lr * (trust * g + 0.9 * v if nesterov else v), v

    ours = make_optimizer('lars', rate_in_momentum=False, weight_decay=DECAY, trust_coefficient=0.02,
                          nesterov=nesterov)
    assert_close(train(ours), by_hand(update))


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_equals_its_update_written_out(nesterov):
    def update(w, v, g, lr, regular):
        g = g + DECAY * w * regular
        v = 0.8 * v + g
        return w - lr * (g + 0.8 * v if nesterov else v), v

    ours = make_optimizer('sgd', momentum=0.8, nesterov=nesterov, weight_decay=DECAY)
    assert_close(train(ours), by_hand(update))


def test_the_form_for_gpus_equals_the_plain_one():
    settings = {'weight_decay': DECAY, 'trust_coefficient': 0.02}
    assert_close(train(make_optimizer('lars', leaves=Grouped(), **settings)), train(make_optimizer('lars', **settings)))


@pytest.mark.parametrize('ours, theirs', [
    (make_optimizer('lars', weight_decay=DECAY, trust_coefficient=0.02, nesterov=True),
     lambda lr: optax.lars(lr, DECAY, ADAPTED, 0.02, trust_ratio_mask=ADAPTED, nesterov=True)),
    (make_optimizer('sgd'), lambda lr: optax.sgd(lr, 0.9)),
    (make_optimizer('adamw', weight_decay=DECAY, b1=0.8, b2=0.95),
     lambda lr: optax.adamw(lr, 0.8, 0.95, weight_decay=DECAY, mask=ADAPTED)),
])
def test_equals_optax_bit_for_bit(ours, theirs):
    assert_close(train(ours), train(theirs), rtol=0, atol=0)


@pytest.mark.parametrize('name', ['lars', 'sgd', 'adamw'])
def test_state_does_not_depend_on_the_learning_rate(name):
    optimizer = make_optimizer(name, weight_decay=DECAY)
    states = [optimizer(rate).init(params()) for rate in (0.0, jnp.float32(3.0))]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    jax.tree.map(np.testing.assert_array_equal, *states)
    counters = [x for x in jax.tree.leaves(states[0]) if x.ndim == 0]
    assert len(counters) == (1 if name == 'adamw' else 0)  # the train state's step is the clock


def decay_received(**settings):
    """Path -> the decay that one SGD step of rate 1 applied to a parameter of ones."""
    ones = jax.tree.map(jnp.ones_like, params())
    optimizer = make_optimizer('sgd', momentum=0.0, **settings)(1.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): -float(update.mean())
            for path, update in jax.tree.leaves_with_path(updates)}


def test_decay_spares_norms_biases_and_the_probe():
    assert decay_received(weight_decay=0.5) == {
        'encoder/conv/kernel': 0.5, 'encoder/norm/scale': 0, 'encoder/norm/bias': 0,
        'head/dense/kernel': 0.5, 'head/frozen/kernel': 0.5,
        'probe/kernel': 0, 'probe/bias': 0}


def test_first_matching_group_sets_the_decay():
    groups = (('^probe/kernel$', 0.25), ('^encoder/norm/', 0.125), ('kernel', 0.0))
    assert decay_received(weight_decay=0.5, weight_decay_groups=groups) == {
        'encoder/conv/kernel': 0, 'encoder/norm/scale': 0.125, 'encoder/norm/bias': 0.125,
        'head/dense/kernel': 0, 'head/frozen/kernel': 0,
        'probe/kernel': 0.25, 'probe/bias': 0}


def test_exclusions_are_a_choice():
    # A linear evaluation trains nothing but a probe, and may decay it.
    received = decay_received(weight_decay=0.5, exclude=('^encoder/',))
    assert received['probe/kernel'] == 0.5 and received['encoder/conv/kernel'] == 0
    assert received['probe/bias'] == 0


def test_lars_trains_the_probe_as_the_official_loss_term_does():
    """0.5 * decay * |w|^2 in the loss, and plain momentum SGD at the full rate."""
    history = train(make_optimizer(
        'lars', weight_decay=1e-6, weight_decay_groups=(('^probe/kernel$', DECAY),)))
    w, v = params()['probe']['kernel'].astype(np.float64), 0.0
    for lr, grads, tree in zip(RATES, gradients(), history):
        v = 0.9 * v + lr * (grads['probe']['kernel'] + DECAY * w)
        w = w - v
        np.testing.assert_allclose(tree['probe']['kernel'], w, rtol=1e-5, atol=1e-5)


def test_group_that_matches_nothing_is_refused():
    optimizer = make_optimizer('lars', weight_decay_groups=(('encodr/', 1e-4),))
    with pytest.raises(ValueError, match="weight_decay_groups: 'encodr/' matches no parameter"):
        optimizer(0.1).init(params())


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'adam': .* takes lars, sgd, adamw"):
        make_optimizer('adam')


@pytest.mark.parametrize('name', ['lars', 'sgd', 'adamw'])
def test_frozen_parameters_keep_every_bit_whatever_decay_and_gradient(name):
    params = {'first': {'kernel': jnp.ones((2, 3))}, 'second': {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)}}
    optimizer = make_optimizer(name, weight_decay=0.1, frozen=('(^|/)first/',))(0.5)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved['first']['kernel'], params['first']['kernel'])
    assert all((leaf != 1).all() for leaf in jax.tree.leaves(moved['second']))


def test_a_frozen_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.frozen: 'thrid' matches no parameter; the paths look like 'a/"):
        make_optimizer('sgd', frozen=('thrid',))(0.1).init({'a': {'kernel': jnp.ones((2, 2))}})


def test_the_norm_of_a_part_of_the_gradient_is_logged():
    gradients = {'patch_embed': {'kernel': jnp.full((2, 2), 3.0)}, 'rest': {'kernel': jnp.ones((2, 2))}}
    metrics = make_update_metrics('sgd', gradient_norms=('patch_embed',))(gradients, gradients)
    assert metrics == {'gradient_norm/patch_embed': 6.0}
    with pytest.raises(ValueError, match=r"log.gradient_norms: 'head' matches no parameter"):
        make_update_metrics('sgd', gradient_norms=('head',))(gradients, gradients)
