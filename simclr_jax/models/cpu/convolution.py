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

from simclr_jax.models.cpu.loops import Operation, call, loop

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

    The sums of the compiled loops run in another order than XLA's, and 3x3 kernels of stride 1 from 32 channels on
    by Winograd's F(2x2, 3x3) (arXiv:1509.09308): results differ by float32 rounding, about 1e-6 of the largest.
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
    (top, bottom), (left, right) = padding
    window = _Window(stride, ((top, bottom), (left, right)))
    return call(_Convolution('output', window, images.shape[1:3], kernel.shape[:2]), images, kernel)[0]


def _plain(images, kernel, window):
    return lax.conv_general_dilated(images, kernel, (window.stride,) * 2, window.padding,
                                    dimension_numbers=_DIMENSIONS)


def _output_size(image_size, kernel_size, window):
    return tuple((size + sum(pads) - extent) // window.stride + 1
                 for size, pads, extent in zip(image_size, window.padding, kernel_size))


_FROM = {'output': ('images', 'kernel'), 'images': ('output', 'kernel'), 'kernel': ('images', 'output')}


@dataclasses.dataclass(frozen=True)
class _Convolution(Operation):
    """Of images [N, H, W, C], a kernel [KH, KW, C, D] and an output [N, h, w, D] two make the third.

    What makes the output is the convolution itself, linear in each of its arguments. Its gradients in images
    and kernel are made of the output's gradient and the other one, and are linear again.
    """

    result: str             # a key of _FROM
    window: _Window
    image_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    linear = ((0,), (1,))

    def fits(self, *_):
        sizes = _output_size(self.image_size, self.kernel_size, self.window)
        return min(*self.window.padding[0], *self.window.padding[1]) >= 0 and min(sizes) > 0

    def plain(self, first, second):
        if self.result == 'output':
            return (_plain(first, second, self.window),)
        result = jax.ShapeDtypeStruct(self._shape(first, second), first.dtype)
        if self.result == 'images':
            forward, gradient = lambda images: _plain(images, second, self.window), first
        else:
            forward, gradient = lambda kernel: _plain(first, kernel, self.window), second
        return jax.linear_transpose(forward, result)(gradient)

    def compiled(self, first, second):
        shape = self._shape(first, second)
        if self.result != 'kernel':
            name = 'forward' if self.result == 'output' else 'input_gradient'
            return (_loop(name, shape, self.window)(first, second),)
        # Each part is summed by one thread. Their number, and so the results, depends on shapes alone.
        parts = max(1, min(first.shape[0], _PARTS // -(-shape[3] // _LANES)))
        partial = _loop('kernel_gradient', (parts, *shape), self.window)(first, second)
        # One by one: XLA's reduction over the first axis takes several times as long.
        return (functools.reduce(jnp.add, partial),)

    def _shape(self, first, second):
        if self.result == 'output':
            size = _output_size(self.image_size, self.kernel_size, self.window)
            return (first.shape[0], *size, second.shape[3])
        if self.result == 'images':
            return (first.shape[0], *self.image_size, second.shape[2])
        return (*self.kernel_size, first.shape[3], second.shape[3])

    def transpose(self, group, cotangents, arrays):
        names = _FROM[self.result]
        known = dict(zip(names, arrays)) | {self.result: cotangents[0]}
        wanted = names[group[0]]
        return call(dataclasses.replace(self, result=wanted), *(known[name] for name in _FROM[wanted]))


def _loop(name, shape, window):
    return loop(f'convolution_{name}', shape, stride=np.int64(window.stride),
                top=np.int64(window.padding[0][0]), left=np.int64(window.padding[1][0]))
