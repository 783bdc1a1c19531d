"""The tensors of another program's file under our own paths.

A reader says which layer of the file is which of ours, and how the tensors of a layer are named there. From these
two tables come the names of all tensors (`tensor_names`), the arrays under our paths (`by_path`), and by these the
fields of the network (`resnet_fields`, `head_fields`). What is missing or left over is named by `tree.fit`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.tree import refuse

ANY_SIZES = (100,) * 4      # blocks of each stage, more than any ResNet has
_BLOCK = re.compile(r'\w+/encoder/stage([1-4])_block(\d+)/')
_SK_RATIO = 0.0625          # the one that SimCLRv2 uses


def resnet_layers(stem: Mapping[str, str], block: Callable[[int, int], Mapping[str, str]],
                  sizes: Sequence[int] = ANY_SIZES) -> dict[str, str]:
    """{layer here: layer there} of a ResNet.

    Args:
        stem: these of what stands before the blocks.
        block: (stage, block of it), both from 0 -> {layer of a block: layer there}.
        sizes: the number of blocks in each stage.
    """
    layers = {f'encoder/{layer}': there for layer, there in stem.items()}
    for stage, size in enumerate(sizes):
        for index in range(size):
            layers |= {f'encoder/stage{stage + 1}_block{index + 1}/{layer}': there
                       for layer, there in block(stage, index).items()}
    return layers


def is_norm(layer: str) -> bool:
    """Whether a layer of ours is a norm."""
    return 'norm' in layer.rsplit('/', 1)[-1]


def tensor_names(layers: Mapping[str, str], weights: Mapping[str, str], norms: Mapping[str, str]) -> dict[str, str]:
    """{path, as in `tree.expected`: name in the file} of all tensors that the layers may have.

    `norms` and, of other layers, `weights` are {tensor of a layer here: what follows the layer's name there}.
    """
    return {f'{"batch_stats" if leaf in ("mean", "var") else "params"}/{layer}/{leaf}': there + ending
            for layer, there in layers.items() for leaf, ending in (norms if is_norm(layer) else weights).items()}


def by_path(arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays under our paths, those that are not in `names` under their own name."""
    paths = {name: path for path, name in names.items()}
    return {paths.get(name, name): array for name, array in arrays.items()}


def counted(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that group 1 of `pattern` finds in the names, 0 where it finds none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1] or 0) + 1 for match in found if match), default=0)


def resnet_fields(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], file: str, *, averaged: bool = False
                  ) -> dict[str, Any]:
    """depth, width, stem, sk_ratio and project_first of the ResNet with these arrays, which are under our paths.

    Args:
        names: see `by_path`, for messages; and so is `file`.
        averaged: it is a ResNet-D, whose sk_ratio is 0.0625 if that gives the widths that there are.

    Raises:
        ValueError: there is no such ResNet.
    """
    kernels = {path.removeprefix('params/encoder/').removesuffix('/kernel'): array.shape
               for path, array in arrays.items() if array.ndim == 4}
    blocks = [(int(match[1]), int(match[2])) for match in map(_BLOCK.match, arrays) if match]
    counts = [max((block for of, block in blocks if of == stage), default=0) for stage in (1, 2, 3, 4)]
    first_block = [path.split('/')[3] for path in arrays if '/encoder/stage1_block1/' in path]
    kind = 'bottleneck' if 'conv3' in first_block else 'basic'
    depth = next((depth for depth, (block_type, sizes) in DEPTHS.items()
                  if list(sizes) == counts and (block_type is BottleneckBlock) == (kind == 'bottleneck')), 0)
    if not depth:
        raise ValueError(f'{file} has stages of {", ".join(map(str, counts))} {kind} blocks: no ResNet of depth '
                         f'{", ".join(map(str, DEPTHS))}.')
    deep = any('/encoder/stem_conv3/' in path for path in arrays)
    first, last = ('stem_conv1', 'stem_conv3') if deep else ('stem_conv', 'stem_conv')
    refuse(file, {'missing, or no convolution': [
        names[f'params/encoder/{layer}/kernel'] for layer in {first, last} if layer not in kernels]})
    channels = kernels[last][3]
    return {'depth': depth, 'width': channels / 64, 'stem': 'imagenet' if deep or kernels[first][0] != 3 else 'cifar',
            'sk_ratio': _sk_ratio(kernels, channels, file) if averaged else 0.0,
            'project_first': kind == 'basic' and 'shortcut_conv' in first_block}


def _sk_ratio(kernels, channels, file):
    """A ratio that gives every squeeze its width, max(int(features * ratio), 32); SimCLRv2's if it does."""
    layers = {channels * 2 ** stage: f'stage{stage + 1}_block1/conv2/squeeze_conv' for stage in range(4)}
    widths = {features: kernels[layer][3] for features, layer in layers.items() if layer in kernels}
    for ratio in (_SK_RATIO, *((width + half) / features for features, width in widths.items() for half in (0, 0.5))):
        if all(width == max(int(features * ratio), 32) for features, width in widths.items()):
            return ratio
    raise ValueError(f'{file} squeezes {list(widths)} channels to {list(widths.values())}, which no sk_ratio gives.')


def head_fields(arrays: Mapping[str, np.ndarray], num_layers: int, **fixed: Any) -> dict[str, Any]:
    """The fields of a projection head of so many layers; what has no shape to tell it by is `fixed`."""
    if not num_layers:
        return {'mode': 'none'}
    kernels = (arrays.get(f'params/head/dense{layer}/kernel', np.zeros(0)) for layer in (1, num_layers))
    hidden, out = (kernel.shape[1] if kernel.ndim == 2 else 0 for kernel in kernels)
    if num_layers == 1:
        return {'mode': 'linear', 'out_dim': out, **fixed}
    return {'mode': 'nonlinear', 'num_layers': num_layers, 'hidden_width': hidden, 'out_dim': out, **fixed}
