"""Encoders that are not ours, as a user would write them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import bridge

from simclr_jax.models.norm import BatchNorm
from simclr_jax.models.resnet import BasicBlock, Conv


class ViT(nn.Module):
    """A vision transformer of one block: LayerNorm, dropout, no running statistics, no field of ours."""

    width: int = 16
    patch: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (self.patch,) * 2, strides=self.patch, name='embedding')(images)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param('positions', nn.initializers.normal(0.02), (1, *x.shape[1:]))
        y = nn.MultiHeadDotProductAttention(2, name='attention')(nn.LayerNorm(name='norm1')(x))
        x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        self.sow('intermediates', 'block', x)
        return nn.LayerNorm(name='norm2')(x).mean(1)


class CNN(nn.Module):
    """Two convolutions with flax's own BatchNorm, the dtype to be chosen, stages to freeze."""

    width: int = 8
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        for number in range(2):
            x = nn.Conv(self.width * 2 ** number, (3, 3), strides=1 + number, use_bias=False,
                        dtype=self.dtype, name=f'conv{number}')(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, use_fast_variance=False, dtype=self.dtype,
                                     name=f'norm{number}')(x))
        return x.mean((1, 2))

    def stage_of(self, module):
        return int(module[-1])


class NnxCNN(nnx.Module):
    """A list of layers, nnx's BatchNorm and dropout, which keep their state in the module."""

    def __init__(self, width: int = 8, dropout: float = 0.0, *, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(nnx.Conv(3, width, (3, 3), strides=2, rngs=rngs), nnx.relu)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x, train: bool):
        x = nnx.relu(self.norm(self.layers(x), use_running_average=not train))
        return self.dropout(x.mean((1, 2)), deterministic=not train)


class OneBlock(nn.Module):
    """A ResNet of one block: the same operations as in ours, compiled in much less time."""

    width: int = 16

    @nn.compact
    def __call__(self, images, train: bool):
        norm = functools.partial(BatchNorm, use_running_average=not train)
        x = norm(name='stem_norm')(Conv(self.width, 3, name='stem_conv')(images), rectify=True)
        return BasicBlock(2 * self.width, 2, 0.0, Conv, norm, norm, name='block')(x).mean((1, 2))

    def stage_of(self, module):
        return int(module.startswith('block'))


class Huge(nn.Module):
    """More memory than any machine has."""

    @nn.compact
    def __call__(self, images, train: bool):
        rows = jnp.sort(jnp.broadcast_to(images.mean(), (1 << 22, 1 << 22)) * jnp.arange(1 << 22))
        return rows[:len(images), :8]


ENCODERS = {'vit': ViT(), 'cnn': CNN(), 'nnx': bridge.to_linen(NnxCNN, width=8)}
