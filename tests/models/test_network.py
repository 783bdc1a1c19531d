"""The whole network: what it does to pixels, what the probe must not teach, and the encoder in chunks."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models import resnet
from simclr_jax.models.building import make_network
from simclr_jax.models.network import forward_train, regrouped

ENCODER = {'depth': 4, 'width': 1 / 2, 'stem': 'cifar'}     # of one block, which compiles in a second
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'out_dim': 5}

# Every test here compiles far longer than it runs.
quick_jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


@pytest.fixture(scope='module', autouse=True)
def small_resnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DEPTHS, 4, (resnet.BasicBlock, (1,)))
        yield


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


@pytest.mark.parametrize('probe_layer', [0, -1])
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
    layer = np.float64(output.layers[probe_layer])
    standardised = (layer - layer.mean(0)) / np.sqrt(layer.var(0) + 1e-6)
    logits = standardised @ np.float64(probe['kernel']) + probe['bias']
    np.testing.assert_allclose(output.probe_logits, logits, rtol=1e-4, atol=1e-6)
    assert np.abs(gradients['probe']['kernel']).max() > 0
    for leaf in jax.tree.leaves((gradients['encoder'], gradients['head'])):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize('probe_layer', [3, -4])
def test_a_probe_layer_beyond_the_head_is_refused(pixels, probe_layer):
    network = make_network(encoder=ENCODER, head=HEAD, num_classes=3, probe_layer=probe_layer)
    with pytest.raises(ValueError, match=rf'eval.layer is {probe_layer}: .*0 \(features\) to 2'):
        init(network, pixels)


def test_head_and_predictor_take_norms_and_dtype_from_the_encoder():
    encoder = {**ENCODER, 'norm_groups': 2, 'norm_momentum': 0.5, 'norm_epsilon': 1e-3,
               'dtype': 'bfloat16'}
    network = make_network(encoder=encoder, head=HEAD, predictor=HEAD)
    for module in (network.encoder, network.head, network.predictor):
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
    with pytest.raises(ValueError, match="dtype is 'float16'.*float32, bfloat16"):
        make_network(encoder={**ENCODER, 'dtype': 'float16'}, head=HEAD)


# --- the predictor


def test_the_predictor_reads_the_projection(pixels):
    network = make_network(encoder=ENCODER, head=HEAD, num_classes=3,
                           predictor={**HEAD, 'hidden_width': 7, 'out_dim': 6, 'final_norm': False})
    variables = init(network, pixels)
    assert set(variables['params']) == {'encoder', 'head', 'predictor', 'probe'}
    assert set(variables['batch_stats']) == {'encoder', 'head', 'predictor'}
    output = evaluate(network, variables, pixels)
    params, stats = variables['params']['predictor'], variables['batch_stats']['predictor']['norm1']
    hidden = np.float64(output.projection) @ params['dense1']['kernel']
    hidden = (hidden - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['norm1']['scale']
    hidden = np.maximum(hidden + params['norm1']['bias'], 0)
    np.testing.assert_allclose(output.prediction, hidden @ params['dense2']['kernel'], rtol=1e-4, atol=1e-5)
    bare = evaluate(make_network(encoder=ENCODER, head=HEAD), variables, pixels)    # the same without it
    jax.tree.map(np.testing.assert_array_equal, bare.layers, output.layers)


@pytest.mark.parametrize('predictor', [None, {}, {'mode': 'none', 'out_dim': 5}])
def test_without_a_predictor_the_prediction_is_the_projection(pixels, predictor):
    network = make_network(encoder=ENCODER, head=HEAD, predictor=predictor, num_classes=3)
    assert network.predictor is None
    names = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), pixels)
    assert {kind: set(parts) for kind, parts in names.items()} == {
        'params': {'encoder', 'head', 'probe'}, 'batch_stats': {'encoder', 'head'}}
    output = jax.eval_shape(partial(network.apply, train=False), names, pixels)
    assert output.prediction.shape == (4, 5)
    output = network.bind(init(network, pixels)).project(np.ones((4, 32), np.float32), train=False)
    assert output.prediction is output.projection


# --- training mode: groups of rows, and the encoder in chunks


def small_network(**settings):
    encoder = {**ENCODER, 'width': 1 / 8, **settings.pop('encoder', {})}
    heads = {'head': HEAD, 'predictor': {**HEAD, 'final_norm': False}}
    return make_network(encoder=encoder, **{**heads, 'num_classes': 3, **settings})


def some_images(count):
    """Each with a colour and a contrast of its own: alike ones would leave the norms only rounding errors."""
    rng = np.random.default_rng(3)
    colour, contrast = rng.uniform(-1, 1, (count, 1, 1, 3)), rng.uniform(0.1, 2, (count, 1, 1, 1))
    return (colour + contrast * rng.normal(size=(count, 8, 8, 3))).astype(np.float32)


def some_variables(network, images):
    """As `init`, with kernels of both signs, so that the ReLUs do something."""
    rng = np.random.default_rng(4)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        if path[-1].key == 'kernel' else leaf, init(network, images))


def training_pass(network, order=None, *, num_devices=1):
    """(params, batch_stats, images) -> ((loss, (output, new batch_stats)), gradient by params).

    `order` permutes the rows on their way in and back on their way out. The loss weighs every
    number of the output differently.
    """
    def loss(params, batch_stats, images):
        rows = images if order is None else images[order]
        output, stats = forward_train(network, params, batch_stats, rows, num_devices=num_devices)
        if order is not None:
            output = jax.tree.map(lambda leaf: leaf[np.argsort(order)], output)
        rng = np.random.default_rng(5)
        total = sum(jnp.mean(jnp.sin(leaf) * rng.normal(size=leaf.shape)) for leaf in jax.tree.leaves(output))
        return total, (output, stats)

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


def assert_close(a, b, tolerance=1e-4):
    """Relative to the largest number of each leaf; other groups of rows are off by 1e-2 and more."""
    def close(path, x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()),
                                   err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, a, b)


def chunk_order(rows, num_devices, chunks):
    """The rows chunk after chunk: chunk j is the j-th part of the rows of every device."""
    return np.concatenate([np.arange(rows).reshape(num_devices, chunks, -1)[:, chunk].ravel()
                           for chunk in range(chunks)])


@pytest.mark.parametrize('num_devices, chunks, groups', [(1, 2, 1), (8, 2, 2), (8, 3, 1)])
def test_chunks_equal_one_pass_whose_norms_group_the_rows_as_the_chunks_do(num_devices, chunks, groups):
    """Outputs, running statistics (one update, mean over the chunks) and gradients."""
    images = some_images(48 if chunks == 3 else 32)
    # The heads see the whole batch, in its own order: one group here, whatever the encoder has.
    heads = {'head': {**HEAD, 'norm_groups': 1}, 'predictor': {**HEAD, 'norm_groups': 1, 'final_norm': False}}
    chunked = small_network(encoder_chunks=chunks, encoder={'norm_groups': groups}, **heads)
    reference = small_network(encoder={'norm_groups': chunks * groups}, **heads)
    order = chunk_order(len(images), num_devices, chunks)
    variables = some_variables(reference, images)
    arguments = variables['params'], variables['batch_stats'], images
    (_, (_, stats)), gradient = ours = training_pass(chunked, num_devices=num_devices)(*arguments)
    assert_close(ours, training_pass(reference, order)(*arguments))
    assert jax.tree.structure(stats) == jax.tree.structure(variables['batch_stats'])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((gradient['encoder'], gradient['head'])))


def test_eight_devices_cut_their_own_rows_into_chunks_and_no_image_moves():
    images = some_images(32)
    network = small_network(encoder_chunks=2)
    variables = some_variables(network, images)
    mesh = jax.make_mesh((8,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
    split, everywhere = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
                         for axes in (('rows',), ()))
    arguments = variables['params'], variables['batch_stats'], images
    placed = *jax.device_put(arguments[:2], everywhere), jax.device_put(images, split)
    step = training_pass(network, num_devices=8)
    compiled = step.lower(*placed).compile()
    assert_close(compiled(*placed), step(*arguments))
    sent = re.findall(r'= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(',
                      compiled.as_text())
    sizes = [math.prod(map(int, dims.split(',')))
             for shape in sent for dims in re.findall(r'\[([\d,]+)\]', shape)]
    assert max(sizes, default=0) < images[0].size
    assert 'all-reduce' in compiled.as_text()


@pytest.mark.parametrize('rows, num_devices, chunks', [(32, 1, 3), (32, 8, 8), (4, 1, 8)])
def test_views_that_do_not_divide_into_chunks_are_refused(rows, num_devices, chunks):
    network = small_network(encoder_chunks=chunks)
    images = jax.ShapeDtypeStruct((rows, 8, 8, 3), np.float32)
    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    with pytest.raises(ValueError, match=f'^encoder_chunks is {chunks}: {rows} views .* '
                                         f'divisor of {rows // num_devices}[.]'):
        jax.eval_shape(partial(forward_train, network, num_devices=num_devices), variables['params'],
                       variables['batch_stats'], images)


def test_chunks_do_not_touch_evaluation_or_the_variables():
    images = some_images(5)                             # as many as no number of chunks divides
    whole, chunked = small_network(), small_network(encoder_chunks=4)
    variables = some_variables(whole, images)
    jax.tree.map(np.testing.assert_array_equal, evaluate(whole, variables, images),
                 evaluate(chunked, variables, images))
    assert jax.tree.structure(some_variables(chunked, images)) == jax.tree.structure(variables)


def test_two_strided_groups_normalise_interleaved_views_each_by_itself():
    """BYOL: one pass over the views of all images gives what a pass for each view would."""
    views = some_images(16).reshape(2, 8, 8, 8, 3)
    network = small_network(num_classes=0)      # the probe's input is standardised over whatever it is given
    variables = some_variables(network, views[0])
    forward = quick_jit(partial(forward_train, network))
    (output1, stats1), (output2, stats2) = (
        forward(variables['params'], variables['batch_stats'], view) for view in views)
    both = views.swapaxes(0, 1).reshape(16, 8, 8, 3)    # the views of image i in rows 2i and 2i + 1
    output, stats = quick_jit(partial(forward_train, regrouped(network, 2, strided=True)))(
        variables['params'], variables['batch_stats'], both)
    assert_close(jax.tree.map(lambda leaf: leaf[0::2], output), output1)
    assert_close(jax.tree.map(lambda leaf: leaf[1::2], output), output2)
    assert_close(stats, jax.tree.map(lambda a, b: (a + b) / 2, stats1, stats2))


def test_regrouping_reaches_every_norm_and_keeps_the_variables(pixels):
    for network in (small_network(), make_network(encoder=ENCODER, head=HEAD)):
        other = regrouped(network, 4, strided=True)
        for module in filter(None, (other.encoder, other.head, other.predictor)):
            assert (module.norm_groups, module.norm_strided) == (4, True)
        assert (other.predictor is None) == (network.predictor is None)
        before, after = (jax.eval_shape(partial(each.init, train=False), jax.random.key(0), pixels)
                         for each in (network, other))
        assert before == after
        assert network.encoder.norm_groups == 1         # the original is left as it was
