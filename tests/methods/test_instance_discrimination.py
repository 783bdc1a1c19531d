"""Instance discrimination: three steps against lib/NCEAverage.py and lib/NCECriterion.py, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.methods import make_method
from simclr_jax.models.network import Network, ProjectionHead
from tests.methods.small_network import SIZE, Encoder, float64, make_batch, project, unit

N, EXAMPLES, NEGATIVES, TEMPERATURE = 6, 11, 5, 0.2


def make(**settings):
    network = Network(encoder=Encoder(), head=ProjectionHead(mode='linear', out_dim=3, final_norm=False))
    return make_method('instance_discrimination', network=network, num_train_steps=3, num_examples=EXAMPLES,
                       **{'negatives': NEGATIVES, 'temperature': TEMPERATURE, **settings})


def paper(params, images, index, drawn, memory, z):
    """(loss, features, Z), image by image."""
    v = unit(project(params, images))
    own = np.exp((v * memory[index]).sum(1) / TEMPERATURE)
    noise = np.exp(np.einsum('nd,nkd->nk', v, memory[drawn]) / TEMPERATURE)
    z = z or np.concatenate([own[:, None], noise], axis=1).mean() * EXAMPLES
    share = NEGATIVES / EXAMPLES                                    # m Pn
    own, noise = own / z, noise / z
    return -(np.log(own / (own + share)) + np.log(share / (noise + share)).sum(1)).mean(), v, z


def test_three_steps_are_those_of_the_official_code():
    method = make()
    params, stats, state = jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    memory, z = float64(state['memory']), 0.0
    np.testing.assert_allclose(np.linalg.norm(memory, axis=1), 1, rtol=1e-6)
    exact, loss = float64(params), jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    for step, index in enumerate([[3, 1, 4, 0, 5, 9], [2, 6, 8, 7, 10, 2], [3, 1, 2, 10, 0, 4]]):    # 2 stands twice
        batch, key, index = make_batch(step, N), jax.random.key(step), np.int32(index)
        drawn = np.asarray(jax.random.randint(jax.random.fold_in(key, 1), (N, NEGATIVES), 0, EXAMPLES))
        (value, aux), gradient = loss(params, stats, state, {**batch, 'index': index}, key)
        expected, v, z = paper(exact, batch['view1'], index, drawn, memory, z)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        leaf, change = exact['head']['dense1']['kernel'], 1e-6
        for place in np.ndindex(2, 3):
            leaf[place] += change
            above = paper(exact, batch['view1'], index, drawn, memory, z)[0]
            leaf[place] -= 2 * change
            slope = (above - paper(exact, batch['view1'], index, drawn, memory, z)[0]) / (2 * change)
            leaf[place] += change
            np.testing.assert_allclose(gradient['head']['dense1']['kernel'][place], slope, rtol=1e-3, atol=1e-5)
        before = memory.copy()
        for row, image in enumerate(index):
            memory[image] = unit(0.5 * before[image] + 0.5 * v[row])
        state = jax.jit(method.after_update)(state, params, aux, step)
        np.testing.assert_allclose(state['memory'], memory, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state['z'], z, rtol=1e-5)        # that of the first batch


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match='method.negatives is 0'):
        make(negatives=0)
    with pytest.raises(ValueError, match='method.memory_momentum 1.5'):
        make(memory_momentum=1.5)
