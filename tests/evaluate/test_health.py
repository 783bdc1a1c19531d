"""Spread and effective rank against float64 numpy and against cases with a known answer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.evaluate import health as measures
from simclr_jax.evaluate.health import CollapseWatch, make_health
from simclr_jax.models.network import Network, ProjectionHead
from simclr_jax.models.norm import BatchNorm

spread, effective_rank = jax.jit(measures.spread), jax.jit(measures.effective_rank)

NAMES = {'feature_spread', 'feature_rank', 'projection_spread', 'projection_rank', 'alignment', 'uniformity',
         'positive_similarity', 'positive_similarity_std', 'negative_similarity', 'negative_similarity_std'}


def make_rows(n=12, d=5, seed=0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rank_me(rows):
    """Garrido et al. 2023, eq. 1, in float64; the singular values from the Gram matrix."""
    squares = np.linalg.eigvalsh(np.float64(rows).T @ np.float64(rows))
    values = np.sqrt(np.maximum(squares, 0))
    p = values / values.sum()
    return np.exp(-sum(share * np.log(share) for share in p if share > 0))


def root_mean_square_distance(rows):
    rows = unit(np.float64(rows))
    return np.sqrt(np.mean([np.sum((row - rows.mean(0)) ** 2) for row in rows]))


@pytest.mark.parametrize('shift', [0.0, 2.0])
def test_both_equal_float64_numpy(shift):
    rows = make_rows(shift=shift)
    np.testing.assert_allclose(spread(rows), root_mean_square_distance(rows), rtol=1e-5)
    np.testing.assert_allclose(spread(rows) ** 2, 1 - (unit(rows).mean(0) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(effective_rank(rows), rank_me(rows), rtol=1e-4)


@pytest.mark.parametrize('rows', [make_rows(48, 96), make_rows(96, 32), 1 + 1e-4 * make_rows(48, 96), make_rows(9, 9)])
def test_the_form_for_gpus_loses_no_small_singular_value(rows):
    rows = np.float32(unit(rows))
    got = jax.jit(measures.singular_values_of_gram)(rows)
    assert got.dtype == np.float32
    exact = np.linalg.svd(np.float64(rows), compute_uv=False)
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-7 * exact[0])
    share = np.float64(got) / np.float64(got).sum()
    np.testing.assert_allclose(np.exp(-(share * np.log(share)).sum()), rank_me(rows), rtol=1e-4)


def test_rows_of_one_direction_have_spread_0_and_rank_1():
    rows = np.linspace(1, 3, 8, dtype=np.float32)[:, None] * make_rows(1)      # of any length
    np.testing.assert_allclose(spread(rows), 0, atol=1e-3)
    np.testing.assert_allclose(effective_rank(rows), 1, rtol=1e-4)


@pytest.mark.parametrize('n', [2, 5, 8])
def test_orthonormal_rows_have_their_number_as_rank(n):
    rows, _ = np.linalg.qr(make_rows(8, 8))
    np.testing.assert_allclose(effective_rank(rows[:n]), n, rtol=1e-5)
    np.testing.assert_allclose(spread(rows[:n]), np.sqrt(1 - 1 / n), rtol=1e-5)


def test_a_length_changes_the_spread_of_no_row_and_zeros_stay_finite():
    rows = make_rows()
    lengths = np.linspace(0.1, 9, len(rows), dtype=np.float32)[:, None]
    np.testing.assert_allclose(spread(rows * lengths), spread(rows), rtol=1e-5)
    zeros = jnp.zeros((4, 3))
    assert spread(zeros) == 0 and np.isfinite(effective_rank(zeros))


class Encoder(nn.Module):
    """BatchNorm of the pixels."""

    @nn.compact
    def __call__(self, images, train):
        return BatchNorm(use_running_average=not train, name='norm')(images.reshape(len(images), -1))


@pytest.fixture(scope='module')
def network():
    return Network(encoder=Encoder(), head=ProjectionHead(num_layers=1, out_dim=3, final_norm=False,
                                                          init_stddev=1.0))


@pytest.fixture(scope='module')
def health(network):
    return jax.jit(make_health(network))


@pytest.fixture(scope='module')
def variables(network):
    variables = jax.jit(network.init, static_argnames='train')(
        jax.random.key(0), jnp.zeros((1, 1, 2, 3)), train=False)
    norm = {'mean': jnp.linspace(0, 1, 6), 'var': jnp.linspace(0.5, 2, 6)}
    return {**variables, 'batch_stats': {'encoder': {'norm': norm}}}


def make_images(n, seed=3):
    return np.random.default_rng(seed).random((n, 1, 2, 3), np.float32)


def layers(variables, images):
    """Features and projections under the running statistics, in float64."""
    norm = jax.tree.map(np.float64, variables['batch_stats']['encoder']['norm'])
    features = (np.float64(images).reshape(len(images), -1) - norm['mean']) / np.sqrt(norm['var'] + 1e-5)
    return features, features @ np.float64(variables['params']['head']['dense1']['kernel'])


# At most 512 images are read, every k-th of all.
@pytest.mark.parametrize('n, stride', [(7, 1), (512, 1), (513, 2), (1300, 3)])
def test_health_measures_features_and_projections_of_the_network(health, variables, n, stride):
    images, others = make_images(n), make_images(n, seed=4)
    got = health(variables, images, others)
    assert set(got) == NAMES and {value.dtype for value in got.values()} == {jnp.dtype('float32')}
    for name, rows in zip(('feature', 'projection'), layers(variables, images[::stride])):
        np.testing.assert_allclose(got[f'{name}_spread'], root_mean_square_distance(rows), rtol=1e-4)
        np.testing.assert_allclose(got[f'{name}_rank'], rank_me(unit(rows)), rtol=1e-4)
    projections = (layers(variables, some[::stride])[1] for some in (images, others))
    for name, value in pair_metrics_in_loops(*projections).items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def pair_metrics_in_loops(view1, view2):
    """Wang & Isola 2020, eq. 2 and 3 with alpha = t = 2, and the cosines of all pairs, in float64."""
    view1, view2 = unit(np.float64(view1)), unit(np.float64(view2))
    positive = [a @ b for a, b in zip(view1, view2)]
    others = [(i, j) for i in range(len(view1)) for j in range(len(view1)) if i != j]
    rows, columns = np.array(others).T
    negative = np.concatenate([(a[rows] * b[columns]).sum(1)
                               for a, b in ((view1, view1), (view1, view2), (view2, view2))])
    distance = np.linalg.norm(view1[rows] - view1[columns], axis=1)
    return {'alignment': np.mean(np.linalg.norm(view1 - view2, axis=1) ** 2),
            'uniformity': np.log(np.mean(np.exp(-2 * distance ** 2))),
            'positive_similarity': np.mean(positive), 'positive_similarity_std': np.std(positive),
            'negative_similarity': np.mean(negative), 'negative_similarity_std': np.std(negative)}


def test_equal_views_are_aligned_and_opposite_corners_are_uniform():
    corners = np.float32([[1, 0], [-1, 0]])
    got = jax.jit(measures.pair_metrics)(corners, corners)
    np.testing.assert_allclose(got['alignment'], 0, atol=1e-6)
    np.testing.assert_allclose(got['uniformity'], -8, atol=1e-4)        # 1 + expm1(-8) has 11 bits left
    np.testing.assert_allclose([got['positive_similarity'], got['negative_similarity']], [1, -1], rtol=1e-6)


def test_health_names_a_collapse_of_the_projection_alone(health, variables):
    kernel = variables['params']['head']['dense1']['kernel']
    params = {**variables['params'], 'head': {'dense1': {'kernel': jnp.abs(kernel[:, :1]) * jnp.ones(3)}}}
    got = health({**variables, 'params': params}, 10 + make_images(32), 10 + make_images(32))
    assert got['projection_rank'] < 1.01 and got['projection_spread'] < 1e-2
    assert got['feature_rank'] > 1.05


def test_a_collapse_is_named_once_and_so_is_its_end():
    watch = CollapseWatch(least_spread=0.05, least_rank=1.5)
    alive = {'feature_spread': 0.7, 'feature_rank': 20.0, 'projection_spread': 0.9, 'projection_rank': 9.0}
    assert watch(50, alive) == ''
    sentence = watch(100, alive | {'projection_spread': 0.01})
    assert 'Collapse at step 100' in sentence and 'projection spread 0.01' in sentence
    assert watch(150, alive | {'projection_rank': 1.1}) == ''           # said already
    assert 'Step 200' in watch(200, alive)
    assert 'feature rank 1.2' in watch(250, alive | {'feature_rank': 1.2})


def test_measures_that_are_missing_are_not_judged():
    assert CollapseWatch()(10, {'loss': 1.0}) == ''


def test_uniformity_of_a_collapse_keeps_its_digits():
    """As every view is nearly one vector: float32 cosines would all be 1."""
    rows = 1 + 1e-3 * np.random.default_rng(0).normal(size=(16, 64))
    expected = pair_metrics_in_loops(rows, rows[::-1])
    got = jax.jit(measures.pair_metrics)(np.float32(rows), np.float32(rows[::-1]))
    for name in ('uniformity', 'alignment', 'negative_similarity_std'):
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-3, err_msg=name)
