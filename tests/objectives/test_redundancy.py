"""Barlow Twins and VICReg against their code written out in float64, on one device and with sharded rows."""

import doctest

import jax
import numpy as np
import pytest

from simclr_jax.objectives import redundancy, sup_con
from simclr_jax.objectives.redundancy import barlow_twins, vicreg
from simclr_jax.runtime import sharding


def make_views(seed=0, n=16, d=6):
    """Correlated features, and views that differ."""
    rng = np.random.default_rng(seed)
    common, mixing = rng.normal(size=(n, d)), rng.normal(size=(d, d))
    return np.stack([common @ mixing + 0.3 * rng.normal(size=(n, d)) for _ in range(2)]).astype(np.float32)


def numpy_barlow_twins(view1, view2, lambd=0.0051):
    """facebookresearch/barlowtwins main.py, element by element of the matrix."""
    bn = lambda z: (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    z1, z2 = bn(np.float64(view1)), bn(np.float64(view2))
    loss = 0.0
    for i in range(z1.shape[1]):
        for j in range(z1.shape[1]):
            c = np.mean(z1[:, i] * z2[:, j])
            loss += (1 - c) ** 2 if i == j else lambd * c ** 2
    return loss


def numpy_vicreg(view1, view2, weights=(25.0, 25.0, 1.0)):
    """facebookresearch/vicreg main_vicreg.py, with numpy's own covariance."""
    x, y = np.float64(view1), np.float64(view2)
    std = sum(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() / 2 for z in (x, y))
    cov = 0.0
    for z in (x, y):
        c = np.cov(z, rowvar=False)
        cov += (c ** 2).sum() / len(c) - (np.diag(c) ** 2).sum() / len(c)
    return weights[0] * ((x - y) ** 2).mean() + weights[1] * std + weights[2] * cov


LOSSES = [(barlow_twins, numpy_barlow_twins), (vicreg, numpy_vicreg)]


@pytest.mark.parametrize('loss, oracle', LOSSES)
@pytest.mark.parametrize('devices', [1, 8])
def test_loss_and_gradient_are_those_of_the_original(loss, oracle, devices):
    views = make_views() / np.float32(3)                                         # some deviations below 1
    mesh = sharding.make_mesh(jax.devices()[:devices])
    split = [jax.device_put(view, sharding.batch_sharding(mesh)) for view in views]
    (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*split)
    np.testing.assert_allclose(value, oracle(*views), rtol=1e-5)
    assert all(np.isfinite(metric) for metric in metrics.values())
    views, step = np.float64(views), 1e-6
    for index in np.ndindex(2, 3, 2):                                            # some of the elements
        ends = []
        for sign in (1, -1):
            moved = views.copy()
            moved[index] += sign * step
            ends.append(oracle(*moved))
        np.testing.assert_allclose(gradients[index[0]][index[1:]], (ends[0] - ends[1]) / (2 * step),
                                   rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('loss', [barlow_twins, vicreg])
def test_a_feature_that_is_the_same_in_all_images_has_a_finite_gradient(loss):
    views = make_views(1)
    views[:, :, 0] = 2.0
    value, gradient = jax.jit(jax.value_and_grad(lambda views: loss(*views)[0]))(views)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('loss', [barlow_twins, vicreg])
def test_other_shapes_are_refused(loss):
    view = make_views()[0]
    for pair in ((view, view[:3]), (view[:1], view[:1]), (view[0], view[0])):
        with pytest.raises(ValueError, match=f'{loss.__name__} needs two .N, D. views of equal shape and at least two'):
            loss(*pair)


@pytest.mark.parametrize('module', [redundancy, sup_con])
def test_the_examples_of_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
