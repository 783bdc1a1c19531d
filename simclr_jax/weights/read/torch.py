"""Files of PyTorch: this project's exports, and ResNets, ViTs and ConvNeXts of others.

An export says in its header what it takes to run it (tensors.py), and `torch_model.save` keeps that, so that
an encoder trained on in PyTorch comes back. A file of another program does not say. torchvision's conventions are
assumed, and the card says so.
"""

import os
import pathlib
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from simclr_jax.weights.naming import head_fields
from simclr_jax.weights.tensors import HEADER, check_file, from_header, imported_fields, read_tensors
from simclr_jax.weights.torch_names import encoder_fields, encoder_from_torch, timm_encoder
from simclr_jax.weights.tree import Imported, refuse

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # torchvision.transforms
# What a file of another program does not say.
_TORCHVISION = {'max_pool': 'torch', 'conv_padding': 'symmetric', 'norm_epsilon': 1e-5, 'norm_momentum': 0.9,
                'dtype': 'float32'}
# torchvision's transforms for evaluation at 224 pixels, which timm and MoCo share.
_RESIZE = {'resize': 'bilinear', 'antialias': True, 'resize_to': 256}
_ASSUMED = (*_RESIZE, 'mean', 'std', 'image_size', 'crop_proportion')
_COUNTERS = ('num_batches_tracked', 'queue_ptr')      # int64
# Where the ResNet stands in files of other programs, and the head that it was trained with.
_HEADS = {
    '': '',
    'encoder_q.': 'encoder_q.fc.',          # facebookresearch/moco moco/builder.py
    'base_encoder.': 'base_encoder.fc.',    # facebookresearch/moco-v3 moco/builder.py
    'backbone.': 'projector.',              # solo-learn, mmpretrain, Lightly, DINO, sthalles/SimCLR
    'encoder.': 'projector.',               # Spijkervet/SimCLR, lightning-bolts, early solo-learn
}
# What stands beside it and is left: first parts of names.
_BESIDE = ('encoder_k', 'queue', 'queue_ptr', 'momentum_encoder', 'predictor', 'projector', 'classifier',
           'momentum_backbone', 'momentum_projector', 'momentum_classifier', 'data_preprocessor', 'neck',
           'head', 'projection_head', 'prediction_head', 'backbone_momentum', 'projection_head_momentum',
           'prototypes', 'non_linear_evaluator', 'projection')
# torchvision's ResNet without fc as an nn.Sequential of its children, as Lightly's examples have it.
_CHILDREN = {'0': 'conv1', '1': 'bn1', '4': 'layer1', '5': 'layer2', '6': 'layer3', '7': 'layer4'}
_FIRST_OF_TIMM = re.compile(r'((?:.*\.)?)(?:patch_embed\.proj|stem\.0)\.weight')
_FIRST_BLOCK = re.compile(r'((?:.*\.)?)(?:layer1|4)\.0\.conv1\.(?:conv\.)?weight')


def read_torch(path: str | os.PathLike) -> Imported:
    """An encoder, and its head if it has one, from a file of PyTorch; nothing in it is executed.

    Known: .safetensors and what torch.load(weights_only=True) reads; a state dict itself or under
    'state_dict', 'model' or 'teacher' (DINO), with or without 'module.' in front of all names; a ResNet
    with the names of torchvision and timm, itself or under encoder_q. (MoCo, whose key encoder and queue are
    left), base_encoder. (MoCo v3), backbone. (solo-learn, mmpretrain, Lightly, DINO, sthalles/SimCLR) or
    encoder. (Spijkervet/SimCLR); a ViT or ConvNeXt with the names of timm, under any of these, of which the
    encoder alone is read. fc (head, head.fc) becomes `classifier`; a projector of one linear layer, or two with a ReLU
    between, becomes the head; card['ignored'] names what is left. Half precision becomes float32, and
    card['stored_as'] says so. An export's head is read from head.safetensors beside it, if it is there. Images are
    of 224 pixels; of 32, without a crop, where the first convolution is 3x3 of stride 1; a ViT's as its positions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: torch is needed and not installed; the file is damaged, holds more than tensors, other
            types than floats of 16 or 32 bits, or several ResNets, or does not fit a network: the sentence
            names what is missing, unexpected or of another shape.
    """
    path = check_file(path)
    if path.suffix.lower() == '.safetensors':
        arrays, metadata = read_tensors(path)
        if HEADER in metadata:
            return _from_export(path, _widened(arrays)[0], metadata[HEADER])
    else:
        arrays = _state_dict(path)
    return _from_others(str(path), *_widened(arrays))


def _from_export(path, arrays, text):
    """An encoder.safetensors of `write_torch` or `torch_model.save`."""
    entries = from_header(text, str(path), layout='torch')
    fields = imported_fields(entries)
    pair = entries['torch'].get('pair') if isinstance(entries.get('torch'), dict) else None
    head_arrays, head_path = {}, path.with_name('head.safetensors')
    if fields['head'].get('mode') != 'none' and head_path != path and head_path.exists():
        head_arrays, metadata = read_tensors(head_path)
        head_arrays, _ = _widened(head_arrays)
        of_head = from_header(metadata.get(HEADER, '{}'), str(head_path), layout='torch')
        if not isinstance(of_head.get('torch'), dict) or of_head['torch'].get('pair') != pair:
            raise ValueError(f'{head_path} and {path} come from different exports: put the head of this encoder '
                             'beside it, or take the other away.')
    elif fields['head'].get('mode') != 'none':
        fields['card'] = {**fields['card'], 'head': f'left out: {head_path.name} is not beside {path.name}'}
    if not head_arrays:
        fields['head'] = {**fields['head'], 'mode': 'none'}
    variables, classifier = encoder_from_torch(
        arrays, head_arrays, encoder=fields['encoder'], head=fields['head'], file=str(path),
        head_prefix=f'{head_path.name}: ', image_size=fields['image_size'])
    return Imported(variables=variables, classifier=classifier, **fields)


def _widened(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """({name: float32}, the types of 16 bits that were there)."""
    halves = {name: array.dtype.name for name, array in arrays.items()
              if array.dtype.name in ('float16', 'bfloat16')}
    wide = {name: array.astype(np.float32) if name in halves else array for name, array in arrays.items()}
    return wide, sorted(set(halves.values()))


def _from_others(file, arrays, halves):
    """A file that says nothing of its conventions."""
    of_timm = any(map(_FIRST_OF_TIMM.fullmatch, arrays))
    outer = 'module.' if all(name.startswith('module.') for name in arrays) else ''
    arrays = {name.removeprefix(outer): array for name, array in arrays.items()}
    found = filter(None, map((_FIRST_OF_TIMM if of_timm else _FIRST_BLOCK).fullmatch, arrays))
    prefixes = sorted({match[1] for match in found if match[1].split('.')[0] not in _BESIDE})
    if len(prefixes) > 1:
        raise ValueError(f'{file} holds several {"encoders" if of_timm else "ResNets"}, under '
                         f'{" and ".join(map(repr, prefixes))}: save the one that is meant by itself.')
    prefix = prefixes[0] if prefixes else ''
    if not of_timm and prefix not in _HEADS:
        raise ValueError(f'{file} has its ResNet under {outer + prefix}, a name that is not known here: '
                         'rename it to the names of torchvision (conv1.weight, ...) first.')
    arrays, beside = _parted(arrays, prefix)
    refuse(file, {'unexpected': [outer + name for name in beside if name.split('.')[0] not in _BESIDE]})
    left = {name.split('.')[0]: '.' in name for name in beside}     # -> whether more follows
    statistics: dict[str, Any] = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
    for name in statistics:
        array = beside.get(f'data_preprocessor.{name}', np.zeros(0))        # mmpretrain: of pixels up to 255
        statistics[name] = tuple((array.ravel() / 255).tolist()) if array.size == 3 else statistics[name]
    parts = (_timm_parts if of_timm else _resnet_parts)(file, arrays, beside, prefix, left)
    variables, classifier = encoder_from_torch(
        parts.arrays, parts.head_arrays, encoder=parts.encoder, head=parts.head, file=file, prefix=outer + prefix,
        head_prefix=outer + parts.head_prefix, image_size=parts.size)
    small = parts.encoder.get('stem') == 'cifar'
    resize: dict[str, Any] = {} if small else _RESIZE | {'resize_to': round(parts.size / 0.875)}
    card = {'file': os.path.basename(file),
            'ignored': sorted(outer + part + '.*' * dotted for part, dotted in left.items()),
            'assumed': [name for name in (*(('heads',) if of_timm else _TORCHVISION), *_ASSUMED)
                        if name not in statistics or 'data_preprocessor' not in left]}
    return Imported(encoder=parts.encoder, head=parts.head, variables=variables, classifier=classifier,
                    mean=statistics['mean'], std=statistics['std'], image_size=parts.size,
                    crop_proportion=1.0 if small else 0.875, source=parts.source,
                    card=card | ({'stored_as': halves} if halves else {}), **resize)


class _Parts(NamedTuple):
    """What a state dict holds."""

    arrays: dict[str, np.ndarray]           # of the encoder, with the names of torchvision or timm
    encoder: dict[str, Any]
    size: int                               # of the images
    source: str
    head_arrays: dict[str, np.ndarray] = {}     # names within its nn.Sequential
    head: dict[str, Any] = {'mode': 'none'}
    head_prefix: str = ''


def _resnet_parts(file, arrays, beside, prefix, left):
    """The ResNet and its head, whose names are taken out of `left`; of another form it is added there."""
    head_prefix = f'{prefix}fc.' if 'fc.0.weight' in arrays else _HEADS[prefix]     # sthalles/SimCLR
    head_arrays = {}
    if prefix and head_prefix.startswith(prefix):
        head_arrays, arrays = _parted(arrays, head_prefix.removeprefix(prefix))
    elif prefix:
        head_arrays, _ = _parted(beside, head_prefix)
    if '4.0.conv1.weight' in arrays:
        arrays = {re.sub(r'^\d+', lambda child: _CHILDREN.get(child[0], child[0]), name): array
                  for name, array in arrays.items()}
    encoder = {**encoder_fields(arrays, file), **_TORCHVISION}
    if encoder['sk_ratio'] > 0:
        raise ValueError(f'{file} is a ResNet-D and does not say whose: timm\'s shortcuts average other '
                         'pixels than SimCLR\'s. Save an export of this project by torch_model.save, which '
                         'keeps its header.')
    small = encoder['stem'] == 'cifar'
    if small and 'classifier' in left and prefix:
        raise ValueError(f'{file} is of solo-learn, whose first convolution of 3x3 pixels pads by two of '
                         'them; here it is padded by one: the features would differ.')
    head, head_kept = _projector(head_arrays, prefix == 'encoder_q.')
    if head['mode'] != 'none':
        left.pop('projector', None)
    elif head_arrays:
        left[head_prefix.rstrip('.')] = True
    version = {'encoder_q.': 1 + (head['mode'] == 'nonlinear'), 'base_encoder.': 3}.get(prefix)
    name = f'ResNet-{encoder["depth"]}' + f' {encoder["width"]:g}x' * (encoder['width'] != 1)
    return _Parts(arrays, encoder, 32 if small else 224, f'MoCo v{version} {name}' if version else f'torch {name}',
                  head_kept, head, head_prefix)


def _timm_parts(file, arrays, beside, prefix, left):
    """A ViT or ConvNeXt, as timm, MoCo v3, DINO and others save them; the head of the pretraining is left."""
    kept = {name: array for name, array in arrays.items() if not re.match(r'head\.(\d+|mlp|last_layer)\.', name)}
    if len(kept) < len(arrays):
        left[f'{prefix}head'] = True
    fields, size = timm_encoder(kept, moco=prefix == 'base_encoder.', file=file)
    encoder = {**fields, 'norm_groups': 1, 'norm_momentum': 0.9, 'norm_epsilon': 1e-5, 'dtype': 'float32'}
    return _Parts(kept, encoder, size, f'torch {fields["name"]}')


def _parted(arrays, prefix):
    """(what is under `prefix`, without it; the rest)"""
    return ({name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)},
            {name: array for name, array in arrays.items() if not name.startswith(prefix)})


def _projector(arrays: dict[str, np.ndarray], moco: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(fields, arrays) of a head without norms: one layer, or two with a ReLU between; mode 'none' for any other.

    MoCo's is always such.
    """
    if set(arrays) == {'weight', 'bias'}:       # MoCo v1: one layer, no Sequential
        arrays = {f'0.{name}': array for name, array in arrays.items()}
    layers = ('0', '2') if '2.weight' in arrays else ('0',)
    biased = moco or '0.bias' in arrays
    if not moco and set(arrays) != {f'{layer}.{leaf}' for layer in layers for leaf in ('weight', 'bias')[:1 + biased]}:
        return {'mode': 'none'}, {}
    kernels = {f'params/head/dense{index}/kernel': arrays[f'{layer}.weight'].T
               for index, layer in enumerate(layers, 1) if f'{layer}.weight' in arrays}
    return head_fields(kernels, len(layers), norm=False, final_norm=False, bias=biased, final_bias=biased), arrays


def spare_triton() -> None:
    """Before torch is imported beside tensorflow: the LLVM of triton and that of tensorflow end the process.

    Triton compiles kernels for GPUs, which nothing here does. In the other order of imports they agree.
    """
    if 'tensorflow' in sys.modules:
        sys.modules.setdefault('triton', None)      # pyright: ignore[reportArgumentType]


def _state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file of torch.save, as numpy arrays; torch is imported here alone."""
    spare_triton()
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(f'{path} is a file of torch.save, and torch is not installed: install it, or save '
                          'the weights as .safetensors where it is.') from None
    try:
        with warnings.catch_warnings(action='ignore'):      # of what will be refused in one sentence
            held = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:      # whatever a damaged or hostile file makes of the reader
        name = re.search(r'GLOBAL (\S+)', str(error))
        if name:
            raise ValueError(f'{path} holds more than tensors ({name[1]}) and is refused: nothing in it was '
                             'executed.') from None
        raise ValueError(f'{path} is not a complete file of torch.save that holds tensors alone '
                         f'({type(error).__name__}).') from None
    if isinstance(held, dict) and 'student' in held and isinstance(held.get('teacher'), dict):
        held = held['teacher']      # DINO: what its own evaluation reads
    for key in ('state_dict', 'model'):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held:
        raise ValueError(f'{path} holds no state dict, but {type(held).__name__}.')
    others = [f'{name} ({type(value).__name__})' for name, value in held.items()
              if not (isinstance(name, str) and isinstance(value, torch.Tensor)
                      and value.layout is torch.strided and not value.is_meta and not value.is_quantized)]
    floats = (torch.float32, torch.float16, torch.bfloat16)
    dtypes = [f'{name} {str(value.dtype).removeprefix("torch.")}' for name, value in held.items()
              if isinstance(value, torch.Tensor) and value.dtype not in floats
              and not str(name).endswith(_COUNTERS)]
    refuse(str(path), {'no tensors': others, 'not float32': dtypes})
    return {name: value.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if value.dtype is torch.bfloat16 else value.detach().numpy() for name, value in held.items()}
