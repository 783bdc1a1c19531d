"""Where each layer of google-research/simclr stands in its checkpoints, and which network a file holds.

Names and order of creation are those of tf2/resnet.py, tf2/model.py, resnet.py and model_util.py there.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.tree import resnet_depth

NORM_VARIABLES = {'gamma': 'params/{}/scale', 'beta': 'params/{}/bias',
                  'moving_mean': 'batch_stats/{}/mean', 'moving_variance': 'batch_stats/{}/var'}
STEM = 'initial_conv_relu_max_pool'
_SK_RATIO = 0.0625      # the one that SimCLRv2 uses


class Layer(NamedTuple):
    """A layer of the encoder: its path here, its path in the TF2 model, and whether it is a BatchNorm."""

    ours: str
    official: str
    is_norm: bool


def encoder_layers(depth: int, stem: str, sk: bool) -> Iterator[Layer]:
    """The layers of an encoder in the order in which the TF1 code creates, and so numbers, them."""
    if sk and stem == 'imagenet':       # ResNet-D: three convolutions
        for index, (conv, norm) in enumerate(((0, 1), (2, 3), (4, 6)), start=1):
            yield Layer(f'stem_conv{index}', f'{STEM}/{conv}/conv2d', False)
            yield Layer(f'stem_norm{index}', f'{STEM}/{norm}/bn', True)
    else:
        yield Layer('stem_conv', f'{STEM}/0/conv2d', False)
        yield Layer('stem_norm', f'{STEM}/2/bn', True)
    block_type, stage_sizes = DEPTHS[depth]
    layers = _bottleneck_layers if block_type is BottleneckBlock else _basic_layers
    for stage, num_blocks in enumerate(stage_sizes):
        for block in range(num_blocks):
            ours, official = f'stage{stage + 1}_block{block + 1}', f'block_groups/{stage}/layers/{block}'
            for layer in layers(sk, stride=2 if stage else 1, project=block == 0):
                yield Layer(f'{ours}/{layer.ours}', f'{official}/{layer.official}', layer.is_norm)


def _shortcut_layers(name, sk, stride):
    first = (2 if stride > 1 else 1) if sk else 0       # after padding and pooling
    yield Layer('shortcut_conv', f'{name}/{first}/conv2d', False)
    yield Layer('shortcut_norm', f'{name}/{first + 1}/bn', True)


def _basic_layers(sk, stride, project):
    if project:
        yield from _shortcut_layers('shortcut_layers', sk, stride)
    for index in (0, 1):
        yield Layer(f'conv{index + 1}', f'conv2d_bn_layers/{2 * index}/conv2d', False)
        yield Layer(f'norm{index + 1}', f'conv2d_bn_layers/{2 * index + 1}/bn', True)


def _bottleneck_layers(sk, stride, project):
    if project:
        yield from _shortcut_layers('projection_layers', sk, stride)
    path = 'conv_relu_dropblock_layers'
    yield Layer('conv1', f'{path}/0/conv2d', False)
    yield Layer('norm1', f'{path}/1/bn', True)
    if sk:
        yield Layer('conv2/conv', f'{path}/3/conv2d_fixed_padding/conv2d', False)
        yield Layer('conv2/norm', f'{path}/3/batch_norm_relu/bn', True)
        yield Layer('conv2/squeeze_conv', f'{path}/3/conv2d_0', False)
        yield Layer('conv2/squeeze_norm', f'{path}/3/batch_norm_relu_1/bn', True)
        yield Layer('conv2/mixing_conv', f'{path}/3/conv2d_1', False)
    else:
        yield Layer('conv2', f'{path}/3/conv2d', False)
        yield Layer('norm2', f'{path}/4/bn', True)
    last = 5 if sk else 6
    yield Layer('conv3', f'{path}/{last}/conv2d', False)
    yield Layer('norm3', f'{path}/{last + 1}/bn', True)


def encoder_names(depth: int, stem: str, sk: bool, tf1: bool) -> dict[str, str]:
    """{path of weights.tree.expected: name of the variable in the file} of an encoder."""
    names, counts = {}, {False: 0, True: 0}
    for layer in encoder_layers(depth, stem, sk):
        name = f'resnet_model/{layer.official}'
        if tf1:
            count = counts[layer.is_norm]
            counts[layer.is_norm] += 1
            name = ('base_model/' + ('batch_normalization' if layer.is_norm else 'conv2d')
                    + (f'_{count}' if count else ''))
        names |= _variables(f'encoder/{layer.ours}', name, layer.is_norm)
    return names


def head_names(layers: list[str], norm: str) -> dict[str, str]:
    """The same of a projection head, from the names of its layers and of the BatchNorm in each.

    The last BatchNorm is given a name for the offset that it does not have.
    """
    names = {}
    for index, layer in enumerate(layers, start=1):
        names |= _variables(f'head/dense{index}', f'{layer}/dense', is_norm=False)
        names |= _variables(f'head/norm{index}', f'{layer}/{norm}', is_norm=True)
    return names


def _variables(ours, official, is_norm):
    if not is_norm:
        return {f'params/{ours}/kernel': f'{official}/kernel'}
    return {path.format(ours): f'{official}/{name}' for name, path in NORM_VARIABLES.items()}


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
        raise ValueError(f'{file} does not fit the network: {name} is missing, or is no convolution. '
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
    """The same; the number of convolutions tells."""
    matches = [re.match(r'base_model/conv2d(?:_(\d{1,4}))?/kernel$', name) for name in shapes]
    count = max((int(match[1] or 0) + 1 for match in matches if match), default=0)
    for depth in DEPTHS:
        for sk, stem in ((False, 'imagenet'), (True, 'imagenet'), (True, 'cifar')):
            layers = encoder_layers(depth, stem, sk)
            if count == sum(not layer.is_norm for layer in layers):
                return depth, sk, sk and stem == 'imagenet'
    raise ValueError(f'{file} holds {count} convolutions under base_model, which is no ResNet of depth '
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
