"""Where each layer of google-research/simclr stands in its checkpoints, and which network a file holds.

Names and order of creation are those of tf2/resnet.py, tf2/model.py, resnet.py and model_util.py there.
"""

import collections
import re
from collections.abc import Mapping
from typing import Any

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.tree import resnet_depth

STEM = 'initial_conv_relu_max_pool'
_SK_RATIO = 0.0625      # the one that SimCLRv2 uses
# {layer of ours: where it stands in the TF2 model}, of the stem and of a block.
_STEM = {'conv': '0/conv2d', 'norm': '2/bn'}
_STEM_OF_RESNET_D = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '2/conv2d', 'norm2': '3/bn',
                     'conv3': '4/conv2d', 'norm3': '6/bn'}
_BASIC = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '2/conv2d', 'norm2': '3/bn'}
_BOTTLENECK = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '3/conv2d', 'norm2': '4/bn',
               'conv3': '6/conv2d', 'norm3': '7/bn'}
_SELECTIVE = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2/conv': '3/conv2d_fixed_padding/conv2d',
              'conv2/norm': '3/batch_norm_relu/bn', 'conv2/squeeze_conv': '3/conv2d_0',
              'conv2/squeeze_norm': '3/batch_norm_relu_1/bn', 'conv2/mixing_conv': '3/conv2d_1',
              'conv3': '5/conv2d', 'norm3': '6/bn'}
_NORM_VARIABLES = {'params/{}/scale': 'gamma', 'params/{}/bias': 'beta',
                   'batch_stats/{}/mean': 'moving_mean', 'batch_stats/{}/var': 'moving_variance'}


def encoder_layers(depth: int, stem: str, sk: bool) -> dict[str, str]:
    """{layer here: layer in the TF2 model}, in the order in which the TF1 code creates and numbers them."""
    of_stem = _STEM_OF_RESNET_D if sk and stem == 'imagenet' else _STEM
    layers = {f'stem_{layer}': f'{STEM}/{place}' for layer, place in of_stem.items()}
    block_type, stage_sizes = DEPTHS[depth]
    if block_type is BottleneckBlock:
        shortcut, path, of_block = ('projection_layers', 'conv_relu_dropblock_layers',
                                    _SELECTIVE if sk else _BOTTLENECK)
    else:
        shortcut, path, of_block = 'shortcut_layers', 'conv2d_bn_layers', _BASIC
    for stage, num_blocks in enumerate(stage_sizes):
        first = (2 if stage else 1) if sk else 0        # of a shortcut, after padding and pooling
        for block in range(num_blocks):
            ours, official = f'stage{stage + 1}_block{block + 1}', f'block_groups/{stage}/layers/{block}'
            if block == 0:
                layers[f'{ours}/shortcut_conv'] = f'{official}/{shortcut}/{first}/conv2d'
                layers[f'{ours}/shortcut_norm'] = f'{official}/{shortcut}/{first + 1}/bn'
            layers |= {f'{ours}/{layer}': f'{official}/{path}/{place}' for layer, place in of_block.items()}
    return layers


def encoder_names(depth: int, stem: str, sk: bool, tf1: bool) -> dict[str, str]:
    """{path of weights.tree.expected: name of the variable in the file} of an encoder."""
    names, counts = {}, collections.Counter()
    for ours, official in encoder_layers(depth, stem, sk).items():
        name = f'resnet_model/{official}'
        if tf1:
            kind = 'batch_normalization' if _is_norm(ours) else 'conv2d'
            name = f'base_model/{kind}' + f'_{counts[kind]}' * (counts[kind] > 0)
            counts[kind] += 1
        names |= _variables(f'encoder/{ours}', name)
    return names


def head_names(layers: list[str], norm: str) -> dict[str, str]:
    """The same of a projection head, from the names of its layers and of the BatchNorm in each.

    The last BatchNorm is given a name for the offset that it does not have.
    """
    names = {}
    for index, layer in enumerate(layers, start=1):
        names |= _variables(f'head/dense{index}', f'{layer}/dense')
        names |= _variables(f'head/norm{index}', f'{layer}/{norm}')
    return names


def _is_norm(layer):
    return 'norm' in layer.rsplit('/', 1)[-1]


def _variables(ours, official):
    if not _is_norm(ours):
        return {f'params/{ours}/kernel': f'{official}/kernel'}
    return {path.format(ours): f'{official}/{name}' for path, name in _NORM_VARIABLES.items()}


def infer_encoder(shapes: Mapping[str, tuple[int, ...]], tf1: bool, file: str) -> dict[str, Any]:
    """The fields of models.resnet.ResNet for a file with variables of these shapes.

    Under TF1 names a ResNet-18 or 34 with the CIFAR stem has the same variables with and without SK: it is
    taken to be without.

    Raises:
        ValueError: it is none of the networks that there are, or one that this package does not have.
    """
    excited = [name for name in shapes if '/se_' in name or re.match(r'base_model/conv2d.*/bias', name)]
    if excited:
        raise ValueError(f'{file} has squeeze-and-excitation layers ({excited[0]}): '
                         'networks trained with se_ratio > 0 are not supported.')
    depth, sk, three_convs = _tf1_blocks(shapes, file) if tf1 else _tf2_blocks(shapes, file)
    first = 'base_model/conv2d/kernel' if tf1 else f'resnet_model/{STEM}/0/conv2d/kernel'
    last = first
    if three_convs:
        last = 'base_model/conv2d_2/kernel' if tf1 else f'resnet_model/{STEM}/4/conv2d/kernel'
    stem = 'imagenet' if three_convs or _shape(shapes, first, file)[0] != 3 else 'cifar'
    channels = _shape(shapes, last, file)[3]
    basic = DEPTHS[depth][0] is not BottleneckBlock
    if basic and sk and tf1:
        raise ValueError(f'{file} holds a ResNet-{depth} with selective kernels of the TF1 code, which feeds '
                         'the pooled map to its blocks too: only those of depth 50 and more are supported.')
    return {'depth': depth, 'width': channels / 64, 'stem': stem,
            'sk_ratio': _sk_ratio(shapes, depth, stem, tf1, channels, file) if sk else 0.0,
            'zero_init_last_gamma': True, 'max_pool': 'same', 'conv_padding': 'symmetric',
            'project_first': basic, 'norm_momentum': 0.9, 'norm_epsilon': 1e-5, 'dtype': 'float32'}


def _shape(shapes, name, file):
    if name not in shapes or len(shapes[name]) != 4:
        raise ValueError(f'{file} does not fit the network: {name} is missing, or is not a convolution. '
                         'Nothing was loaded.')
    return shapes[name]


def _tf2_blocks(shapes, file):
    """(depth, selective kernels, three convolutions in the stem)"""
    bottleneck = any('/conv_relu_dropblock_layers/' in name for name in shapes)
    depth = resnet_depth(shapes, r'resnet_model/block_groups/(\d)/layers/(\d{1,3})/', first=0,
                         bottleneck=bottleneck, file=file)
    shortcut = 'projection_layers' if bottleneck else 'shortcut_layers'
    three_convs = f'resnet_model/{STEM}/4/conv2d/kernel' in shapes
    pooled = f'resnet_model/block_groups/0/layers/0/{shortcut}/1/conv2d/kernel' in shapes
    return depth, three_convs or pooled, three_convs


def _tf1_blocks(shapes, file):
    """(depth, selective kernels, three convolutions in the stem), by the number of convolutions."""
    matches = [re.match(r'base_model/conv2d(?:_(\d{1,4}))?/kernel$', name) for name in shapes]
    count = max((int(match[1] or 0) + 1 for match in matches if match), default=0)
    for depth in DEPTHS:
        for sk, stem in ((False, 'imagenet'), (True, 'imagenet'), (True, 'cifar')):
            if count == sum(not _is_norm(layer) for layer in encoder_layers(depth, stem, sk)):
                return depth, sk, sk and stem == 'imagenet'
    raise ValueError(f'{file} holds {count} convolutions under base_model, which is not a ResNet of depth '
                     f'{", ".join(map(str, DEPTHS))}, with or without selective kernels.')


def _sk_ratio(shapes, depth, stem, tf1, channels, file):
    """A ratio that gives every squeeze its width, max(int(features * ratio), 32); SimCLRv2's if it does."""
    names = encoder_names(depth, stem, True, tf1)
    widths = {}     # features of a stage -> width of its squeeze
    for path, name in names.items():
        match = re.fullmatch(r'params/encoder/stage(\d)_block1/conv2/squeeze_conv/kernel', path)
        if match:
            widths[channels * 2 ** (int(match[1]) - 1)] = _shape(shapes, name, file)[3]
    for ratio in (_SK_RATIO, *((width + half) / features for features, width in widths.items()
                               for half in (0, 0.5))):
        if all(width == max(int(features * ratio), 32) for features, width in widths.items()):
            return ratio
    raise ValueError(f'{file} squeezes {list(widths)} channels to {list(widths.values())}, '
                     'which no sk_ratio gives.')
