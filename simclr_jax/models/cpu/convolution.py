"""Convolution as XLA does it; and on a CPU, where XLA's is slow, by compiled loops with the same results.

XLA's convolutions on a CPU reach a quarter to two thirds of the speed of a matrix product, its gradients less
(benchmarks/RESULTS.md).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.models.cpu import loops

_DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
_PARTS = 8     # into which the images of a kernel's gradient are split, at most
_LANES = 64     # features that the loops treat together, at most

Pads = tuple[tuple[int, int], tuple[int, int]]


class _Window(NamedTuple):
    stride: int
    padding: Pads


def convolve(images: jax.Array, kernel: jax.Array, *, stride: int = 1,
             padding: str | Sequence[tuple[int, int]] = ((0, 0), (0, 0))) -> jax.Array:
    """images [N, H, W, C], kernel [KH, KW, C, D] -> [N, h, w, D] of their dtype.

    The sums of the compiled loops run in another order than XLA's: results differ by float32 rounding.
    They are used for float32 on one CPU device, see `loops.are_for`.

    Args:
        stride: of both axes.
        padding: ((top, bottom), (left, right)) in pixels of zeros, or 'SAME'.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    window = _Window(stride, tuple((int(low), int(high)) for low, high in padding))
    if _is_compiled(images, kernel, window):
        return _compiled(images, kernel, window)
    return _plain(images, kernel, window)


def _plain(images, kernel, window):
    return lax.conv_general_dilated(images, kernel, (window.stride,) * 2, window.padding,
                                    dimension_numbers=_DIMENSIONS)


def _is_compiled(images, kernel, window):
    return (min(*window.padding[0], *window.padding[1]) >= 0 and loops.are_for(images, kernel)
            and min(_output_size(images, kernel, window)) > 0)


def _output_size(images, kernel, window):
    return tuple((size + sum(pads) - extent) // window.stride + 1
                 for size, pads, extent in zip(images.shape[1:3], window.padding, kernel.shape[:2]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _compiled(images, kernel, window):
    shape = (images.shape[0], *_output_size(images, kernel, window), kernel.shape[3])
    return lax.platform_dependent(images, kernel, cpu=_loop('forward', shape, window),
                                  default=lambda images, kernel: _plain(images, kernel, window))


def _forward(images, kernel, window):
    return _compiled(images, kernel, window), (images, kernel)


def _backward(window, residuals, gradient):
    images, kernel = residuals
    return (input_gradient(gradient, kernel, images.shape[1:3], window),
            kernel_gradient(images, gradient, kernel.shape[:2], window))


_compiled.defvjp(_forward, _backward)


def input_gradient(gradient: jax.Array, kernel: jax.Array, size: tuple[int, int],
                   window: _Window) -> jax.Array:
    """Of a convolution's output [N, h, w, D]: the gradient in its images [N, *size, C]."""
    shape = (gradient.shape[0], *size, kernel.shape[2])

    def plain(gradient, kernel):
        images = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda images: _plain(images, kernel, window), images)(gradient)[0]

    return lax.platform_dependent(gradient, kernel, cpu=_loop('input_gradient', shape, window), default=plain)


def kernel_gradient(images: jax.Array, gradient: jax.Array, size: tuple[int, int],
                    window: _Window) -> jax.Array:
    """Of a convolution's output [N, h, w, D]: the gradient in its kernel [*size, C, D]."""
    shape = (*size, images.shape[3], gradient.shape[3])
    # Each part is summed by one thread. How many there are depends on shapes alone, and so do the results.
    parts = max(1, min(images.shape[0], _PARTS // -(-shape[3] // _LANES)))
    partial = _loop('kernel_gradient', (parts, *shape), window)

    def plain(images, gradient):
        kernel = jax.ShapeDtypeStruct(shape, images.dtype)
        return jax.linear_transpose(lambda kernel: _plain(images, kernel, window), kernel)(gradient)[0]

    def compiled(images, gradient):
        # One by one: XLA's reduction over the first axis takes several times as long.
        return functools.reduce(jnp.add, partial(images, gradient))

    return lax.platform_dependent(images, gradient, cpu=compiled, default=plain)


def _loop(name, shape, window):
    return loops.loop(f'convolution_{name}', shape, stride=np.int64(window.stride),
                      top=np.int64(window.padding[0][0]), left=np.int64(window.padding[1][0]))
