"""Batch normalisation over the whole global batch, or over equal groups of its rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from simclr_jax.models.norm_derivative import add_and_rectify, affine, normalize


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
        deal = lambda a: a.reshape(*grid, *a.shape[1:])  # [G, N/G, ..., C], strided [N/G, G, ..., C]
        y, mean, var = normalize(deal(x), scale, bias, None if shortcut is None else deal(shortcut),
                                 own, self.epsilon, rectify, self.dtype)
        if not self.is_initializing():
            self._update(running_mean, mean)
            self._update(running_var, var)
        return y.reshape(x.shape)

    def _update(self, running, batch):
        batch = batch.reshape(self.groups, -1).mean(0)
        running.value = self.momentum * running.value + (1 - self.momentum) * batch
