"""SupCon against the paper's formula in float64, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.objectives.nt_xent import nt_xent
from simclr_jax.objectives.sup_con import sup_con
from simclr_jax.runtime import sharding
from tests.objectives.test_info_nce import differences

LABELS = np.array([3, 0, 3, -1, 1, 3, -1, 0])


def make_views(seed=0, n=8, d=5):
    return np.random.default_rng(seed).normal(size=(2, n, d)).astype(np.float32)


def paper(view1, view2, labels, temperature):
    """Khosla et al. 2020, eq. 2, L_out, an anchor at a time; an image without a label is its own class."""
    z = np.float64(np.concatenate([view1, view2]))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    classes = [f'image {index}' if label < 0 else label for index, label in enumerate(labels)] * 2
    losses = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        denominator = sum(np.exp(z[i] @ z[k] / temperature) for k in others)
        positives = [p for p in others if classes[p] == classes[i]]
        losses.append(-np.mean([np.log(np.exp(z[i] @ z[p] / temperature) / denominator) for p in positives]))
    return np.mean(losses)


@pytest.mark.parametrize('devices', [1, 8])
def test_loss_and_gradient_are_those_of_the_paper(devices):
    mesh, views = sharding.make_mesh(jax.devices()[:devices]), make_views()
    function = jax.jit(jax.value_and_grad(
        lambda views, temperature: sup_con(*views, LABELS, temperature=temperature, mesh=mesh)[0]))
    for temperature in (0.07, 0.5):
        value, gradient = function(views, temperature)
        np.testing.assert_allclose(value, paper(*views, LABELS, temperature), rtol=1e-5)
        expected, = differences(lambda views: paper(*views, LABELS, temperature), views)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_without_labels_it_is_nt_xent_to_the_last_bit():
    views = make_views(1)
    loss, metrics = sup_con(*views, np.full(8, -1), temperature=0.1)
    expected, of_nt_xent = nt_xent(*views, temperature=0.1)
    assert loss == expected and metrics == of_nt_xent


@pytest.mark.parametrize('labels', [np.zeros(7, int), np.zeros((8, 1), int), np.zeros(8)])
def test_labels_that_are_not_one_integer_an_image_are_refused(labels):
    with pytest.raises(ValueError, match='sup_con needs integer labels .N. for 8 images'):
        sup_con(*make_views(), jnp.asarray(labels), temperature=0.1)
