"""Batch normalisation over the whole global batch, or over equal groups of its rows, with what follows it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from simclr_jax.models.cpu import loops

_PARTS = 16     # of the rows, each summed by one thread


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, arXiv:1502.03167) over every axis but the last.

    Under `jit` with a sharded batch the program sees the global array, so `groups=1` is
    synchronised batch norm with no axis name. `groups=G` splits the rows into G contiguous groups,
    each normalised with its own statistics in training: unsynchronised batch norm, whatever the
    number of devices. The running statistics follow the mean over the groups.

    `strided` deals the rows out instead, row i to group i mod G. On a batch split over devices
    no row moves for it: only the sums of each group are added up between devices.

    Attributes:
        use_running_average: normalise with the running statistics, which are then left unchanged.
        momentum: running = momentum * running + (1 - momentum) * batch.
        epsilon: added to the (biased) variance.
        groups: number of groups of rows; must divide the batch.
        strided: groups of every G-th row instead of contiguous ones.
        use_bias: learn an offset. There is always a scale.
        scale_init: initialiser of the scale.
        rectify: end with a ReLU.
        dtype: of the output. Statistics and parameters are float32 whatever the input.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    groups: int = 1
    strided: bool = False
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    rectify: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """Normalises x [N, ..., C], adds `shortcut` of the same shape if there is one, and rectifies.

        Raises ValueError when N is not divisible by `groups`.
        """
        channels = x.shape[-1]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
        running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
        scale = self.param('scale', self.scale_init, (channels,))
        bias = jnp.zeros(channels)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (channels,))

        if self.use_running_average:
            y = _shifted(x, running_mean.value, running_var.value, scale, bias, self.epsilon)
            return _finish(y, shortcut, self.rectify).astype(self.dtype)
        if x.shape[0] % self.groups:
            raise ValueError(f'a batch of {x.shape[0]} rows does not divide into norm_groups='
                             f'{self.groups}; choose a divisor of the batch')
        own = 1 if self.strided else 0  # the axis of the groups
        grid = (-1, self.groups) if self.strided else (self.groups, -1)
        deal = lambda a: a.reshape(*grid, *a.shape[1:])  # [G, N/G, ..., C], strided [N/G, G, ..., C]
        y, mean, var = _normalize(deal(x), scale, bias, None if shortcut is None else deal(shortcut),
                                  own, self.epsilon, self.rectify, self.dtype)
        if not self.is_initializing():
            self._update(running_mean, mean)
            self._update(running_var, var)
        return y.reshape(x.shape)

    def _update(self, running, batch):
        batch = batch.reshape(self.groups, -1).mean(0)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch


def _shifted(x, mean, var, scale, bias, epsilon):
    return (x - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


def _finish(y, shortcut, rectify):
    y = y if shortcut is None else y + shortcut
    return jnp.maximum(y, 0) if rectify else y


# The derivative is written out, for it needs less than automatic differentiation keeps: x and what follows
# have to be kept for the convolutions anyway. Its two sums do not wait for each other, as those of
# `_moments`: XLA reads the arrays once and sends one all-reduce.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _normalize(x, scale, bias, shortcut, own, epsilon, rectify, dtype):
    """(y of `dtype`, mean, biased variance): over all axes of x but `own` and the last."""
    return _normalize_forward(x, scale, bias, shortcut, own, epsilon, rectify, dtype)[0]


def _normalize_forward(x, scale, bias, shortcut, own, epsilon, rectify, dtype):
    mean, var = _moments(x, own)
    y = _finish(_shifted(x, mean, var, scale, bias, epsilon), shortcut, rectify).astype(dtype)
    # Without a shortcut x tells what was rectified.
    kept = None if shortcut is None else (y,) if rectify else ()
    return (y, mean, var), (x, mean, var, scale, bias, kept)


def _normalize_backward(own, epsilon, rectify, dtype, kept, gradients):
    x, mean, var, scale, bias, added = kept
    g, g_mean, g_var = gradients
    if added:
        g = jnp.where(added[0] > 0, g, 0)
    is_rectified = rectify and not added    # still to be done
    count = x.size // mean.size
    inverse = jax.lax.rsqrt(var + epsilon)
    slope = inverse * scale
    total, product = _gradient_sums(g, x, mean, slope, bias, own, is_rectified)     # of g, g * (x - mean)

    passed = _passed(g, x, mean, slope, bias, is_rectified)
    a = (g_mean - slope * total) / count
    b = (2 * g_var - slope * jnp.square(inverse) * product) / count
    g_x = slope * passed + a + (x - mean) * b
    over_groups = lambda sums: sums.reshape(-1, sums.shape[-1]).sum(0)
    return (g_x.astype(x.dtype), over_groups(inverse * product), over_groups(total),
            None if added is None else g)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _passed(g, x, mean, slope, bias, is_rectified):
    return jnp.where((x - mean) * slope + bias > 0, g, 0) if is_rectified else g


def _moments(x, own):
    """Mean and biased variance in float32, over all axes but `own` and the last, which are kept."""

    def plain(x):
        axes = _summed(x, own)
        x = x.astype(jnp.float32)
        return x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)

    def compiled(x):
        sums = loops.loop('norm_moments', (_PARTS, 2, x.shape[-1]))(x.reshape(-1, x.shape[-1])).sum(0)
        return tuple((sums / (x.size // x.shape[-1])).reshape(2, *_kept_shape(x, own)))

    mean, mean_of_square = _by_platform(plain, compiled, own, x)
    # Rounding can leave the difference of a constant channel slightly below zero.
    return mean, jnp.maximum(mean_of_square - jnp.square(mean), 0.0)


def _gradient_sums(g, x, mean, slope, bias, own, is_rectified):
    """The sums of g and of g * (x - mean), kept as `_moments` does; rectified: where y > 0 alone."""

    def plain(g, x, mean, slope, bias):
        axes = _summed(x, own)
        passed = _passed(g, x, mean, slope, bias, is_rectified).astype(jnp.float32)
        return passed.sum(axes, keepdims=True), (passed * (x - mean)).sum(axes, keepdims=True)

    def compiled(g, x, mean, slope, bias):
        channels = x.shape[-1]
        call = loops.loop('norm_gradient_sums', (_PARTS, 2, channels), is_rectified=is_rectified)
        sums = call(g.reshape(-1, channels), x.reshape(-1, channels), mean.reshape(-1),
                    slope.reshape(-1), bias)
        return tuple(sums.sum(0).reshape(2, *_kept_shape(x, own)))

    return _by_platform(plain, compiled, own, g, x, mean, slope, bias)


def _summed(x, own):
    return tuple(axis for axis in range(x.ndim - 1) if axis != own)


def _kept_shape(x, own):
    return tuple(size if axis in (own, x.ndim - 1) else 1 for axis, size in enumerate(x.shape))


def _by_platform(plain, compiled, own, *arrays):
    x = arrays[0]
    if x.shape[own] == 1 and loops.are_for(*arrays):
        return jax.lax.platform_dependent(*arrays, cpu=compiled, default=plain)
    return plain(*arrays)
