"""Our variables under the state-dict names of timm's and torchvision's classes, both ways.

    stem_conv                 conv1              with ResNet-D: conv1.0, conv1.3, conv1.6
    stem_norm                 bn1                               conv1.1, conv1.4, bn1
    stage2_block1/conv1       layer2.0.conv1     with selective kernels: layer2.0.conv1.conv
    stage2_block1/norm1       layer2.0.bn1                               layer2.0.conv1.bn
    .../conv2/conv            -                  layer2.0.conv2.paths.{0,1}.conv, the two halves of ours
    .../conv2/squeeze_conv    -                  layer2.0.conv2.attn.fc_reduce, attn.bn, attn.fc_select
    .../shortcut_conv, _norm  downsample.0, .1   with ResNet-D: downsample.1, .2

A head is an nn.Sequential of Linear, BatchNorm1d and ReLU: its layers have their places there as names.
Kernels HWIO <-> OIHW and [D, C] <-> [C, D]; scale, bias, mean, var <-> weight, bias, running_mean,
running_var, beside which torch keeps num_batches_tracked, int64.

ViT and ConvNeXt, as in timm:

    patch_embed               patch_embed.proj       stem_conv, stem_norm              stem.0, stem.1
    cls_token                 cls_token              stages_1_downsample_norm, _conv   stages.1.downsample.0, .1
    cls_position, positions   pos_embed, in one      stages_1_blocks_2/conv_dw         stages.1.blocks.2.conv_dw
    blocks_3/qkv, proj        blocks.3.attn.qkv ...  .../fc1, fc2                      stages.1.blocks.2.mlp.fc1 ...
    blocks_3/fc1, fc2         blocks.3.mlp.fc1 ...   .../gamma                         stages.1.blocks.2.gamma
    norm                      norm, or fc_norm       norm                              head.norm
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.models.vit import SIZES, sincos_positions
from simclr_jax.weights.tree import CLASSIFIER, counted, expected, fit, flat, is_resnet, kind_of, resnet_depth

_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
           'var': 'running_var'}
_COUNTER = 'num_batches_tracked'
_STEM = {'stem_conv': 'conv1', 'stem_norm': 'bn1', 'stem_conv1': 'conv1.0', 'stem_norm1': 'conv1.1',
         'stem_conv2': 'conv1.3', 'stem_norm2': 'conv1.4', 'stem_conv3': 'conv1.6', 'stem_norm3': 'bn1'}
_SELECTIVE = {'conv1': 'conv1.conv', 'norm1': 'conv1.bn', 'conv2/conv': 'conv2.paths.*.conv',
              'conv2/norm': 'conv2.paths.*.bn', 'conv2/squeeze_conv': 'conv2.attn.fc_reduce',
              'conv2/squeeze_norm': 'conv2.attn.bn', 'conv2/mixing_conv': 'conv2.attn.fc_select',
              'conv3': 'conv3.conv', 'norm3': 'conv3.bn'}     # * is 0 and 1, the two streams
_POSITIONS = 'pos_embed'
CLASSIFIERS = {'vit': 'head', 'convnext': 'head.fc'}


def encoder_to_torch(encoder: Mapping[str, Any], variables: Mapping[str, Any],
                     classifier: Mapping[str, np.ndarray] | None = None, image_size: int = 224
                     ) -> dict[str, np.ndarray]:
    """The state dict of an encoder: what timm's and torchvision's classes load with strict=True.

    A classifier {'kernel' [D, C], 'bias' [C]} becomes fc (head or head.fc of others than ResNets). Without one
    there is no fc: the torch side has none either (timm: num_classes=0; torchvision: model.fc =
    torch.nn.Identity()).

    Args:
        encoder: fields of models.resnet.ResNet, or name and arguments of a ViT or a ConvNeXt.
        variables: {'params', 'batch_stats'}, as tree.Imported has them.
        image_size: of the images, for the positions of a ViT.

    Returns:
        {name: float32 array, or the int64 zero of a num_batches_tracked}.
    """
    arrays = _to_torch(_part(variables, 'encoder'), lambda layer: _encoder_layer(layer, encoder))
    if classifier is not None:
        weight, bias = _classifier(encoder)
        arrays |= {weight: _axes_there(classifier['kernel']), bias: np.asarray(classifier['bias'])}
    return joined_positions(arrays, encoder, image_size)


def _classifier(encoder):
    """The names of a classifier's weight and bias."""
    layer = CLASSIFIERS.get(kind_of(encoder), 'fc')
    return f'{layer}.weight', f'{layer}.bias'


def head_to_torch(head: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of a projection head, an nn.Sequential; {} under mode 'none'.

    The last norm has no offset here. Torch's has, and gets zeros.
    """
    places = head_places(head)
    arrays = _to_torch(_part(variables, 'head'), places.__getitem__)
    for layer, place in places.items():
        if layer.startswith('norm') and f'{place}.bias' not in arrays:
            arrays[f'{place}.bias'] = np.zeros_like(arrays[f'{place}.weight'])
    return arrays


def encoder_fields(arrays: Mapping[str, np.ndarray], file: str) -> dict[str, Any]:
    """depth, width, stem, sk_ratio and project_first of the ResNet that has these names and shapes.

    `sk_ratio` is 0.0625 or, where the squeeze is wider than its least width, what its width says.

    Args:
        arrays: a state dict, names without prefixes.
        file: for messages.

    Raises:
        ValueError: it is no ResNet, or one of another kind; the sentence says which names tell so.
    """
    deep = 'conv1.6.weight' in arrays
    first = arrays.get('conv1.6.weight' if deep else 'conv1.weight')
    selective = 'layer1.0.conv2.paths.0.conv.weight' in arrays
    known = selective or 'layer1.0.conv1.weight' in arrays
    if first is None or first.ndim != 4 or len(first) < 2 or not known:
        raise ValueError(f'{file} is not a ResNet of timm, torchvision or MoCo: it has no conv1.weight and '
                         f'layer1.0.conv1, but {_some(arrays)}.')
    bottleneck = any(re.match(r'layer1\.0\.conv3\.', name) for name in arrays)
    depth = resnet_depth(arrays, r'layer(\d+)\.(\d+)\.', first=1, bottleneck=bottleneck, file=file)
    average = arrays.get('layer2.0.downsample.1.weight')
    averaged = average is not None and average.ndim == 4
    stem = 'imagenet' if deep or first.shape[2:] == (7, 7) else 'cifar'
    if bottleneck and averaged != selective or deep and not averaged:
        raise ValueError(f'{file} has only a part of what SimCLR changes together: three convolutions in the '
                         f'stem: {deep}, averaging shortcuts: {averaged}, selective kernels: {selective}.')
    return {'depth': depth, 'width': first.shape[0] / 64, 'stem': stem,
            'sk_ratio': _ratio(arrays) if averaged else 0.0,
            'project_first': not bottleneck and 'layer1.0.downsample.0.weight' in arrays}


def encoder_from_torch(arrays: Mapping[str, np.ndarray], head_arrays: Mapping[str, np.ndarray], *,
                       encoder: Mapping[str, Any], head: Mapping[str, Any], file: str, prefix: str = '',
                       head_prefix: str = '', image_size: int = 224
                       ) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """The variables of encoder and head, and the classifier, or None: see `tree.fit`.

    Args:
        arrays: a state dict of the encoder, with the classifier `fc` or without.
        head_arrays: that of the head, named by places ('0.weight', ...); {} under head mode 'none'.
        encoder, head: fields, see tree.Imported.
        file, prefix, head_prefix: where the names stand in the file, for messages.
        image_size: of the images, for the positions of a ViT.

    Raises:
        ValueError: as `tree.fit`, and a last norm of the head with an offset; names are the file's.
    """
    places = head_places(head)
    arrays = split_positions(arrays, encoder, image_size)
    there = ({prefix + name: array for name, array in arrays.items()}
             | {head_prefix + name: array for name, array in head_arrays.items()})
    layers = list(places)
    offset = f'{head_prefix}{places[layers[-1]]}.bias' if layers and layers[-1].startswith('norm') else ''
    if np.any(there.pop(offset, 0)):
        raise ValueError(f'{file}: {offset} is not zero, and the last norm of a head has no offset here.')
    found, used = {}, set()
    names: dict[str, str] = dict(zip(CLASSIFIER, (prefix + name for name in _classifier(encoder))))  # path -> name
    for path in expected(encoder, head, file, image_size):
        _, part, *layer, leaf = path.split('/')
        place = places['/'.join(layer)] if part == 'head' else _encoder_layer('/'.join(layer), encoder)
        names[path] = (head_prefix if part == 'head' else prefix) + _name(place, leaf)
    for path, name in names.items():
        streams = [name.replace('*', index) for index in '01'] if '*' in name else [name]
        used.update(streams)
        if all(stream in there for stream in streams):
            first, *second = [_axes_here(there[stream]) for stream in streams]
            joins = second and second[0].shape == first.shape       # or the first alone is refused, by its shape
            found[path] = np.concatenate([first, *second], -1) if joins else first
    found |= {name: array for name, array in there.items()
              if name not in used and not name.endswith(_COUNTER)}
    return fit(found, encoder=encoder, head=head, file=file, shape_of=_shape_there, image_size=image_size,
               name_of=lambda path: names.get(path, path).replace('*', '[01]'))


def head_places(head: Mapping[str, Any]) -> dict[str, str]:
    """{layer of a ProjectionHead: its place in an nn.Sequential of Linear, BatchNorm1d and ReLU}."""
    mode = head.get('mode', 'nonlinear')
    num_layers = head.get('num_layers', 3) if mode == 'nonlinear' else int(mode == 'linear')
    places, place = {}, 0
    for index in range(1, num_layers + 1):
        last = index == num_layers
        places[f'dense{index}'] = str(place)
        place += 1
        if head.get('final_norm' if last else 'norm', True):
            places[f'norm{index}'] = str(place)
            place += 1
        place += not last       # the ReLU
    return places


def _encoder_layer(layer: str, encoder: Mapping[str, Any]) -> str:
    """'stage1_block2/conv1' -> 'layer1.1.conv1'."""
    if not is_resnet(encoder):
        return timm_layer(layer, encoder)
    if layer in _STEM:
        return _STEM[layer]
    stage_block, rest = layer.split('/', 1)
    stage, block = re.findall(r'\d+', stage_block)
    averaged = encoder.get('sk_ratio', 0.0) > 0
    if rest.startswith('shortcut_'):
        rest = f'downsample.{("shortcut_conv", "shortcut_norm").index(rest) + averaged}'
    elif averaged and DEPTHS[encoder['depth']][0] is BottleneckBlock:
        rest = _SELECTIVE[rest]
    else:
        rest = rest.replace('norm', 'bn')
    return f'layer{stage}.{int(block) - 1}.{rest}'


def _part(variables, part):
    """{(layer, leaf): array} of the encoder or the head, layers joined by '/'."""
    trees = {kind: tree[part] for kind, tree in variables.items() if part in tree}
    paths = ((path.split('/')[1:], array) for path, array in flat(trees).items())
    return {('/'.join(path[:-1]), path[-1]): array for path, array in paths}


def _name(layer, leaf):
    """The name of a parameter; one that stands in no layer, and one that torch has not, keep theirs."""
    return '.'.join(filter(None, (layer, _LEAVES.get(leaf, leaf))))


def _to_torch(flat, name_of):
    arrays = {}
    for (layer, leaf), array in flat.items():
        name, array = name_of(layer), _axes_there(array)
        streams = {name: array} if '*' not in name else {
            name.replace('*', index): half for index, half in zip('01', np.split(array, 2))}
        for stream, part in streams.items():
            arrays[_name(stream, leaf)] = part
            if leaf == 'var':
                arrays[f'{stream}.{_COUNTER}'] = np.array(0, np.int64)
    return arrays


def _axes(rank: int) -> tuple[int, ...]:
    """Torch's order of the axes here; that of positions and tokens is the same."""
    return {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _axes_there(array):
    return np.asarray(array.transpose(_axes(array.ndim)), order='C')        # contiguous, as safetensors asks of torch


def _axes_here(array):
    return array.transpose(np.argsort(_axes(array.ndim)))


def _shape_there(shape: Sequence[int]) -> list[int]:
    return [shape[axis] for axis in _axes(len(shape))]


def _ratio(arrays):
    squeezes = [arrays.get(f'layer{stage}.0.conv2.attn.fc_reduce.weight') for stage in (1, 2, 3, 4)]
    wider = [array.shape[0] / array.shape[1] for array in squeezes
             if array is not None and array.ndim == 4 and array.shape[0] > 32]
    return wider[-1] if wider else 0.0625


def _some(arrays):
    names = list(arrays)
    return f'{", ".join(names[:4])}{" ..." * (len(names) > 4)}' if names else 'nothing'


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
        counts = [counted(arrays, rf'stages\.{stage}\.blocks\.(\d+)\.') for stage in range(4)]
        widths = [_rows(arrays, f'stages.{stage}.blocks.0.gamma', file) for stage in range(4)]
        return {'name': 'convnext', 'arguments': {
            'depths': counts, 'widths': widths, 'patch': arrays['stem.0.weight'].shape[-1]}}, 224
    width, patch = _rows(arrays, 'patch_embed.proj.weight', file), arrays['patch_embed.proj.weight'].shape[-1]
    depth = counted(arrays, r'blocks\.(\d+)\.')
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
