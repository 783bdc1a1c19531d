"""ViT and ConvNeXt under the state-dict names of timm's, both ways.

patch_embed               patch_embed.proj       stem_conv, stem_norm              stem.0, stem.1
cls_token                 cls_token              stages_1_downsample_norm, _conv   stages.1.downsample.0, .1
cls_position, positions   pos_embed, in one      stages_1_blocks_2/conv_dw         stages.1.blocks.2.conv_dw
blocks_3/qkv, proj        blocks.3.attn.qkv ...  .../fc1, fc2                      stages.1.blocks.2.mlp.fc1 ...
blocks_3/fc1, fc2         blocks.3.mlp.fc1 ...   .../gamma                         stages.1.blocks.2.gamma
norm                      norm, or fc_norm       norm                              head.norm
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.models.vit import SIZES, sincos_positions
from simclr_jax.weights.tree import kind_of

_POSITIONS = 'pos_embed'
CLASSIFIERS = {'vit': 'head', 'convnext': 'head.fc'}


def timm_layer(layer: str, encoder: Mapping[str, Any]) -> str:
    """'blocks_3/qkv' -> 'blocks.3.attn.qkv': the name of a module of the encoder, or of a bare parameter."""
    if kind_of(encoder) == 'convnext':
        layer = {'stem_conv': 'stem.0', 'stem_norm': 'stem.1', 'norm': 'head.norm'}.get(layer, layer)
        layer = re.sub(r'^stages_(\d)_downsample_(norm|conv)$', lambda found: (
            f'stages.{found[1]}.downsample.{("norm", "conv").index(found[2])}'), layer)
        layer = re.sub(r'^stages_(\d)_blocks_(\d+)', r'stages.\1.blocks.\2', layer)
        return re.sub(r'/(?=fc[12]$)', '.mlp.', layer).replace('/', '.')
    if layer == 'norm':
        return 'fc_norm' if encoder['arguments'].get('pool') == 'mean' else 'norm'
    layer = re.sub(r'^blocks_(\d+)', r'blocks.\1', layer.replace('patch_embed', 'patch_embed.proj'))
    layer = re.sub(r'/(?=(?:qkv|proj)$)', '.attn.', re.sub(r'/(?=fc[12]$)', '.mlp.', layer))
    return layer.replace('/', '.')


def joined_positions(arrays: dict[str, np.ndarray], encoder: Mapping[str, Any], image_size: int
                     ) -> dict[str, np.ndarray]:
    """A state dict with timm's one pos_embed in the place of cls_position and positions, or of the fixed ones."""
    if kind_of(encoder) != 'vit':
        return arrays
    arguments = encoder['arguments']
    parts = [arrays.pop(name) for name in ('cls_position', 'positions') if name in arrays]
    if arguments.get('positions', 'sincos') == 'sincos':
        parts = [_fixed(image_size // arguments.get('patch', 16), arrays, arguments)]
    return {**arrays, _POSITIONS: np.concatenate(parts, axis=1)}


def split_positions(arrays: Mapping[str, np.ndarray], encoder: Mapping[str, Any], image_size: int
                    ) -> dict[str, np.ndarray]:
    """The opposite of `joined_positions`; fixed ones are compared and left out."""
    if kind_of(encoder) == 'convnext':          # timm's smallest have convolutions of one pixel in their MLPs
        return {name: array[:, :, 0, 0] if re.search(r'\.mlp\.fc[12]\.weight$', name) and array.ndim == 4 else array
                for name, array in arrays.items()}
    arrays = dict(arrays)
    if kind_of(encoder) != 'vit' or _POSITIONS not in arrays:
        return arrays
    arguments, found = encoder['arguments'], arrays.pop(_POSITIONS)
    if arguments.get('positions', 'sincos') == 'sincos':
        if not _is_fixed(found, _fixed(image_size // arguments.get('patch', 16), arrays, arguments)):
            arrays[_POSITIONS] = found          # it will be named as unexpected
        return arrays
    first = arguments.get('pool', 'class') == 'class'
    return arrays | ({'cls_position': found[:, :1]} if first else {}) | {'positions': found[:, int(first):]}


def _fixed(side, arrays, arguments):
    width = arrays['patch_embed.proj.bias'].shape[0]
    first = arguments.get('pool', 'class') == 'class'
    return np.concatenate([np.zeros((int(first), width), np.float32), sincos_positions(side, side, width)])[None]


def _is_fixed(found, fixed):
    return found.shape == fixed.shape and np.allclose(found, fixed, atol=1e-5)


def timm_encoder(arrays: Mapping[str, np.ndarray], *, moco: bool, file: str) -> tuple[dict[str, Any], int]:
    """(name and arguments of the encoder that has these names and shapes, the side of its images).

    The number of heads is not in a file: MoCo v3's small ViT has 12, all others one for 64 features.

    Raises:
        ValueError: it is neither, or has parts that these do not have; names are told by `tree.fit`.
    """
    if 'stem.0.weight' in arrays:
        counts = [1 + max((int(match[1]) for match in (
            re.match(rf'stages\.{stage}\.blocks\.(\d+)\.', name) for name in arrays) if match), default=-1)
            for stage in range(4)]
        widths = [_rows(arrays, f'stages.{stage}.blocks.0.gamma', file) for stage in range(4)]
        return {'name': 'convnext', 'arguments': {
            'depths': counts, 'widths': widths, 'patch': arrays['stem.0.weight'].shape[-1]}}, 224
    width, patch = _rows(arrays, 'patch_embed.proj.weight', file), arrays['patch_embed.proj.weight'].shape[-1]
    depth = 1 + max((int(match[1]) for match in (re.match(r'blocks\.(\d+)\.', name) for name in arrays) if match),
                    default=-1)
    pool = 'class' if 'cls_token' in arrays else 'mean'
    tokens = arrays[_POSITIONS].shape[1] if _POSITIONS in arrays and arrays[_POSITIONS].ndim == 3 else 0
    side = math.isqrt(max(tokens - (pool == 'class'), 0))
    if not tokens or side ** 2 + (pool == 'class') != tokens:
        raise ValueError(f'{file}: {_POSITIONS} is missing, or is not of a square of patches.')
    arguments: dict[str, Any] = {'width': width, 'depth': depth, 'heads': 12 if moco and width == 384 else width // 64,
                                 'patch': patch, 'pool': pool}
    for size, values in SIZES.items():
        if values == (width, depth, arguments['heads']):
            arguments = {'size': size, 'patch': patch, 'pool': pool}
    fixed = _is_fixed(arrays[_POSITIONS], _fixed(side, arrays, arguments))
    arguments |= {'positions': 'sincos'} if fixed else {'positions': 'learned', 'image_size': side * patch}
    return {'name': 'vit', 'arguments': arguments}, side * patch


def timm_class(encoder: Mapping[str, Any], module: Any, image_size: int) -> dict[str, Any]:
    """{'class', 'arguments'}: the class of timm.models that these weights load into strictly."""
    if kind_of(encoder) == 'convnext':
        depths, widths = module.shape()
        return {'class': 'ConvNeXt', 'arguments': {
            'depths': list(depths), 'dims': list(widths), 'patch_size': module.patch}}
    width, depth, heads = module.shape()
    first = module.pool == 'class'
    return {'class': 'VisionTransformer', 'arguments': {
        'img_size': module.image_size if module.positions == 'learned' else image_size, 'patch_size': module.patch,
        'embed_dim': width, 'depth': depth, 'num_heads': heads, 'class_token': first,
        'global_pool': 'token' if first else 'avg'}}


def _rows(arrays, name, file):
    if name not in arrays:
        raise ValueError(f'{file} is neither a ViT nor a ConvNeXt of timm: it has no {name}.')
    return int(arrays[name].shape[0])
