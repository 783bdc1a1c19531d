"""Our variables under the state-dict names of timm's and torchvision's classes, both ways: the tables below.

A head is an nn.Sequential of Linear, BatchNorm1d and ReLU: its layers have their places there as names.
Kernels are HWIO <-> OIHW and [D, C] <-> [C, D]; the two streams of a selective kernel are halves of ours. Beside
running_mean and running_var torch keeps num_batches_tracked, int64. cls_position and positions of a ViT are in one
pos_embed.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.models.vit import SIZES, sincos_positions
from simclr_jax.weights.naming import by_path, counted, resnet_fields, resnet_layers, tensor_names
from simclr_jax.weights.tree import CLASSIFIER, expected, fit, flat, is_resnet, kind_of

_WEIGHTS = {'kernel': '.weight', 'bias': '.bias'}
_NORMS = {'scale': '.weight', 'bias': '.bias', 'mean': '.running_mean', 'var': '.running_var'}
_COUNTER = 'num_batches_tracked'
_STEM = {'stem_conv': 'conv1', 'stem_norm': 'bn1'}
_DEEP_STEM = {'stem_conv1': 'conv1.0', 'stem_norm1': 'conv1.1', 'stem_conv2': 'conv1.3', 'stem_norm2': 'conv1.4',
              'stem_conv3': 'conv1.6', 'stem_norm3': 'bn1'}
_BLOCK = {'conv1': 'conv1', 'norm1': 'bn1', 'conv2': 'conv2', 'norm2': 'bn2', 'conv3': 'conv3', 'norm3': 'bn3'}
_SELECTIVE = {'conv1': 'conv1.conv', 'norm1': 'conv1.bn', 'conv2/conv': 'conv2.paths.[01].conv',
              'conv2/norm': 'conv2.paths.[01].bn', 'conv2/squeeze_conv': 'conv2.attn.fc_reduce',
              'conv2/squeeze_norm': 'conv2.attn.bn', 'conv2/mixing_conv': 'conv2.attn.fc_select',
              'conv3': 'conv3.conv', 'norm3': 'conv3.bn'}     # [01] is 0 and 1, the two streams
_SHORTCUTS = ({'shortcut_conv': 'downsample.0', 'shortcut_norm': 'downsample.1'},
              {'shortcut_conv': 'downsample.1', 'shortcut_norm': 'downsample.2'})       # of ResNet-D
# Of a ViT's and a ConvNeXt's layers: what is written there in place of what, one after the other.
_TIMM = {'vit': {r'^blocks_': 'blocks.', r'\.(qkv|proj)$': r'.attn.\1', r'\.(fc[12])$': r'.mlp.\1',
                 r'^patch_embed': 'patch_embed.proj'},
         'convnext': {r'^stem_conv': 'stem.0', r'^stem_norm': 'stem.1', r'^norm': 'head.norm', r'^stages_': 'stages.',
                      r'_downsample_norm': '.downsample.0', r'_downsample_conv': '.downsample.1',
                      r'_blocks_': '.blocks.', r'\.(fc[12])$': r'.mlp.\1'}}
_POSITIONS = 'pos_embed'
_CLASSIFIERS = {'resnet': 'fc', 'vit': 'head', 'convnext': 'head.fc'}


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
    arrays = _to_torch({**_part(variables, 'encoder'), 'classifier': classifier or {}}, encoder, {'mode': 'none'})
    return joined_positions(arrays, encoder, image_size)


def head_to_torch(head: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of a projection head, an nn.Sequential; {} under mode 'none'.

    The last norm has no offset here. Torch's has, and gets zeros.
    """
    arrays = _to_torch(_part(variables, 'head'), {}, head)
    for layer, place in head_places(head).items():
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
    bottleneck = any(name.startswith('layer1.0.conv3.') for name in arrays)
    average = arrays.get('layer2.0.downsample.1.weight')
    averaged = average is not None and average.ndim == 4
    if bottleneck and averaged != selective or deep and not averaged:
        raise ValueError(f'{file} has only a part of what SimCLR changes together: three convolutions in the '
                         f'stem: {deep}, averaging shortcuts: {averaged}, selective kernels: {selective}.')
    names = _resnet_names(deep, averaged, selective)
    return resnet_fields(by_path(_here(arrays), names), names, file, averaged=averaged)


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
    paths = [*expected(encoder, head, file, image_size), *CLASSIFIER]
    names = {path: (head_prefix if path.split('/')[1] == 'head' else prefix) + name
             for path, name in _names(paths, encoder, head).items()}
    return fit(by_path(_here(there), names), encoder=encoder, head=head, file=file, names=names,
               shape_of=_shape_there, image_size=image_size)


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


def _resnet_names(deep: bool, averaged: bool, selective: bool) -> dict[str, str]:
    """{path: name} for ResNets of any depth; `selective`: with selective kernels, the other two as ResNet-D."""
    in_block = (_SELECTIVE if selective else _BLOCK) | _SHORTCUTS[averaged]
    layers = resnet_layers(_DEEP_STEM if deep else _STEM, lambda stage, block: {
        layer: f'layer{stage + 1}.{block}.{place}' for layer, place in in_block.items()})
    return tensor_names(layers, _WEIGHTS, _NORMS)


def _names(paths: Iterable[str], encoder: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, str]:
    """{path: name in the state dict of the encoder, or of the head}"""
    classifier = _CLASSIFIERS[kind_of(encoder)]
    names = dict(zip(CLASSIFIER, (f'{classifier}.weight', f'{classifier}.bias')))
    names |= tensor_names({f'head/{layer}': place for layer, place in head_places(head).items()}, _WEIGHTS, _NORMS)
    if encoder and is_resnet(encoder):
        averaged = encoder.get('sk_ratio', 0.0) > 0
        names |= _resnet_names(averaged and encoder.get('stem', 'imagenet') == 'imagenet', averaged,
                               averaged and DEPTHS[encoder['depth']][0] is BottleneckBlock)
    return {path: names.get(path) or timm_name(path, encoder) for path in paths}


def _part(variables, part):
    return {kind: {part: tree[part]} for kind, tree in variables.items() if part in tree}


def _to_torch(tree, encoder, head):
    """The state dict of encoder or head."""
    paths, arrays = flat(tree), {}
    for path, name in _names(paths, encoder, head).items():
        array = _axes_there(paths[path])
        streams = {name: array} if '[01]' not in name else {
            name.replace('[01]', index): half for index, half in zip('01', np.split(array, 2))}
        arrays |= streams
        if path.endswith('/var'):
            arrays |= {f'{stream.rpartition(".")[0]}.{_COUNTER}': np.array(0, np.int64) for stream in streams}
    return arrays


def _here(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays with our axes, both streams of selective kernels in one, without the counters."""
    found = {name: array for name, array in arrays.items() if not name.endswith(_COUNTER)}
    for name in [name for name in found if '.paths.0.' in name]:
        first, second = found[name], found.get(name.replace('.paths.0.', '.paths.1.'))
        if second is not None:
            del found[name], found[name.replace('.paths.0.', '.paths.1.')]
            joins = first.ndim and first.shape == second.shape      # or the first is refused, by its shape
            found[name.replace('.paths.0.', '.paths.[01].')] = np.concatenate([first, second]) if joins else first
    return {name: array.transpose(np.argsort(_axes(array.ndim))) for name, array in found.items()}


def _axes(rank: int) -> tuple[int, ...]:
    """Torch's order of the axes here; that of positions and tokens is the same."""
    return {4: (3, 2, 0, 1), 3: (0, 1, 2), 2: (1, 0)}.get(rank, tuple(range(rank)))


def _axes_there(array):
    return np.asarray(array.transpose(_axes(array.ndim)), order='C')        # contiguous, as safetensors asks of torch


def _shape_there(shape: Sequence[int]) -> list[int]:
    return [shape[axis] for axis in _axes(len(shape))]


def _some(arrays):
    names = list(arrays)
    return f'{", ".join(names[:4])}{" ..." * (len(names) > 4)}' if names else 'nothing'


def timm_name(path: str, encoder: Mapping[str, Any]) -> str:
    """'params/encoder/blocks_3/qkv/kernel' -> 'blocks.3.attn.qkv.weight', of a ViT or a ConvNeXt."""
    *layer, leaf = path.split('/')[2:]
    layer = '.'.join(layer)
    for pattern, there in _TIMM[kind_of(encoder)].items():
        layer = re.sub(pattern, there, layer)
    if layer == 'norm' and encoder['arguments'].get('pool') == 'mean':
        layer = 'fc_norm'
    return '.'.join(filter(None, (layer, {'kernel': 'weight', 'scale': 'weight'}.get(leaf, leaf))))


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
