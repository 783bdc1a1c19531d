"""Convolutions and their gradients against sums in float64, as XLA does them and by the compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.inspect.hlo import count_flops
from simclr_jax.models.cpu import loops
from simclr_jax.models.cpu.convolution import convolve

# images, height, width, channels, features, kernel, stride, padding: those of ResNets, and odd ones.
CASES = [(2, 8, 8, 16, 24, 3, 1, 1), (3, 7, 10, 5, 17, 3, 2, 1), (2, 9, 8, 64, 128, 3, 2, 1),
         (2, 6, 6, 16, 40, 1, 1, 0), (2, 7, 9, 20, 64, 1, 2, 0), (2, 15, 17, 3, 16, 7, 2, 3),
         (1, 40, 33, 4, 8, 3, 1, 1), (2, 6, 6, 3, 3, 2, 3, 0), (9, 4, 4, 90, 70, 3, 1, 1),
         (3, 13, 16, 150, 270, 1, 1, 0), (2, 9, 9, 8, 8, 5, 3, 2), (2, 8, 8, 8, 8, 3, 2, 'SAME'),
         # By Winograd's products; not the last, whose side is odd.
         (2, 4, 4, 300, 270, 3, 1, 1), (2, 8, 10, 33, 45, 3, 1, 0), (3, 14, 12, 64, 40, 3, 1, 1),
         (2, 7, 8, 64, 40, 3, 1, 1)]


@pytest.fixture(params=['xla', 'loops'])
def form(request, monkeypatch):
    """Both ways; the loops, of which there are eight devices too many here, as on one."""
    if request.param == 'loops':
        if not loops.are_built():
            pytest.skip('the compiled loops were not built, or are not for this processor')
        monkeypatch.setattr(jax, 'device_count', lambda: 1)
    return request.param


def oracle(images, kernel, gradient, stride, pads):
    """The output, and the gradients in images and kernel, tap by tap in float64."""
    padded = np.pad(np.float64(images), ((0, 0), *pads, (0, 0)))
    in_padded, in_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    height, width = ((size - extent) // stride + 1 for size, extent in zip(padded.shape[1:3], kernel.shape))
    output = 0.0
    for i, j in np.ndindex(*kernel.shape[:2]):
        seen = np.s_[:, i:i + stride * height:stride, j:j + stride * width:stride]
        output = output + padded[seen] @ np.float64(kernel[i, j])
        in_padded[seen] += gradient @ np.float64(kernel[i, j]).T
        in_kernel[i, j] = np.tensordot(padded[seen], gradient, ((0, 1, 2),) * 2)
    (top, _), (left, _) = pads
    return output, in_padded[:, top:top + images.shape[1], left:left + images.shape[2]], in_kernel


def program(stride, padding):
    def run(images, kernel, gradient):
        output, backward = jax.vjp(lambda *x: convolve(*x, stride=stride, padding=padding), images, kernel)
        return output, *backward(gradient)
    return run


@pytest.mark.parametrize('case', CASES)
def test_output_and_gradients_are_those_of_float64(form, case):
    images, height, width, channels, features, size, stride, padding = case
    pads = ((0, 1),) * 2 if padding == 'SAME' else ((padding,) * 2,) * 2        # 8 pixels to 4, 3 seen
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, height, width, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, features)).astype(np.float32)
    out = [(extent + sum(pad) - size) // stride + 1 for extent, pad in zip((height, width), pads)]
    g = rng.normal(size=(images, *out, features)).astype(np.float32)
    run = program(stride, padding if padding == 'SAME' else pads)
    assert ('simclr_jax_loops' in jax.jit(run).lower(x, kernel, g).as_text()) == (form == 'loops')
    for ours, expected in zip(jax.jit(run)(x, kernel, g), oracle(x, kernel, g, stride, pads)):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_the_loops_give_the_same_bits_each_time_and_under_vmap(form):
    rng = np.random.default_rng(0)
    x, kernel = (np.float32(rng.normal(size=size)) for size in ((2, 5, 9, 9, 16), (3, 3, 16, 32)))
    one = jax.jit(lambda x: convolve(x, kernel, padding='SAME'))
    both = jax.jit(jax.vmap(lambda x: convolve(x, kernel, padding='SAME')))(x)
    for index in range(2):
        if form == 'loops':
            np.testing.assert_array_equal(both[index], one(x[index]))
            np.testing.assert_array_equal(one(x[index]), one(x[index]))
        np.testing.assert_allclose(both[index], one(x[index]), rtol=1e-4, atol=1e-5)


def test_what_is_for_other_devices_or_of_unknown_size_has_no_loops(form, monkeypatch):
    x, kernel = np.zeros((2, 8, 8, 3), np.float32), np.zeros((3, 3, 3, 8), np.float32)
    lowered = jax.jit(lambda x: convolve(x, kernel)).trace(x).lower(lowering_platforms=('tpu',)).as_text()
    assert 'simclr_jax_loops' not in lowered
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b, 8, 8, 3'), np.float32)
    exported = jax.export.export(jax.jit(lambda x: convolve(x, kernel)))(shape)
    assert 'simclr_jax_loops' not in exported.mlir_module()
    monkeypatch.setenv(loops.SWITCH, 'off')
    assert 'simclr_jax_loops' not in jax.jit(lambda x: convolve(x, kernel)).lower(x).as_text()


@pytest.mark.parametrize('case', CASES[1::3])
def test_derivatives_of_second_order_are_those_of_xla(case, monkeypatch):
    if not loops.are_built():
        pytest.skip('the compiled loops were not built, or are not for this processor')
    images, height, width, channels, features, size, stride, padding = case
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.float32(rng.normal(size=shape))
    primals, tangents = ((draw(images, height, width, channels), draw(size, size, channels, features))
                         for _ in range(2))
    pads = padding if padding == 'SAME' else ((padding,) * 2,) * 2

    def loss(*arguments):
        return jnp.sin(convolve(*arguments, stride=stride, padding=pads) / size).sum()

    def derivatives(primals, tangents):
        gradient = jax.grad(loss, argnums=(0, 1))
        along = jax.jvp(gradient, primals, tangents)[1]
        penalty = jax.grad(lambda primals: sum(jnp.vdot(g, g) for g in gradient(*primals)))(primals)
        return jax.jvp(loss, primals, tangents)[1], along, penalty

    monkeypatch.setattr(jax, 'device_count', lambda: 1)
    by_loops = jax.jit(derivatives).lower(primals, tangents)
    assert 'simclr_jax_loops' in by_loops.as_text()
    monkeypatch.setenv(loops.SWITCH, 'off')
    by_xla = jax.jit(lambda *arguments: derivatives(*arguments))(primals, tangents)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
                 by_loops.compile()(primals, tangents), by_xla)


def test_an_exported_program_has_no_loops_and_runs_on_any_platform(form):
    x, kernel = np.ones((2, 8, 8, 3), np.float32), np.ones((3, 3, 3, 8), np.float32)
    gradient = jax.grad(lambda kernel: convolve(x, kernel).sum())
    exported = jax.export.export(jax.jit(gradient), platforms=('cpu', 'tpu', 'cuda'))(kernel)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(kernel), jax.jit(gradient)(kernel))


def test_one_image_is_told_to_be_a_batch(form):
    with pytest.raises(ValueError, match=r'\[N, H, W, C\].*images\[None\]'):
        convolve(np.zeros((8, 8, 3), np.float32), np.zeros((3, 3, 3, 8), np.float32))


def test_flops_of_the_loops_are_counted_as_those_of_xla(form):
    x, kernel = np.zeros((2, 8, 8, 4), np.float32), np.zeros((3, 3, 4, 12), np.float32)
    step = jax.grad(lambda *x: (convolve(*x, padding='SAME') ** 2).sum(), argnums=(0, 1))
    assert count_flops(jax.make_jaxpr(step)(x, kernel).jaxpr) == 3 * (2 * 2 * 8 * 8 * 12 * 9 * 4)


def test_it_runs_where_jit_is_turned_off(form):
    x, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 3, 8), np.float32)
    expected = jax.jit(convolve)(x, kernel)
    with jax.disable_jit():
        np.testing.assert_allclose(convolve(x, kernel), expected)
    with jax.ensure_compile_time_eval():
        np.testing.assert_allclose(convolve(x, kernel), expected)
