"""ConvNeXt (Liu et al. 2022), with the layers and names of timm's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# blocks and channels of the four stages (the paper's sec. 2.1; pico: timm convnext.py)
SIZES = {'pico': ((2, 2, 6, 2), (64, 128, 256, 512)), 'tiny': ((3, 3, 9, 3), (96, 192, 384, 768)),
         'small': ((3, 3, 27, 3), (96, 192, 384, 768)), 'base': ((3, 3, 27, 3), (128, 256, 512, 1024))}


class ConvNeXt(nn.Module):
    """Images to one vector each: depthwise 7x7 convolutions and MLPs, four stages, the mean, and a norm.

    Attributes:
        size: pico, tiny, small or base; `depths` and `widths`, four numbers each, override it.
        patch: side and stride of the first convolution: 4; 1 or 2 for small images.
        layer_scale: the start of the factor of each block's output.
        dtype: of the activations; parameters and norms are float32.

    >>> import jax, jax.numpy as jnp
    >>> encoder, images = ConvNeXt(depths=(1, 1, 1, 1), widths=(4, 8, 8, 16), patch=2), jnp.zeros((2, 32, 32, 3))
    >>> variables = encoder.init(jax.random.key(0), images, train=False)
    >>> encoder.apply(variables, images, train=False).shape
    (2, 16)
    """

    size: str = 'tiny'
    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    patch: int = 4
    layer_scale: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """images [B, H, W, C] -> [B, widths[3]]; sows the map of each stage.

        Raises ValueError for fields out of their range, and images too small for the four stages.
        """
        del train                               # nothing is drawn
        depths, widths = self.shape()
        if min(images.shape[1:3]) < 8 * self.patch:
            raise ValueError(f'ConvNeXt divides images by {8 * self.patch}, and these are {images.shape[1]} x '
                             f'{images.shape[2]} pixels: choose a larger augment.image_size, or a smaller patch.')
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, name=name)   # float32
        x = images
        for stage, (depth, width) in enumerate(zip(depths, widths)):
            side = 2 if stage else self.patch
            name = f'stages_{stage}_downsample' if stage else 'stem'
            if stage:
                x = norm(f'{name}_norm')(x).astype(self.dtype)
            x = nn.Conv(width, (side, side), strides=side, padding='VALID', kernel_init=_init, dtype=self.dtype,
                        name=f'{name}_conv')(x)
            if not stage:
                x = norm(f'{name}_norm')(x).astype(self.dtype)
            for index in range(depth):
                x = Block(self.layer_scale, self.dtype, name=f'stages_{stage}_blocks_{index}')(x)
            self.sow('maps', f'stage{stage + 1}', x)
        return norm('norm')(x.astype(jnp.float32).mean((1, 2)))

    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(depths, widths)."""
        if self.size not in SIZES:
            raise ValueError(f'ConvNeXt has size {", ".join(SIZES)}, not {self.size!r}.')
        depths, widths = (tuple(own) or of_size for own, of_size in zip((self.depths, self.widths), SIZES[self.size]))
        if (len(depths), len(widths)) != (4, 4) or min(*depths, *widths) < 1:
            raise ValueError('ConvNeXt has four stages: four depths and four widths, all of at least 1, not '
                             f'{depths} and {widths}.')
        return depths, widths

    def stage_of(self, module: str) -> int:
        """The stage that a module is frozen with: 0 the stem, 1 to 4."""
        if not module.startswith('stages_'):
            return 4 if module == 'norm' else 0
        return 1 + int(module[len('stages_')])


_init = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """A depthwise convolution and a MLP of four times the width, scaled and added to what they read."""

    layer_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, h, w, C]
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width, kernel_init=_init, dtype=self.dtype,
                    name='conv_dw')(x)
        y = nn.LayerNorm(epsilon=1e-6, name='norm')(y).astype(self.dtype)
        y = nn.gelu(nn.Dense(4 * width, kernel_init=_init, dtype=self.dtype, name='fc1')(y), approximate=False)
        y = nn.Dense(width, kernel_init=_init, dtype=self.dtype, name='fc2')(y)
        scale = self.param('gamma', nn.initializers.constant(self.layer_scale), (width,))
        return x + (scale * y).astype(x.dtype)
