"""The whole network: what it does to pixels, and that the probe teaches the encoder nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.network import make_network

ENCODER = {'depth': 10, 'width': 1 / 16, 'stem': 'cifar'}
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'out_dim': 5}

# Every test here compiles far longer than it runs.
quick_jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module')
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def init(network, images):
    """Variables drawn by numpy: compiling the initialisers takes longer than all the tests."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype), shapes)


def evaluate(network, variables, images):
    return quick_jit(partial(network.apply, train=False))(variables, images)


def test_layers_run_from_features_to_projection(pixels):
    network = make_network(encoder=ENCODER, head=HEAD)
    variables = init(network, pixels)
    output = evaluate(network, variables, pixels)
    assert set(variables['params']) == set(variables['batch_stats']) == {'encoder', 'head'}
    assert [layer.shape for layer in output.layers] == [(4, 32), (4, 32), (4, 5)]
    assert output.features is output.layers[0]
    assert output.projection is output.layers[2]
    assert output.probe_logits is None


def test_uint8_pixels_are_scaled_then_normalised(pixels):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    plain = make_network(encoder=ENCODER, head={'mode': 'none'})
    network = make_network(encoder=ENCODER, head={'mode': 'none'}, mean=list(mean), std=list(std))
    variables = init(plain, pixels)
    by_hand = ((pixels / 255 - mean) / std).astype(np.float32)
    expected = evaluate(plain, variables, by_hand).features
    for images in (pixels, np.float32(pixels / 255)):
        features = evaluate(network, variables, images).features
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('probe_layer', [0, 1, -1])
def test_the_probe_reads_its_layer_and_sends_no_gradient_back(pixels, probe_layer):
    network = make_network(encoder=ENCODER, head=HEAD, num_classes=3, probe_layer=probe_layer)
    variables = init(network, pixels)
    assert set(variables['params']) == {'encoder', 'head', 'probe'}

    @partial(jax.grad, has_aux=True)
    def gradient_of_probe_loss(params):
        output, _ = network.apply({**variables, 'params': params}, pixels, train=True,
                                  mutable=['batch_stats'])
        labels = jnp.array([0, 1, 2, 0])
        return -jax.nn.log_softmax(output.probe_logits)[jnp.arange(4), labels].mean(), output

    gradients, output = quick_jit(gradient_of_probe_loss)(variables['params'])
    probe = variables['params']['probe']
    logits = np.float64(output.layers[probe_layer]) @ np.float64(probe['kernel']) + probe['bias']
    np.testing.assert_allclose(output.probe_logits, logits, rtol=1e-4, atol=1e-6)
    assert np.abs(gradients['probe']['kernel']).max() > 0
    for leaf in jax.tree.leaves((gradients['encoder'], gradients['head'])):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize('probe_layer', [3, -4])
def test_a_probe_layer_beyond_the_head_is_refused(pixels, probe_layer):
    network = make_network(encoder=ENCODER, head=HEAD, num_classes=3, probe_layer=probe_layer)
    with pytest.raises(ValueError, match=rf'probe_layer={probe_layer} .*0 \(features\) to 2'):
        init(network, pixels)


def test_the_head_takes_norms_and_dtype_from_the_encoder():
    encoder = {**ENCODER, 'norm_groups': 2, 'norm_momentum': 0.5, 'norm_epsilon': 1e-3,
               'dtype': 'bfloat16'}
    network = make_network(encoder=encoder, head=HEAD)
    for module in (network.encoder, network.head):
        assert (module.norm_groups, module.norm_momentum, module.norm_epsilon) == (2, 0.5, 1e-3)
        assert module.dtype == jnp.bfloat16
    network = make_network(encoder=encoder, head={**HEAD, 'dtype': 'float32', 'norm_groups': 1})
    assert (network.head.norm_groups, network.head.norm_momentum) == (1, 0.5)
    assert network.head.dtype == jnp.float32
    assert make_network(encoder=ENCODER, head=HEAD).encoder.dtype == jnp.float32


def test_everything_but_activations_is_float32_in_bfloat16(pixels):
    network = make_network(encoder={**ENCODER, 'dtype': 'bfloat16'}, head=HEAD, num_classes=3)
    output, variables = jax.eval_shape(partial(network.init_with_output, train=True),
                                       jax.random.key(0), pixels)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((output, variables))}
    assert dtypes == {jnp.dtype('float32')}


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype 'float16'.*float32, bfloat16"):
        make_network(encoder={**ENCODER, 'dtype': 'float16'}, head=HEAD)
