"""Each method's loss of the network's own outputs, in float64 numpy; where no gradient flows; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.models.network import Network, ProjectionHead
from tests.methods.small_network import Encoder, cosine, float64, make_batch, predict, project, start, unit
from tests.objectives.test_nt_xent import paper as numpy_nt_xent
from tests.objectives.test_redundancy import numpy_barlow_twins, numpy_vicreg
from tests.objectives.test_sup_con import paper as numpy_sup_con

N = 6
LABELS = np.array([0, 1, 0, -1, 1, 1], np.int32)


def expected(name, params, batch):
    if name in ('simclr', 'sup_con'):       # both views in one batch
        views = np.split(project(params, np.concatenate([batch['view1'], batch['view2']])), 2)
        return numpy_nt_xent(*views, 0.1)[0] if name == 'simclr' else numpy_sup_con(*views, LABELS, 0.1)
    z1, z2 = (project(params, batch[view]) for view in ('view1', 'view2'))
    if name == 'simsiam':       # builder.py and main_simsiam.py
        p1, p2 = (predict(params, batch[view]) for view in ('view1', 'view2'))
        return -(cosine(p1, z2).mean() + cosine(p2, z1).mean()) * 0.5
    return {'barlow_twins': numpy_barlow_twins, 'vicreg': numpy_vicreg}[name](z1, z2)


@pytest.mark.parametrize('name', ['simclr', 'simsiam', 'barlow_twins', 'vicreg', 'sup_con'])
def test_the_loss_is_the_originals(name):
    method, params, stats, method_state = start(name)
    batch = {**make_batch(0, N), 'label': LABELS}
    value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    np.testing.assert_allclose(value, expected(name, float64(params), batch), rtol=1e-4)
    assert aux.metrics['loss'] == value


def test_loss_weight_scales_simclrs_loss_and_not_the_probes():
    method, params, stats, method_state = start('simclr', num_classes=3, loss_weight=2.0)
    assert method_state == () == method.after_update(method_state, params, None, 0)      # it keeps nothing
    batch = {**make_batch(0, N), 'label': LABELS}
    value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    loss = expected('simclr', float64(params), batch)
    np.testing.assert_allclose(aux.metrics['contrastive_loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(value, 2 * loss + aux.metrics['probe_loss'], rtol=1e-5)


@pytest.mark.parametrize('name', ['simclr', 'moco_v2', 'byol'])
def test_no_gradient_reaches_the_target_or_by_labels_the_encoder(name):
    fields = {'queue_size': 8} if name == 'moco_v2' else {}
    method, params, stats, method_state = start(name, num_classes=3, **fields)
    followed = method_state['target'] if method_state else {}
    assert not followed or set(followed['params']) == {'encoder', 'head'}

    @jax.jit
    def gradients(label):
        def loss(params, followed):
            state = {**method_state, 'target': followed} if method_state else method_state
            return method.loss(params, stats, state, {**make_batch(0, N), 'label': label}, jax.random.key(0))[0]
        return jax.grad(loss, argnums=(0, 1))(params, followed)

    some, target = gradients(jnp.array([0, 1, 2, 0, 1, 2]))
    others, _ = gradients(jnp.array([2, 2, 1, 1, 0, 0]))
    assert all(not leaf.any() for leaf in jax.tree.leaves(target))
    for part in set(params) - {'probe'}:
        assert any(leaf.any() for leaf in jax.tree.leaves(some[part]))
        jax.tree.map(np.testing.assert_array_equal, some[part], others[part])
    assert not np.array_equal(some['probe']['kernel'], others['probe']['kernel'])


def test_no_gradient_of_simsiam_flows_through_the_projection_that_is_regressed():
    """Its gradient is that of the loss whose goals are constants."""
    method, params, stats, method_state = start('simsiam')
    batch = {**make_batch(1, N), 'label': LABELS}
    gradient = jax.jit(jax.grad(lambda params: method.loss(params, stats, method_state, batch, jax.random.key(0))[0]))(
        params)
    params, kernel, step = float64(params), ('head', 'dense3', 'kernel'), 1e-6
    goals = [project(params, batch[view]) for view in ('view2', 'view1')]

    def loss():
        predictions = [predict(params, batch[view]) for view in ('view1', 'view2')]
        return -np.mean([cosine(p, goal).mean() for p, goal in zip(predictions, goals)])

    leaf = params['head']['dense3']['kernel']
    for index in np.ndindex(2, 3):
        leaf[index] += step
        above = loss()
        leaf[index] -= 2 * step
        slope = (above - loss()) / (2 * step)
        leaf[index] += step
        np.testing.assert_allclose(gradient[kernel[0]][kernel[1]][kernel[2]][index], slope, rtol=1e-3, atol=1e-5)


def test_a_predictor_is_needed_or_refused():
    network = Network(encoder=Encoder(), head=ProjectionHead())
    with pytest.raises(ValueError, match="'simsiam' needs a predictor"):
        make_method('simsiam', network=network, num_train_steps=1)
    for name in ('simclr', 'barlow_twins', 'vicreg', 'instance_discrimination'):
        with pytest.raises(ValueError, match=f"'{name}' has no predictor: set predictor.mode to 'none'"):
            start(name, network.clone(predictor=ProjectionHead()), num_examples=9)
    with pytest.raises(ValueError, match="'simlcr'.*simclr"):
        make_method('simlcr')


# NNCLR


def test_nnclr_is_algorithm_1_of_its_paper_for_three_steps():
    """Dwibedi et al. 2021: neighbours out of the queue, which then takes the first views' projections."""
    method, params, stats, method_state = start('nnclr')
    size = 9                                # no multiple of the batch: it wraps around
    method_state = {**method_state, 'queue': method_state['queue'][:size]}
    queue, place = float64(method_state['queue']), 0
    for step in range(3):
        batch = {**make_batch(step, N), 'label': LABELS}
        z1, z2 = (unit(project(float64(params), batch[view])) for view in ('view1', 'view2'))
        p1, p2 = (unit(predict(float64(params), batch[view])) for view in ('view1', 'view2'))

        def cross_entropy(z, p):
            neighbours = queue[(z @ queue.T).argmax(1)]
            logits = neighbours @ p.T / 0.1
            return np.mean([np.log(np.exp(row).sum()) - row[i] for i, row in enumerate(logits)])

        value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
        np.testing.assert_allclose(value, (cross_entropy(z1, p2) + cross_entropy(z2, p1)) / 2, rtol=1e-4)
        for row in z1:
            queue[place] = row
            place = (place + 1) % size
        method_state = jax.jit(method.after_update)(method_state, params, aux, step)
        np.testing.assert_allclose(method_state['queue'], queue, rtol=1e-4, atol=1e-5)
        assert method_state['pointer'] == place


def test_nnclr_without_a_queue_is_refused():
    network = Network(encoder=Encoder(), head=ProjectionHead())
    with pytest.raises(ValueError, match='method.queue_size is 0: nnclr takes its positives'):
        make_method('nnclr', network=network, num_train_steps=1, queue_size=0)
