"""The online probe's loss and accuracy, with labels missing and with several views of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods.probe import online_probe


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
