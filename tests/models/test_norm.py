"""BatchNorm against flax and against numpy, with its groups, its dtypes and a sharded batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.cpu import loops
from simclr_jax.models.norm import BatchNorm
from simclr_jax.models.resnet import Conv


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(2.0, 3.0, (8, 3, 3, 4)).astype(np.float32)


@pytest.fixture
def variables():
    rng = np.random.default_rng(1)
    draw = lambda low, high: jnp.asarray(rng.uniform(low, high, 4), jnp.float32)
    return {'params': {'scale': draw(0.5, 2), 'bias': draw(-1, 1)},
            'batch_stats': {'mean': draw(-1, 1), 'var': draw(0.5, 2)}}


def apply(module, variables, x, *shortcut, **options):
    y, updated = module.apply(variables, x, *shortcut, mutable=['batch_stats'], **options)
    return y, updated['batch_stats']


def assert_trees_close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


@pytest.mark.parametrize('evaluate', [False, True])
@pytest.mark.parametrize('use_bias', [False, True])
def test_one_group_equals_flax(images, variables, evaluate, use_bias):
    if not use_bias:
        del variables['params']['bias']
    settings = dict(use_running_average=evaluate, momentum=0.9, epsilon=1e-5, use_bias=use_bias)

    def loss(module):
        def value(variables, x):
            y, stats = apply(module, variables, x)
            return jnp.sum(jnp.sin(y)), (y, stats)
        return jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(variables, images)

    ours, flax = loss(BatchNorm(**settings)), loss(nn.BatchNorm(**settings))
    assert_trees_close(ours, flax, rtol=1e-5)


@pytest.mark.parametrize('groups, strided', [(1, True), (2, False), (4, False), (2, True), (4, True)])
def test_groups_are_contiguous_or_every_gth_row_and_normalised_apart(images, variables, groups, strided):
    y, stats = apply(BatchNorm(use_running_average=False, groups=groups, strided=strided), variables, images)
    scale, bias = (np.float64(variables['params'][name]) for name in ('scale', 'bias'))
    split = lambda rows: [rows[g::groups] for g in range(groups)] if strided else np.split(rows, groups)
    for ours, rows in zip(split(y), split(np.float64(images))):
        expected = (rows - rows.mean((0, 1, 2))) / np.sqrt(rows.var((0, 1, 2)) + 1e-5) * scale + bias
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    for name in ('mean', 'var'):
        batch = np.mean([getattr(rows, name)((0, 1, 2)) for rows in split(np.float64(images))], 0)
        running = 0.9 * np.float64(variables['batch_stats'][name]) + 0.1 * batch
        np.testing.assert_allclose(stats[name], running, rtol=1e-5)


def test_evaluation_ignores_groups_and_keeps_the_statistics(images, variables):
    module = BatchNorm(use_running_average=True, groups=3)  # does not divide the batch of 8
    y, stats = apply(module, variables, images)
    params, running = variables['params'], variables['batch_stats']
    expected = (images - running['mean']) / np.sqrt(running['var'] + 1e-5) * params['scale']
    np.testing.assert_allclose(y, expected + params['bias'], rtol=1e-5, atol=1e-5)
    assert_trees_close(stats, running, rtol=0)


@pytest.mark.parametrize('groups', [1, 2])
def test_a_sharded_batch_gives_the_numbers_of_one_device(images, variables, groups):
    mesh = jax.make_mesh((8,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
    module = BatchNorm(use_running_average=False, groups=groups)
    run = jax.jit(lambda variables, x: apply(module, variables, x))
    one, eight = run(variables, images), run(variables, jax.device_put(images, rows))
    assert_trees_close(one, eight, rtol=1e-5)


@pytest.mark.parametrize('groups', [2, 8])
def test_strided_groups_of_a_sharded_batch_keep_their_numbers_and_move_no_row(variables, groups):
    images = np.random.default_rng(0).normal(2.0, 3.0, (16, 3, 3, 4)).astype(np.float32)
    mesh = jax.make_mesh((8,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
    module = BatchNorm(use_running_average=False, groups=groups, strided=True)
    run = jax.jit(lambda variables, x: apply(module, variables, x),
                  out_shardings=(rows, rows.update(spec=jax.sharding.PartitionSpec())))
    eight = run.lower(variables, jax.device_put(images, rows)).compile()
    everywhere = jax.device_put(variables, rows.update(spec=jax.sharding.PartitionSpec()))
    assert_trees_close(eight(everywhere, jax.device_put(images, rows)), apply(module, variables, images),
                       rtol=1e-5)
    assert 'all-reduce' in eight.as_text()
    assert not any(name in eight.as_text() for name in ('all-gather', 'all-to-all', 'collective-permute'))


def test_bfloat16_activations_keep_float32_statistics(images, variables):
    x = jnp.asarray(images + 100, jnp.bfloat16)  # bfloat16 sums would lose the variance
    module = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    y, stats = apply(module, variables, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype('float32')}
    batch_var = (stats['var'] - 0.9 * variables['batch_stats']['var']) / 0.1
    # Around a mean of 100, float32's E[x^2] - E[x]^2 keeps two to three digits; bfloat16's keeps none.
    np.testing.assert_allclose(batch_var, np.float64(x).var((0, 1, 2)), rtol=1e-2)
    fresh = module.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}


def test_a_constant_channel_stays_finite(variables):
    # In float32 the mean of squares of these is below the square of the mean.
    for value in np.linspace(1e3, 1.1e3, 20, dtype=np.float32):
        y, stats = apply(BatchNorm(use_running_average=False), variables,
                         jnp.full((7, 3, 3, 4), value))
        assert np.isfinite(y).all()
        assert (stats['var'] >= 0.9 * variables['batch_stats']['var']).all()


@pytest.mark.parametrize('strided', [False, True])
def test_a_batch_that_does_not_divide_names_both_numbers(images, variables, strided):
    with pytest.raises(ValueError, match='8 rows.*norm_groups=3'):
        apply(BatchNorm(use_running_average=False, groups=3, strided=strided), variables, images)


def reference(x, scale, bias, shortcut, groups, strided, rectify):
    """BatchNorm as its definition says, for automatic differentiation: (y, mean, variance of each group)."""
    split = lambda a: [a[g::groups] if strided else a[len(a) // groups * g:][:len(a) // groups]
                       for g in range(groups)]
    ys, means, variances = [], [], []
    for rows, added in zip(split(x), split(shortcut)):
        mean, var = rows.mean((0, 1, 2)), rows.var((0, 1, 2))
        y = (rows - mean) / jnp.sqrt(var + 1e-5) * scale + bias + added
        ys.append(jnp.maximum(y, 0) if rectify else y)
        means.append(mean)
        variances.append(var)
    order = np.argsort(np.concatenate(split(np.arange(len(x)))))
    return jnp.concatenate(ys)[order], jnp.stack(means), jnp.stack(variances)


@pytest.mark.parametrize('form, groups, strided, has_shortcut, rectify', [
    *((form, 1, False, has_shortcut, rectify)
      for form in ('xla', 'loops') for has_shortcut in (False, True) for rectify in (False, True)),
    ('xla', 2, False, True, True), ('xla', 2, True, True, True)])
def test_gradients_are_those_of_the_definition_in_float64(form, groups, strided, has_shortcut, rectify, monkeypatch):
    if form == 'loops':
        if not loops.are_built():
            pytest.skip('the compiled loops were not built, or are not for this processor')
        monkeypatch.setattr(jax, 'device_count', lambda: 1)
    rng = np.random.default_rng(0)
    x, shortcut, weights = (rng.normal(1.0, 2.0, (6, 5, 7, 24)) for _ in range(3))
    shortcut *= has_shortcut
    scale, bias = rng.uniform(0.5, 2, 24), rng.uniform(-1, 1, 24)
    of_mean, of_var = rng.normal(size=(2, groups, 24))

    def ours(x, scale, bias, shortcut):
        module = BatchNorm(use_running_average=False, groups=groups, strided=strided, momentum=0.0)
        stats = {'mean': jnp.zeros(24), 'var': jnp.zeros(24)}
        y, new = apply(module, {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}, x,
                       *[shortcut] * has_shortcut, rectify=rectify)
        # What follows the running statistics, the mean over groups, is part of the derivative too.
        of_stats = jnp.sum(new['mean'] * of_mean[0]) + jnp.sum(new['var'] * of_var[0])
        return jnp.sum(y * weights) + of_stats, y

    def theirs(x, scale, bias, shortcut):
        y, mean, var = reference(x, scale, bias, shortcut, groups, strided, rectify)
        of_stats = jnp.sum(mean.mean(0) * of_mean[0]) + jnp.sum(var.mean(0) * of_var[0])
        return jnp.sum(y * weights) + of_stats, y

    arguments, used = [x, scale, bias, shortcut], (0, 1, 2, 3) if has_shortcut else (0, 1, 2)
    gradients, y = jax.jit(jax.grad(ours, used, has_aux=True))(*map(np.float32, arguments))
    with jax.enable_x64(True):
        expected, expected_y = jax.grad(theirs, used, has_aux=True)(*map(jnp.float64, arguments))
    for one, other in zip([y, *gradients], [expected_y, *expected]):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1))


def test_what_a_step_reads_grows_in_proportion_to_the_blocks_of_a_stage(monkeypatch):
    """On a CPU XLA would make the output of every block, and its gradient, anew from those of all blocks before it."""
    if not loops.are_built():
        pytest.skip('the compiled loops were not built, or are not for this processor')
    monkeypatch.setattr(jax, 'device_count', lambda: 1)

    class Stage(nn.Module):
        blocks: int

        @nn.compact
        def __call__(self, x):
            for _ in range(self.blocks):
                y = Conv(16, 1)(x)
                x = BatchNorm(use_running_average=False)(y, x, rectify=True)
            return x.sum()

    def bytes_read(blocks):
        stage, x = Stage(blocks), jnp.ones((8, 16, 16, 16))
        variables = stage.init(jax.random.key(0), x)
        loss = lambda params: stage.apply({**variables, 'params': params}, x, mutable=['batch_stats'])[0]
        compiled = jax.jit(jax.grad(loss)).lower(variables['params']).compile()
        return compiled.cost_analysis()['bytes accessed']

    two, four, six = map(bytes_read, (2, 4, 6))
    assert six - four < 1.1 * (four - two)
