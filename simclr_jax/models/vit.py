"""Vision Transformers (Dosovitskiy et al. 2021), with the layers and names of timm's, as MoCo v3 trains them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

# width, depth, heads (Touvron et al. 2021, Table 1; Dosovitskiy et al. 2021, Table 1; timm vision_transformer.py)
SIZES = {'tiny': (192, 12, 3), 'small': (384, 12, 6), 'base': (768, 12, 12), 'large': (1024, 24, 16)}
POSITIONS = ('sincos', 'learned')
POOLS = ('class', 'mean')

_xavier: Any = nn.initializers.xavier_uniform()      # facebookresearch/moco-v3 vits.py


class ViT(nn.Module):
    """Images to one vector each: square patches, a class token, and `depth` layers of attention and MLP.

    Attributes:
        size: tiny, small, base or large; `width`, `depth` and `heads` other than 0 override it. MoCo v3's small
            has 12 heads, timm's and DeiT's 6.
        patch: side of a patch in pixels; those of the images must be multiples of it.
        positions: 'sincos', fixed and for images of any size (MoCo v3); 'learned', for images of `image_size`
            and resampled (bicubic, antialiased, as timm) for others.
        image_size: see `positions`.
        pool: 'class': the class token after the last norm; 'mean': the mean of the patches, normed after it, in
            the place of a class token (timm's global_pool='avg' with fc_norm).
        dtype: of the activations; parameters, norms and the softmax are float32.

    MoCo v3 keeps the patch projection at its start: `optimizer.frozen = ('(^|/)patch_embed/',)` does that.

    >>> import jax, jax.numpy as jnp
    >>> encoder, images = ViT(width=32, depth=2, heads=2, patch=8), jnp.zeros((2, 32, 32, 3))
    >>> variables = encoder.init(jax.random.key(0), images, train=False)
    >>> encoder.apply(variables, images, train=False).shape
    (2, 32)
    """

    size: str = 'small'
    width: int = 0
    depth: int = 0
    heads: int = 0
    patch: int = 16
    positions: str = 'sincos'
    image_size: int = 224
    pool: str = 'class'
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """images [B, H, W, C] -> [B, width]; sows the tokens of each layer, [B, 1 + H W / patch^2, width].

        Raises ValueError for fields out of their range, and images that are no multiple of `patch`.
        """
        del train                               # nothing is drawn
        width, depth, heads = self.shape()
        _, height, breadth, channels = images.shape
        if height % self.patch or breadth % self.patch:
            raise ValueError(f'ViT cuts images into patches of {self.patch} pixels, and {height} x {breadth} is no '
                             'multiple of it: choose another augment.image_size, or patch.')
        uniform = nn.initializers.variance_scaling(     # Xavier's for the patch as one row (vits.py)
            2 * channels * self.patch ** 2 / (channels * self.patch ** 2 + width), 'fan_in', 'uniform')
        x = nn.Conv(width, (self.patch, self.patch), strides=self.patch, padding='VALID', kernel_init=uniform,
                    dtype=self.dtype, name='patch_embed')(images)
        grid = x.shape[1:3]
        x = x.reshape(len(x), -1, width) + self._positions(grid, width).astype(x.dtype)
        if self.pool == 'class':
            token = self.param('cls_token', nn.initializers.normal(1e-6), (1, 1, width))
            if self.positions == 'learned':
                token = token + self.param('cls_position', nn.initializers.normal(0.02), (1, 1, width))
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, width)).astype(x.dtype), x], axis=1)
        for index in range(depth):
            x = Block(heads, self.dtype, name=f'blocks_{index}')(x)
            self.sow('maps', f'block{index + 1}', x)
        norm = nn.LayerNorm(epsilon=1e-6, name='norm')
        return norm(x[:, 0]) if self.pool == 'class' else norm(x.astype(jnp.float32).mean(1))

    def shape(self) -> tuple[int, int, int]:
        """(width, depth, heads)."""
        for field, values in (('size', SIZES), ('positions', POSITIONS), ('pool', POOLS)):
            if getattr(self, field) not in values:
                raise ValueError(f'ViT has {field} {", ".join(values)}, not {getattr(self, field)!r}.')
        width, depth, heads = (own or of_size for own, of_size in
                               zip((self.width, self.depth, self.heads), SIZES[self.size]))
        if width % heads or width % 4:
            raise ValueError(f'ViT: a width of {width} does not divide into {heads} heads and, for its positions, '
                             '4 parts.')
        return width, depth, heads

    def stage_of(self, module: str) -> int:
        """The stage that a module is frozen with: 0 the patches, then quarters of the layers, 4 the last."""
        if not module.startswith('blocks_'):
            return 4 if module == 'norm' else 0
        return 1 + 4 * int(module.removeprefix('blocks_')) // self.shape()[1]

    def _positions(self, grid, width):
        """[1, H W / patch^2, width], row after row."""
        if self.positions == 'sincos':
            return sincos_positions(grid[0], grid[1], width)[None]
        side = self.image_size // self.patch
        table = self.param('positions', nn.initializers.normal(0.02), (1, side * side, width))
        if grid == (side, side):
            return table
        table = jax.image.resize(table.reshape(1, side, side, width), (1, *grid, width), 'bicubic', antialias=True)
        return table.reshape(1, -1, width)


class Block(nn.Module):
    """Attention and a MLP of four times the width, each after a norm and added to what it reads."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B, T, width]
        batch, tokens, width = x.shape
        dense = lambda features, name, init=_xavier: nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(epsilon=1e-6, name=name)   # float32
        qkv = dense(3 * width, 'qkv', _xavier_thirds)(norm('norm1')(x).astype(self.dtype))
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, -1), 2, 0)      # [B, T, heads, d]
        attended = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + dense(width, 'proj')(attended)
        hidden = nn.gelu(dense(4 * width, 'fc1')(norm('norm2')(x).astype(self.dtype)), approximate=False)
        return x + dense(width, 'fc2')(hidden)


def _xavier_thirds(key: Any, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
    """Xavier's of queries, keys and values each for itself (vits.py)."""
    limit = (6 / (shape[0] + shape[1] // 3)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def sincos_positions(height: int, breadth: int, width: int) -> np.ndarray:
    """[height * breadth, width] float32: sines and cosines of the row, then of the column (moco-v3 vits.py)."""
    rates = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    rows, columns = (place.reshape(-1, 1) * rates for place in np.mgrid[:height, :breadth])
    return np.concatenate([np.sin(rows), np.cos(rows), np.sin(columns), np.cos(columns)], axis=1).astype(np.float32)
