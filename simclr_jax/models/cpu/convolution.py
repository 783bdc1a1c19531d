"""Convolution as XLA does it; and on a CPU, where XLA's is slow, by compiled loops with the same results.

XLA's convolutions on a CPU reach a quarter to two thirds of the speed of a matrix product, its gradients less
(benchmarks/RESULTS.md).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.models.cpu import loops
from simclr_jax.models.cpu.operation import Operation, call

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
    They are used for float32 on one CPU device, see `loops.are_for`. All derivatives are there in both forms.

    Args:
        stride: of both axes.
        padding: ((top, bottom), (left, right)) in pixels of zeros, or 'SAME'.

    Raises:
        ValueError: arrays of other shapes.
    """
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError('A convolution needs images [N, H, W, C] and a kernel [KH, KW, C, D], got '
                         f'{images.shape} and {kernel.shape}. One image is a batch too: images[None].')
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    window = _Window(stride, tuple((int(low), int(high)) for low, high in padding))
    if _is_compiled(images, kernel, window):
        return call(_Forward(window), images, kernel)[0]
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


class _Convolution(Operation):
    """A product of images, a kernel and an output, two of which are given: linear in each of them."""

    linear = ((0,), (1,))

    def compiled(self, *arrays):
        return (self._loop(*arrays),)


@dataclasses.dataclass(frozen=True)
class _Forward(_Convolution):
    """images [N, H, W, C], kernel [KH, KW, C, D] -> [N, h, w, D]."""

    window: _Window

    def plain(self, images, kernel):
        return (_plain(images, kernel, self.window),)

    def _loop(self, images, kernel):
        shape = (images.shape[0], *_output_size(images, kernel, self.window), kernel.shape[3])
        return _loop('forward', shape, self.window)(images, kernel)

    def transpose(self, group, cotangents, arrays):
        images, kernel = arrays
        if group == (0,):
            return call(_InputGradient(self.window, images.shape[1:3]), *cotangents, kernel)
        return call(_KernelGradient(self.window, kernel.shape[:2]), images, *cotangents)


@dataclasses.dataclass(frozen=True)
class _InputGradient(_Convolution):
    """gradient [N, h, w, D] of a convolution's output, kernel [KH, KW, C, D] -> that in its images [N, *size, C]."""

    window: _Window
    size: tuple[int, int]

    def plain(self, gradient, kernel):
        images = jax.ShapeDtypeStruct(self._shape(gradient, kernel), gradient.dtype)
        return jax.linear_transpose(lambda images: _plain(images, kernel, self.window), images)(gradient)

    def _loop(self, gradient, kernel):
        return _loop('input_gradient', self._shape(gradient, kernel), self.window)(gradient, kernel)

    def _shape(self, gradient, kernel):
        return gradient.shape[0], *self.size, kernel.shape[2]

    def transpose(self, group, cotangents, arrays):
        gradient, kernel = arrays
        if group == (0,):
            return call(_Forward(self.window), *cotangents, kernel)
        return call(_KernelGradient(self.window, kernel.shape[:2]), *cotangents, gradient)


@dataclasses.dataclass(frozen=True)
class _KernelGradient(_Convolution):
    """images [N, H, W, C], gradient [N, h, w, D] of a convolution's output -> that in its kernel [*size, C, D]."""

    window: _Window
    size: tuple[int, int]

    def plain(self, images, gradient):
        kernel = jax.ShapeDtypeStruct(self._shape(images, gradient), images.dtype)
        return jax.linear_transpose(lambda kernel: _plain(images, kernel, self.window), kernel)(gradient)

    def _loop(self, images, gradient):
        shape = self._shape(images, gradient)
        # Each part is summed by one thread. How many there are depends on shapes alone, and so do the results.
        parts = max(1, min(images.shape[0], _PARTS // -(-shape[3] // _LANES)))
        partial = _loop('kernel_gradient', (parts, *shape), self.window)(images, gradient)
        # One by one: XLA's reduction over the first axis takes several times as long.
        return functools.reduce(jnp.add, partial)

    def _shape(self, images, gradient):
        return *self.size, images.shape[3], gradient.shape[3]

    def transpose(self, group, cotangents, arrays):
        images, gradient = arrays
        if group == (0,):
            return call(_InputGradient(self.window, images.shape[1:3]), gradient, *cotangents)
        return call(_Forward(self.window), images, *cotangents)


def _loop(name, shape, window):
    return loops.loop(f'convolution_{name}', shape, stride=np.int64(window.stride),
                      top=np.int64(window.padding[0][0]), left=np.int64(window.padding[1][0]))
