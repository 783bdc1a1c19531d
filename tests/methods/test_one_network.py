"""SimSiam, Barlow Twins, VICReg and SupCon: their losses of the network's own outputs, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.config import base_config, use_method
from simclr_jax.methods import make_method
from simclr_jax.models.network import Network, ProjectionHead
from tests.methods.small_network import SIZE, Encoder, float64, make_batch
from tests.methods.test_byol import normalised
from tests.objectives.test_redundancy import numpy_barlow_twins, numpy_vicreg
from tests.objectives.test_sup_con import paper as numpy_sup_con

N = 6
LABELS = np.array([0, 1, 0, -1, 1, 1], np.int32)


def start(name):
    config = base_config()
    use_method(config, name, hidden_width=24, out_dim=3)      # no row is without a positive unit
    head, predictor = (ProjectionHead(**fields.to_dict()) for fields in (config.head, config.predictor))
    network = Network(encoder=Encoder(), head=head, predictor=None if predictor.mode == 'none' else predictor)
    method = make_method(network=network, num_train_steps=5, **config.method)
    return method, *jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))


def features(params, images):
    x = np.float64(images).reshape(len(images), -1) @ params['encoder']['dense']['kernel']
    return np.tanh(normalised(x, params['encoder']['norm'], (slice(None),)))


def project(params, x):
    """A head of any of these methods: dense, norm and ReLU for each of its layers that has them."""
    count = sum(name.startswith('dense') for name in params)
    for layer in range(1, count + 1):
        x = x @ params[f'dense{layer}']['kernel'] + params[f'dense{layer}'].get('bias', 0)
        if norm := params.get(f'norm{layer}'):
            x = normalised(x, {'bias': 0, **norm}, (slice(None),))
        x = x if layer == count else np.maximum(x, 0)
    return x


def predict(params, images):
    return project(params['predictor'], project(params['head'], features(params, images)))


def cosine(a, b):
    return ((a / np.linalg.norm(a, axis=1, keepdims=True)) * (b / np.linalg.norm(b, axis=1, keepdims=True))).sum(1)


def expected(name, params, batch):
    if name == 'sup_con':       # both views in one batch, as SimCLR
        z = project(params['head'], features(params, np.concatenate([batch['view1'], batch['view2']])))
        return numpy_sup_con(*np.split(z, 2), LABELS, 0.1)
    z1, z2 = (project(params['head'], features(params, batch[view])) for view in ('view1', 'view2'))
    if name == 'simsiam':       # builder.py and main_simsiam.py
        p1, p2 = (project(params['predictor'], z) for z in (z1, z2))
        return -(cosine(p1, z2).mean() + cosine(p2, z1).mean()) * 0.5
    return {'barlow_twins': numpy_barlow_twins, 'vicreg': numpy_vicreg}[name](z1, z2)


@pytest.mark.parametrize('name', ['simsiam', 'barlow_twins', 'vicreg', 'sup_con'])
def test_the_loss_is_the_originals(name):
    method, params, stats, method_state = start(name)
    batch = {**make_batch(0, N), 'label': LABELS}
    value, aux = jax.jit(method.loss)(params, stats, method_state, batch, jax.random.key(0))
    np.testing.assert_allclose(value, expected(name, float64(params), batch), rtol=1e-4)
    assert aux.metrics['loss'] == value


def test_no_gradient_of_simsiam_flows_through_the_projection_that_is_regressed():
    """Its gradient is that of the loss whose goals are constants."""
    method, params, stats, method_state = start('simsiam')
    batch = {**make_batch(1, N), 'label': LABELS}
    gradient = jax.jit(jax.grad(lambda params: method.loss(params, stats, method_state, batch, jax.random.key(0))[0]))(
        params)
    params, kernel, step = float64(params), ('head', 'dense3', 'kernel'), 1e-6
    goals = [project(params['head'], features(params, batch[view])) for view in ('view2', 'view1')]

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
    for name in ('barlow_twins', 'vicreg'):
        with pytest.raises(ValueError, match=f"'{name}' has no predictor"):
            make_method(name, network=network.clone(predictor=ProjectionHead()), num_train_steps=1)


# NNCLR


def test_nnclr_is_algorithm_1_of_its_paper_for_three_steps():
    """Dwibedi et al. 2021: neighbours out of the queue, which then takes the first views' projections."""
    method, params, stats, method_state = start('nnclr')
    size = 9                                # no multiple of the batch: it wraps around
    method_state = {**method_state, 'queue': method_state['queue'][:size]}
    queue, unit = float64(method_state['queue']), lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    place = 0
    for step in range(3):
        batch = {**make_batch(step, N), 'label': LABELS}
        z1, z2 = (unit(project(float64(params)['head'], features(float64(params), batch[view])))
                  for view in ('view1', 'view2'))
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
