"""Small views beside the two, and a queue beside the batch: which pairs SimCLR, BYOL and MoCo compare, in float64."""

import itertools

import jax
import numpy as np
import pytest

from simclr_jax.config import base_config, smoke, use_method, use_multi_crop
from simclr_jax.data.batches import Inputs
from simclr_jax.runtime import sharding
from simclr_jax.train import build, make_inputs
from simclr_jax.views.fields import SmallViews, View
from tests.methods.small_network import SIZE, cosine, float64, make_batch, predict, project, start, unit
from tests.objectives.test_info_nce import over_the_batch
from tests.objectives.test_nt_xent import paper as numpy_nt_xent

N, COUNT = 6, 3


def expected(name, params, target, views, small):
    if name == 'simclr':        # one pass for the two views, one for the small ones
        z, others = (np.split(project(params, np.concatenate(images)), len(images))
                     for images in (views, small))
        return np.mean([numpy_nt_xent(*pair, 0.1)[0] for pair in [tuple(z), *itertools.product(z, others)]])
    queries, others = ([predict(params, images) for images in each] for each in (views, small))
    keys = [project(target, view) for view in views]
    pairs = [(queries[0], keys[1]), (queries[1], keys[0]), *itertools.product(others, keys)]
    if name == 'byol':
        return 2 * np.mean([2 - 2 * cosine(*pair).mean() for pair in pairs])
    return 2 * 2 * 1.0 * np.mean([over_the_batch(*map(unit, pair), 1.0)['contrastive_loss'] for pair in pairs])


@pytest.mark.parametrize('name', ['simclr', 'byol', 'moco_v3'])
def test_each_of_the_two_views_is_compared_with_every_small_one(name):
    method, params, stats, method_state = start(name)
    small = np.random.default_rng(1).random((N, COUNT, SIZE, SIZE, 3), np.float32)
    batch = {**make_batch(0, N), 'small': small}
    value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    exact, views, small = float64(params), [batch['view1'], batch['view2']], list(small.swapaxes(0, 1))
    target = float64(method_state['target']['params']) if name != 'simclr' else None
    np.testing.assert_allclose(value, expected(name, exact, target, views, small), rtol=1e-4)
    # The running mean takes in the two views, then the small ones.
    kernel = exact['encoder']['dense']['kernel']
    of_views, of_small = ((np.float64(images).reshape(-1, len(kernel)) @ kernel).mean(0) for images in (views, small))
    np.testing.assert_allclose(aux.batch_stats['encoder']['norm']['mean'], 0.09 * of_views + 0.1 * of_small, rtol=1e-4)


def test_the_momentum_memory_of_simclr_v2_has_negatives_in_the_batch_and_in_the_queue():
    method, params, stats, method_state = start('simclr_memory')
    method_state, batch = {**method_state, 'queue': method_state['queue'][:9]}, make_batch(0, N)
    value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    exact, losses = float64(params), []
    z1, z2 = (unit(project(exact, batch[view])) for view in ('view1', 'view2'))
    for queries, keys in ((z1, z2), (z2, z1)):              # the memory network starts as the online one
        logits = queries @ np.concatenate([keys, float64(method_state['queue'])]).T / 0.1
        losses.append(np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)]))
    np.testing.assert_allclose(value, sum(losses), rtol=1e-4)
    np.testing.assert_allclose(aux.carry['keys'], np.stack([z1, z2], axis=1).reshape(2 * N, -1), atol=1e-4)


def test_other_methods_and_other_forms_of_a_batch_are_refused():
    config = smoke(base_config())
    use_method(config, 'simsiam')
    use_multi_crop(config)
    with pytest.raises(ValueError, match="small_views is 6: method 'simsiam' compares two views"):
        build(config, sharding.make_mesh(), num_examples=64, num_classes=10, num_steps=2)
    config.data.pad_to = 64
    with pytest.raises(ValueError, match="augment.small_views needs data.augment_on='device', data.pad_to=0"):
        make_inputs(config)
    small = SmallViews(View(), 2, 4)
    with pytest.raises(ValueError, match="augment.small_views needs data.augment_on='device'"):
        Inputs('views', View(), View(), 8, 0, 4, small=small)
    with pytest.raises(ValueError, match='no augment.sequence'):
        Inputs('crops', View(), View(), 8, 0, 4, ('flip',), small=small)
