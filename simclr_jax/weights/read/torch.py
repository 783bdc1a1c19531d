"""Files of PyTorch: this project's exports, ResNets of torchvision and timm, MoCo v1 and v2; and the export.

An export is encoder.safetensors, head.safetensors where there is a head, and torch_model.py, which rebuilds
both in PyTorch and needs timm and nothing of this project. Each safetensors file says in its header what it
takes to run it (header.py); `torch_model.save` keeps that, so that an encoder trained on in PyTorch comes
back. A file of others does not say. torchvision's conventions are assumed, and the card says so.
"""

import hashlib
import os
import pathlib
import re
import shutil
import sys
import warnings
from collections.abc import Mapping

import numpy as np

from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights import header
from simclr_jax.weights.tensors import check_file, read_tensors, write_tensors
from simclr_jax.weights.torch_names import (encoder_fields, encoder_from_torch, encoder_to_torch, head_places,
                                            head_to_torch)
from simclr_jax.weights.tree import Imported, check_classifier, fit, flat, is_resnet, refuse

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # torchvision.transforms
# What a file of others does not say.
_TORCHVISION = {'max_pool': 'torch', 'conv_padding': 'symmetric', 'norm_epsilon': 1e-5, 'norm_momentum': 0.9,
                'dtype': 'float32'}
_ASSUMED = (*_TORCHVISION, 'mean', 'std', 'image_size', 'crop_proportion')
_QUERY, _KEY = 'module.encoder_q.', 'module.encoder_k.'     # facebookresearch/moco moco/builder.py
_COUNTERS = ('num_batches_tracked', 'queue_ptr')      # int64
_QUEUE = ('module.queue', 'module.queue_ptr')
# Names of other libraries that are not read: (a name starts with, what wrote it).
_OTHERS = (('module.base_encoder.', 'MoCo v3'), ('base_encoder.', 'MoCo v3'),
           ('encoder_q.', 'a MoCo of others'), ('encoder.', 'solo-learn or others'),
           ('backbone.', 'solo-learn, Lightly or DINO'))


def write_torch(directory: str | os.PathLike, imported: Imported) -> list[pathlib.Path]:
    """Writes encoder.safetensors, head.safetensors (if there is a head) and torch_model.py into `directory`.

    encoder.safetensors has the names of timm's and torchvision's ResNets and loads there strictly: fc is
    the classifier, and without one the torch side has none (timm: num_classes=0; torchvision: model.fc =
    torch.nn.Identity()). In PyTorch:

        from torch_model import load
        encoder, head, card = load('encoder.safetensors')       # head is None where there is none

    Each file is written whole or not at all, the encoder last.

    Returns:
        The paths, the encoder's first.

    Raises:
        ValueError: it is no ResNet; or the variables do not fit the network or are not finite. Nothing is
            written.
        OSError: a file cannot be written.
    """
    if not is_resnet(imported.encoder):
        raise ValueError('the format torch holds ResNets alone, and the encoder is '
                         f'{imported.encoder["name"]}: export it as flax, onnx, savedmodel or stablehlo')
    directory = pathlib.Path(directory)
    fit(flat(imported.variables), encoder=imported.encoder, head=imported.head, file=imported.source)
    if imported.classifier is not None:
        check_classifier(imported.classifier, imported.encoder, imported.source)
    arrays = encoder_to_torch(imported.encoder, imported.variables, imported.classifier)
    block, sizes = DEPTHS[imported.encoder['depth']]
    torch_fields = {
        'blocks': list(sizes), 'bottleneck': block is BottleneckBlock,
        'channels': int(64 * imported.encoder.get('width', 1.0)),
        'num_classes': len(arrays['fc.bias']) if 'fc.bias' in arrays else 0,
        'head': [[layer, list(shape)] for layer, shape in _head_shapes(imported)],
        'pair': _digest(arrays)}
    metadata = {'format': 'pt', header.KEY: header.to_header(imported, 'torch', torch=torch_fields)}
    encoder_path, head_path = directory / 'encoder.safetensors', directory / 'head.safetensors'
    written = [encoder_path]
    if torch_fields['head']:
        write_tensors(head_path, head_to_torch(imported.head, imported.variables), metadata)
        written.append(head_path)
    else:
        head_path.unlink(missing_ok=True)       # of an earlier export
    written.append(_copy_loader(directory))
    write_tensors(encoder_path, arrays, metadata)
    return written


def read_torch(path: str | os.PathLike, image_size: int = 0) -> Imported:
    """An encoder, and its head if it has one, from a file of PyTorch; nothing in it is executed.

    Known: .safetensors and what torch.load(weights_only=True) reads; a state dict itself or under
    'state_dict' or 'model', with or without 'module.'; MoCo v1 and v2, of which the query encoder is
    taken and the key encoder and the queue are left. fc becomes `classifier`, MoCo's becomes the head.
    An export's head is read from head.safetensors beside it, where that is there.

    Args:
        image_size: overrides the side that images are resized to; 0 = what the file says, or 224 (32 and no
            crop where the first convolution is 3x3 of stride 1).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: torch is needed and not installed; the file is damaged, holds more than tensors or other
            than float32, or does not fit a network: the sentence names what is missing, unexpected or of
            another shape.
    """
    path = check_file(path)
    if path.suffix.lower() == '.safetensors':
        arrays, metadata = read_tensors(path)
        if header.KEY in metadata:
            return _from_export(path, arrays, metadata[header.KEY], image_size)
    else:
        arrays = _state_dict(path)
    return _from_others(str(path), arrays, image_size)


def _from_export(path, arrays, text, image_size):
    """An encoder.safetensors of `write_torch` or `torch_model.save`."""
    said = header.from_header(text, str(path), layout='torch')
    fields = header.imported_fields(said)
    pair = said.get('torch', {}).get('pair') if isinstance(said.get('torch'), dict) else None
    head_arrays, head_path = {}, path.with_name('head.safetensors')
    if fields['head'].get('mode') != 'none' and head_path != path and head_path.exists():
        head_arrays, metadata = read_tensors(head_path)
        of_head = header.from_header(metadata.get(header.KEY, '{}'), str(head_path), layout='torch')
        if not isinstance(of_head.get('torch'), dict) or of_head['torch'].get('pair') != pair:
            raise ValueError(f'{head_path} and {path} are of two exports: put the head of this encoder '
                             'beside it, or take the other away.')
    elif fields['head'].get('mode') != 'none':
        fields['card'] = {**fields['card'], 'head': f'left out: {head_path.name} is not beside {path.name}'}
    if not head_arrays:
        fields['head'] = {**fields['head'], 'mode': 'none'}
    classifier, arrays = _take_classifier(arrays, fields['encoder'], str(path))
    variables = encoder_from_torch(arrays, head_arrays, encoder=fields['encoder'], head=fields['head'],
                                   file=str(path), head_prefix=f'{head_path.name}: ')
    if image_size:
        fields['image_size'] = image_size
    return Imported(variables=variables, classifier=classifier, **fields)


def _from_others(file, arrays, image_size):
    """A file that says nothing of its conventions."""
    arrays, head_arrays, kind, ignored = _unwrap(file, arrays)
    prefix = {'MoCo': _QUERY}.get(kind, '')
    encoder = {**encoder_fields(arrays, file), **_TORCHVISION}
    if encoder['sk_ratio'] > 0:
        raise ValueError(f'{file} is a ResNet-D and does not say whose: timm\'s shortcuts average other '
                         'pixels than SimCLR\'s. Save an export of this project by torch_model.save, which '
                         'keeps its header.')
    head, classifier = {'mode': 'none'}, None
    if kind == 'MoCo':
        head = _moco_head(head_arrays, file)
        version = 2 if head['mode'] == 'nonlinear' else 1
    else:
        classifier, arrays = _take_classifier(arrays, encoder, file)
    variables = encoder_from_torch(arrays, head_arrays, encoder=encoder, head=head, file=file, prefix=prefix,
                                   head_prefix=f'{_QUERY}fc.')
    small = encoder['stem'] == 'cifar'
    name = f'ResNet-{encoder["depth"]}' + f' {encoder["width"]:g}x' * (encoder['width'] != 1)
    return Imported(
        encoder=encoder, head=head, variables=variables, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        image_size=image_size or (32 if small else 224), crop_proportion=1.0 if small else 0.875,
        source=f'MoCo v{version} {name}' if kind == 'MoCo' else f'torch {name}', classifier=classifier,
        card={'file': os.path.basename(file), 'assumed': list(_ASSUMED), 'ignored': ignored})


def _unwrap(file: str, arrays: Mapping[str, np.ndarray]) -> tuple[dict, dict, str, list[str]]:
    """(encoder's arrays, MoCo's head's, 'MoCo' or '', names left out), without prefixes."""
    if any(name.startswith(_QUERY) for name in arrays):
        known = [name for name in arrays if name.startswith(_KEY) or name in _QUEUE]
        rest = {name: array for name, array in arrays.items() if name not in known}
        refuse(file, {'unexpected': [name for name in rest if not name.startswith(_QUERY)]})
        rest = {name.removeprefix(_QUERY): array for name, array in rest.items()}
        head = {name.removeprefix('fc.'): array for name, array in rest.items() if name.startswith('fc.')}
        if set(head) == {'weight', 'bias'}:     # MoCo v1: one layer, no Sequential
            head = {f'0.{name}': array for name, array in head.items()}
        ignored = sorted({_KEY + '*' if name.startswith(_KEY) else name for name in known})
        rest = {name: array for name, array in rest.items() if not name.startswith('fc.')}
        return rest, head, 'MoCo', ignored
    for start, writer in _OTHERS:
        if any(name.startswith(start) for name in arrays):
            raise ValueError(f'{file} has names of {writer} ({start}*), which are not read here: rename its '
                             'ResNet to the names of torchvision (conv1.weight, ...) first.')
    if all(name.startswith('module.') for name in arrays):
        arrays = {name.removeprefix('module.'): array for name, array in arrays.items()}
    return dict(arrays), {}, '', []


def _moco_head(arrays, file):
    """Fields of MoCo's head: biases, no norms; v1 has one layer, v2 two with a ReLU between."""
    places = {'0.weight', '0.bias'} | ({'2.weight', '2.bias'} if '2.weight' in arrays else set())
    names = {name: f'{_QUERY}fc.{name}' for name in sorted(places | set(arrays))}
    refuse(file, {'missing': [names[name] for name in names if name not in arrays],
                  'unexpected': [names[name] for name in names if name not in places],
                  'of another shape': [f'{names[name]} {list(arrays[name].shape)}' for name in names
                                       if name in arrays and arrays[name].ndim != 2 - name.endswith('bias')]})
    plain = {'norm': False, 'final_norm': False, 'bias': True, 'final_bias': True}
    if len(places) == 2:
        return {'mode': 'linear', 'out_dim': len(arrays['0.weight']), **plain}
    return {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': len(arrays['0.weight']),
            'out_dim': len(arrays['2.weight']), **plain}


def _take_classifier(arrays, encoder, file):
    """(fc as a classifier or None, the other arrays)."""
    rest = {name: array for name, array in arrays.items() if not name.startswith('fc.')}
    if len(rest) == len(arrays):
        return None, rest
    names = {'kernel': 'fc.weight', 'bias': 'fc.bias'}
    refuse(file, {'unexpected': [name for name in arrays if name not in rest and name not in names.values()]})
    classifier = {here: arrays[there].T for here, there in names.items() if there in arrays}
    check_classifier(classifier, encoder, file, names=names)
    return classifier, rest


def spare_triton() -> None:
    """Before torch is imported beside tensorflow: the LLVM of triton and that of tensorflow end the process.

    Triton compiles kernels for GPUs, which nothing here does. In the other order of imports they agree.
    """
    if 'tensorflow' in sys.modules:
        sys.modules.setdefault('triton', None)


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
        raise ValueError(f'{path} is no whole file of torch.save that holds tensors alone '
                         f'({type(error).__name__}).') from None
    for key in ('state_dict', 'model'):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held:
        raise ValueError(f'{path} holds no state dict, but {type(held).__name__}.')
    others = [f'{name} ({type(value).__name__})' for name, value in held.items()
              if not (isinstance(name, str) and isinstance(value, torch.Tensor)
                      and value.layout is torch.strided and not value.is_meta and not value.is_quantized)]
    dtypes = [f'{name} {str(value.dtype).removeprefix("torch.")}' for name, value in held.items()
              if isinstance(value, torch.Tensor) and value.dtype is not torch.float32
              and not str(name).endswith(_COUNTERS)]
    refuse(str(path), {'no tensors': others, 'not float32': dtypes})
    return {name: value.detach().numpy() for name, value in held.items()}


def _head_shapes(imported):
    """[(layer, shape of its kernel or scale)] of the head, in order."""
    params = imported.variables['params'].get('head', {})
    return [(layer, np.shape(params[layer]['kernel' if layer.startswith('dense') else 'scale']))
            for layer in head_places(imported.head)]


def _copy_loader(directory):
    """Puts torch_model.py into the directory: the file that a user of PyTorch loads the export with."""
    target = directory / 'torch_model.py'
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        shutil.copyfile(pathlib.Path(__file__).parents[1] / 'write' / 'torch_model.py', temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _digest(arrays):
    """Tells which encoder and head were written together."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]))
    return digest.hexdigest()[:16]
