"""What the methods share: the two views as one batch, the target network, and the online probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from simclr_jax.methods.parts import (
    interleave_views,
    moving_average,
    online_probe,
    split_views,
    target_network,
    target_params,
)
from simclr_jax.models.building import make_network

COLLECTIVES = ('all-gather', 'all-to-all', 'all-reduce', 'reduce-scatter', 'collective-permute')


def program_on_eight_devices(function, shapes):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P('data'))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function, in_shardings=rows, out_shardings=rows).lower(*arguments).compile()
    return compiled.as_text()


def test_views_of_one_image_are_neighbours_and_come_back():
    view1 = np.arange(12.0).reshape(3, 2, 2)
    view2 = -view1
    rows = interleave_views(view1, view2)
    assert rows.shape == (6, 2, 2)
    for i in range(3):
        np.testing.assert_array_equal(rows[2 * i], view1[i])
        np.testing.assert_array_equal(rows[2 * i + 1], view2[i])
    back1, back2 = split_views(rows)
    np.testing.assert_array_equal(back1, view1)
    np.testing.assert_array_equal(back2, view2)


def test_no_image_moves_between_devices():
    images = [(16, 4, 4, 3)] * 2
    joined = program_on_eight_devices(interleave_views, images)
    split = program_on_eight_devices(split_views, [(32, 7)])
    assert not any(name in joined + split for name in COLLECTIVES)

    # What interleaving is for: the obvious alternative does move them.
    concatenated = program_on_eight_devices(lambda *pair: jnp.concatenate(pair), images)
    assert any(name in concatenated for name in COLLECTIVES)


def make_tree(seed, *names):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {name: {'dense': {'kernel': draw(3, 2), 'bias': draw(2)}} for name in names}


def test_a_target_is_the_network_without_predictor_and_probe():
    heads = {'mode': 'nonlinear', 'num_layers': 1, 'out_dim': 4}
    network = make_network(encoder={'depth': 10, 'width': 0.0625}, head=heads, predictor=heads, num_classes=3,
                           mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    target = target_network(network)
    assert (target.encoder, target.head) == (network.encoder, network.head)
    assert (target.mean, target.std) == (network.mean, network.std)
    images = jnp.zeros((1, 8, 8, 3))
    online, followed = (jax.eval_shape(lambda key: one.init(key, images, train=False), jax.random.key(0))
                        for one in (network, target))
    assert set(online['params']) == {'encoder', 'head', 'predictor', 'probe'}
    assert jax.tree.structure(followed['params']) == jax.tree.structure(target_params(online['params']))
    assert set(followed['params']) == {'encoder', 'head'}


@pytest.mark.parametrize('momentum', [0, 0.25, 0.999, 1])
def test_the_moving_average_is_its_formula_over_many_steps(momentum):
    step = jax.jit(moving_average)
    target = make_tree(0, 'encoder', 'head')
    expected = jax.tree.map(np.float64, target)
    for seed in range(1, 8):
        online = make_tree(seed, 'encoder', 'head', 'predictor', 'probe')
        target = step(target, online, momentum)
        expected = {name: jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * np.float64(new),
                                       expected[name], online[name]) for name in expected}
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), target, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(target)} == {jnp.dtype('float32')}


def make_logits(rows, classes=3):
    return np.random.default_rng(1).normal(size=(rows, classes)).astype(np.float32)


def by_hand(logits, labels):
    """Mean cross-entropy and accuracy of the rows with a label, one at a time in float64."""
    losses, hits = [], []
    for row, label in zip(np.float64(logits), labels, strict=True):
        if label >= 0:
            losses.append(np.log(np.exp(row).sum()) - row[label])
            hits.append(row.argmax() == label)
    return np.mean(losses), np.mean(hits)


@pytest.mark.parametrize('views', [1, 2, 3])
@pytest.mark.parametrize('labels', [[0, 2, 1, 1], [0, -1, 2, -1]])
def test_each_label_is_that_of_its_neighbouring_rows_and_unlabelled_rows_do_not_count(labels, views):
    logits = make_logits(views * len(labels))
    loss, metrics = jax.jit(online_probe)(logits, jnp.array(labels))
    expected, accuracy = by_hand(logits, [label for label in labels for _ in range(views)])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert set(metrics) == {'probe_loss', 'probe_accuracy'} and metrics['probe_loss'] == loss
    np.testing.assert_allclose(metrics['probe_accuracy'], accuracy, rtol=1e-6)
    assert {value.dtype for value in (loss, *metrics.values())} == {jnp.dtype('float32')}


def test_without_any_label_loss_accuracy_and_gradient_are_zero():
    (loss, metrics), gradient = jax.jit(
        jax.value_and_grad(online_probe, has_aux=True))(make_logits(4), jnp.full(4, -1))
    assert loss == 0 and metrics['probe_loss'] == 0 and metrics['probe_accuracy'] == 0
    assert not gradient.any()


def test_without_a_probe_there_is_no_loss_and_no_metric():
    loss, metrics = online_probe(None, jnp.array([0, 1]))
    assert loss == 0 and loss.shape == () and metrics == {}
