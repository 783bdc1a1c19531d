"""ResNet encoders: images in, one feature vector each out."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from simclr_jax.models.cpu.convolution import convolve
from simclr_jax.models.max_pool import max_pool
from simclr_jax.models.norm import BatchNorm

ModuleDef = Callable[..., nn.Module]

MAX_POOL_PADDING = {'torch': ((1, 1), (1, 1)), 'same': 'SAME'}
STEMS = ('imagenet', 'cifar')
CONV_PADDINGS = ('symmetric', 'same')


class Conv(nn.Module):
    """A convolution without bias that keeps, or divides by its stride, the size of a map.

    Attributes:
        features: channels of the output.
        size: of the square kernel, in pixels.
        stride: of both axes.
        padding: 'symmetric' adds size // 2 pixels on every side, as torchvision and google-research/simclr
            do; 'same' is that of TensorFlow, XLA and Haiku. They differ where stride > 1 and the map's size
            is even: 'same' then adds one row less above than below.
        dtype: of the output. The kernel is float32.
    """

    features: int
    size: int
    stride: int = 1
    padding: str = 'symmetric'
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, h, w, features]."""
        kernel = self.param('kernel', nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal'),
                            (self.size, self.size, x.shape[-1], self.features))
        side = self.size // 2
        padding = 'SAME' if self.padding == 'same' else ((side, side), (side, side))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=padding)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams mixed by a softmax over their pooled sum (arXiv:1903.06586).

    The variant of google-research/simclr tf2/resnet.py: both streams are undilated and come from
    one convolution of twice the width; the squeeze has at least 32 channels.
    """

    features: int
    stride: int
    ratio: float
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(2 * self.features, 3, self.stride, name='conv')(x)
        x = self.norm(name='norm')(x, rectify=True)
        streams = x.reshape(*x.shape[:-1], 2, self.features)  # [B, H, W, 2, C]

        pooled = streams.sum(3).mean((1, 2), keepdims=True)  # [B, 1, 1, C]
        pooled = self.conv(max(int(self.features * self.ratio), 32), 1, name='squeeze_conv')(pooled)
        pooled = self.norm(name='squeeze_norm')(pooled, rectify=True)
        mixing = self.conv(2 * self.features, 1, name='mixing_conv')(pooled)
        mixing = nn.softmax(mixing.reshape(-1, 1, 1, 2, self.features), axis=3)
        return (streams * mixing).sum(3)


class _Block(nn.Module):
    """What the blocks share."""

    features: int
    stride: int
    sk_ratio: float
    conv: ModuleDef
    norm: ModuleDef
    last_norm: ModuleDef
    project: bool = False   # the shortcut also where x could pass as it is
    expansion: ClassVar[int]

    def _shortcut(self, x):
        """x itself, or its projection where the block changes the shape."""
        features, stride = self.expansion * self.features, self.stride
        if stride == 1 and x.shape[-1] == features and not self.project:
            return x
        if self.sk_ratio > 0:
            # ResNet-D averages before the projection. At stride 2 the reference pads with a zero that
            # counts (seen by odd sizes only); at stride 1 it pools SAME, which averages real pixels.
            padding: Any = ((0, 1), (0, 1))
            x = nn.avg_pool(x, (2, 2), (stride, stride), padding, count_include_pad=stride > 1)
        elif stride > 1:
            # The pixels that a 1x1 kernel of this stride reads: its gradient is a product on the small map.
            # Not x[:, ::stride, ::stride]: of sizes that are not known that is a gather.
            x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
        x = self.conv(features, 1, name='shortcut_conv')(x)
        return self.norm(name='shortcut_norm')(x)


class BasicBlock(_Block):
    """Two 3x3 convolutions. Selective kernels change its shortcut only, as in the reference."""

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, name='conv1')(x)
        y = self.norm(name='norm1')(y, rectify=True)
        y = self.conv(self.features, 3, name='conv2')(y)
        return self.last_norm(name='norm2')(y, shortcut=self._shortcut(x), rectify=True)


class BottleneckBlock(_Block):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, 1, name='conv1')(x)
        y = self.norm(name='norm1')(y, rectify=True)
        if self.sk_ratio > 0:
            y = SelectiveKernel(self.features, self.stride, self.sk_ratio, self.conv, self.norm,
                                name='conv2')(y)
        else:
            y = self.conv(self.features, 3, self.stride, name='conv2')(y)
            y = self.norm(name='norm2')(y, rectify=True)
        y = self.conv(4 * self.features, 1, name='conv3')(y)
        return self.last_norm(name='norm3')(y, shortcut=self._shortcut(x), rectify=True)


DEPTHS = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (BottleneckBlock, (3, 4, 6, 3)),
    101: (BottleneckBlock, (3, 4, 23, 3)),
    152: (BottleneckBlock, (3, 8, 36, 3)),
    200: (BottleneckBlock, (3, 24, 36, 3)),
}
_CHOICES = {'depth': DEPTHS, 'stem': STEMS, 'max_pool': MAX_POOL_PADDING, 'conv_padding': CONV_PADDINGS}


class ResNet(nn.Module):
    """Post-activation ResNet (arXiv:1512.03385) with the stride on the 3x3 convolution.

    As in google-research/simclr tf2/resnet.py, but where a block keeps the shape its shortcut is
    the identity, as in torchvision; see `project_first`.

    Attributes:
        depth: 10 (for smoke runs), 18, 34, 50, 101, 152 or 200.
        width: multiplies every number of channels; fractions are allowed.
        stem: 'imagenet' (7x7 of stride 2, then max-pool) or 'cifar' (3x3 of stride 1, no pool).
        sk_ratio: above 0, selective kernels and ResNet-D, with this squeeze; SimCLRv2 uses 0.0625.
        zero_init_last_gamma: start every block as its shortcut.
        max_pool: 'torch' (one pixel on every side) or 'same' (TensorFlow's, as official weights).
        conv_padding: of convolutions with a stride, see `Conv`: 'symmetric', or 'same' for
            weights from Haiku (BYOL's).
        project_first: project the shortcut of the very first block of depths below 50 too, as
            google-research/simclr and BYOL do and torchvision does not.
        norm_groups, norm_strided, norm_momentum, norm_epsilon: see `BatchNorm`.
        remat: compute each block's activations again in the backward pass instead of keeping them.
        dtype: of the activations. Parameters, statistics and features are float32.

    On one CPU its first call has the bits of `jax.random`, the same bits, made by a compiled loop in all that the
    process compiles from then on (docs/performance.md, On one CPU).

    >>> import jax, jax.numpy as jnp, simclr_jax
    >>> resnet, images = simclr_jax.ResNet(depth=10, width=1 / 32, stem='cifar'), jnp.zeros((2, 8, 8, 3))
    >>> variables = jax.jit(resnet.init, static_argnums=2)(jax.random.key(0), images, True)
    >>> features, updates = resnet.apply(variables, images, True, mutable=['batch_stats'])     # training
    >>> features = resnet.apply(variables, images, False)                                      # evaluation
    >>> sorted(variables), features.shape, features.dtype.name
    (['batch_stats', 'params'], (2, 16), 'float32')
    """

    depth: int
    width: float = 1.0
    stem: str = 'imagenet'
    sk_ratio: float = 0.0
    zero_init_last_gamma: bool = True
    max_pool: str = 'torch'
    conv_padding: str = 'symmetric'
    project_first: bool = False
    norm_groups: int = 1
    norm_strided: bool = False
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Maps images [B, H, W, 3] to features [B, D] float32, D = 512 * expansion * width.

        Pixels are floats, in [0, 1] and normalised as where the weights come from; `Network` and
        `load_encoder` do that. With 'maps' mutable it also leaves the outputs of the stem and of each stage
        there, [B, h, w, C].

        Raises ValueError for integer pixels or another number of axes, an unknown depth, stem, max_pool or
        conv_padding, or a width below 1/32.
        """
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f'ResNet takes floats [B, H, W, C], not {images.dtype}{list(images.shape)}: '
                             'divide uint8 by 255, and give a single image an axis, images[None].')
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f'encoder.{field} is {getattr(self, field)!r}: it takes '
                                 f'{", ".join(map(str, choices))}.')
        conv = partial(Conv, padding=self.conv_padding, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, groups=self.norm_groups,
                       strided=self.norm_strided, momentum=self.norm_momentum,
                       epsilon=self.norm_epsilon, dtype=self.dtype)
        last_init = nn.initializers.zeros if self.zero_init_last_gamma else nn.initializers.ones
        last_norm = partial(norm, scale_init=last_init)

        channels = int(64 * self.width)
        if channels < 2:
            raise ValueError(f'encoder.width is {self.width}: it takes 1/32 or more.')
        x = self._stem(images, channels, conv, norm)
        self._keep('stem', x)
        block_type, stage_sizes = DEPTHS[self.depth]
        if self.remat:
            block_type = nn.remat(block_type)
        for stage, num_blocks in enumerate(stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = block_type(channels * 2 ** stage, stride, self.sk_ratio, conv, norm, last_norm,
                               project=self.project_first and block == 0,
                               name=f'stage{stage + 1}_block{block + 1}')(x)
            self._keep(f'stage{stage + 1}', x)
        return x.mean((1, 2), dtype=jnp.float32)

    def stage_of(self, module: str) -> int:
        """1 to 4 of 'stage1_block1' and so on, 0 of the stem: for fine-tuning from a stage on."""
        return int(module[len('stage')]) if module.startswith('stage') else 0

    def _keep(self, name, x):
        if not self.is_initializing():      # or the map would become one of the variables
            self.sow('maps', name, x)

    def _stem(self, x, channels, conv, norm):
        if self.stem == 'cifar':
            x = conv(channels, 3, name='stem_conv')(x)
            return norm(name='stem_norm')(x, rectify=True)
        if self.sk_ratio > 0:  # ResNet-D (arXiv:1812.01187)
            for number, features in enumerate((channels // 2, channels // 2, channels), start=1):
                x = conv(features, 3, 2 if number == 1 else 1, name=f'stem_conv{number}')(x)
                x = norm(name=f'stem_norm{number}')(x, rectify=True)
        else:
            x = conv(channels, 7, 2, name='stem_conv')(x)
            x = norm(name='stem_norm')(x, rectify=True)
        return max_pool(x, MAX_POOL_PADDING[self.max_pool])
