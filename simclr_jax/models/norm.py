"""Batch normalisation over the whole global batch, or over equal groups of its rows, its derivative written out.

Automatic differentiation of the formula keeps and moves more: x and what follows have to be kept for the
convolutions anyway. The two sums of the derivative do not wait for each other, as those of the statistics:
XLA reads the arrays once and sends one all-reduce. On one CPU compiled loops make both pairs of sums.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from simclr_jax.models.cpu.loops import Operation, call, keep, loop

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
        dtype: of the output. Statistics and parameters are float32 whatever the input.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    groups: int = 1
    strided: bool = False
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None, *, rectify: bool = False
                 ) -> jax.Array:
        """Normalises x [N, ..., C].

        What follows a norm in a ResNet can be asked for, and then has one derivative with it: a `shortcut`
        of the shape of x is added, and `rectify` ends with a ReLU.

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
            y = affine(x, running_mean.value, running_var.value, scale, bias, self.epsilon)
            return add_and_rectify(y, shortcut, rectify).astype(self.dtype)
        if x.shape[0] % self.groups:
            raise ValueError(f'a batch of {x.shape[0]} rows does not divide into norm_groups='
                             f'{self.groups}; choose a divisor of the batch')
        own = 1 if self.strided else 0  # the axis of the groups
        grid = (-1, self.groups) if self.strided else (self.groups, -1)
        shape = (*grid, *x.shape[1:])  # [G, N/G, ..., C], strided [N/G, G, ..., C]
        y, mean, var = normalize(x.reshape(shape), scale, bias, None if shortcut is None else shortcut.reshape(shape),
                                 own, self.epsilon, rectify, self.dtype)
        if not self.is_initializing():
            for running, batch in ((running_mean, mean), (running_var, var)):
                batch = batch.reshape(self.groups, -1).mean(0)
                running.value = self.momentum * running.value + (1 - self.momentum) * batch
        return y.reshape(x.shape)


# ---- the formula and its derivative ----------------------------------------------------------------------------------


def affine(x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array,
           epsilon: float) -> jax.Array:
    """x with this mean and variance taken out and a scale and an offset put on."""
    return (x - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias


def add_and_rectify(y: jax.Array, shortcut: jax.Array | None, rectify: bool) -> jax.Array:
    """y, plus the shortcut if there is one, and a ReLU of it if `rectify`."""
    y = y if shortcut is None else y + shortcut
    return jnp.maximum(y, 0) if rectify else y


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7))
def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, shortcut: jax.Array | None, own: int,
              epsilon: float, rectify: bool, dtype: DTypeLike) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Over all axes of x but `own`, that of the groups, and the last, that of the channels.

    Returns:
        y of `dtype` and of the shape of x, with the shortcut added and rectified, and the mean and biased
        variance, float32, with the axes that were summed kept at size 1.
    """
    mean, mean_of_square = call(_Moments(own), x)
    # Rounding can leave the difference of a constant channel slightly below zero.
    var = jnp.maximum(mean_of_square - jnp.square(mean), 0.0)
    y = add_and_rectify(affine(x, mean, var, scale, bias, epsilon), shortcut, rectify).astype(dtype)
    return y if shortcut is None else keep(y), mean, var


@normalize.defjvp
def _normalize_jvp(own, epsilon, rectify, dtype, primals, tangents):
    x, scale, bias, shortcut = primals
    y, mean, var = normalize(*primals, own, epsilon, rectify, dtype)
    added = [] if shortcut is None else [tangents[3]]
    kept = [y] if added and rectify else []             # without a shortcut x tells what was rectified
    derivative = _Derivative(own, epsilon, rectify, bool(added), jnp.dtype(dtype))
    return (y, mean, var), call(derivative, *tangents[:3], *added, x, mean, var, scale, bias, *kept)


@dataclasses.dataclass(frozen=True)
class _Derivative(Operation):
    """Tangents of x, scale, bias and maybe the shortcut -> those of y, mean and variance."""

    own: int
    epsilon: float
    rectify: bool
    has_shortcut: bool
    dtype: DTypeLike

    @property
    def linear(self):
        return ((0, 1, 2, 3) if self.has_shortcut else (0, 1, 2),)

    def plain(self, x_t, scale_t, bias_t, *rest):
        *shortcut_t, x, mean, var, scale, bias = rest[:6 if self.has_shortcut else 5]
        inverse = jax.lax.rsqrt(var + self.epsilon)
        slope, centred, axes = inverse * scale, x - mean, _summed(x, self.own)
        mean_t = x_t.mean(axes, keepdims=True, dtype=jnp.float32)
        var_t = 2 * (centred * x_t).mean(axes, keepdims=True)
        slope_t = inverse * scale_t - slope * jnp.square(inverse) * var_t / 2
        y_t = slope * (x_t - mean_t) + centred * slope_t + bias_t
        y_t = sum(shortcut_t, y_t)
        if self.rectify:
            passes = rest[-1] > 0 if self.has_shortcut else centred * slope + bias > 0
            y_t = jnp.where(passes, y_t, 0)
        return y_t.astype(self.dtype), mean_t, var_t

    def transpose(self, group, cotangents, arrays):
        x, mean, var, scale, bias, *y = arrays[len(group):]
        g, g_mean, g_var = cotangents
        if y:
            g = keep(jnp.where(y[0] > 0, g, 0))
        is_rectified = self.rectify and not y           # still to be done
        count = x.size // mean.size
        inverse = jax.lax.rsqrt(var + self.epsilon)
        slope = inverse * scale
        total, product = call(_GradientSums(self.own, is_rectified), g, x, mean, slope, bias)

        passed = _passed(g, x, mean, slope, bias, is_rectified)
        a = (g_mean - slope * total) / count
        b = (2 * g_var - slope * jnp.square(inverse) * product) / count
        g_x = slope * passed + a + (x - mean) * b
        over_groups = lambda sums: sums.reshape(-1, sums.shape[-1]).sum(0)
        gradients = g_x.astype(x.dtype), over_groups(inverse * product), over_groups(total)
        return (*gradients, g.astype(arrays[3].dtype)) if self.has_shortcut else gradients


@dataclasses.dataclass(frozen=True)
class _Moments(Operation):
    """The mean of x and of its square, in float32, over all axes but `own` and the last, which are kept."""

    own: int

    def fits(self, x, *_):
        return x.shape[self.own] == 1       # one group

    def plain(self, x):
        axes = _summed(x, self.own)
        x = x.astype(jnp.float32)
        return x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)

    def compiled(self, x):
        sums = loop('norm_moments', (_PARTS, 2, x.shape[-1]))(x.reshape(-1, x.shape[-1])).sum(0)
        return tuple((sums / (x.size // x.shape[-1])).reshape(2, *_kept_shape(x, self.own)))


@dataclasses.dataclass(frozen=True)
class _GradientSums(_Moments):
    """The sums of g and of g * (x - mean), kept as `_Moments` does; rectified: where y > 0 alone."""

    is_rectified: bool

    def plain(self, g, x, mean, slope, bias):
        axes = _summed(x, self.own)
        passed = _passed(g, x, mean, slope, bias, self.is_rectified).astype(jnp.float32)
        return passed.sum(axes, keepdims=True), (passed * (x - mean)).sum(axes, keepdims=True)

    def compiled(self, g, x, mean, slope, bias):
        channels = x.shape[-1]
        run = loop('norm_gradient_sums', (_PARTS, 2, channels), is_rectified=self.is_rectified)
        sums = run(g.reshape(-1, channels), x.reshape(-1, channels), mean.reshape(-1), slope.reshape(-1),
                   bias)
        return tuple(sums.sum(0).reshape(2, *_kept_shape(x, self.own)))


def _passed(g, x, mean, slope, bias, is_rectified):
    return jnp.where((x - mean) * slope + bias > 0, g, 0) if is_rectified else g


def _summed(x, own):
    return tuple(axis for axis in range(x.ndim - 1) if axis != own)


def _kept_shape(x, own):
    return tuple(size if axis in (own, x.ndim - 1) else 1 for axis, size in enumerate(x.shape))
