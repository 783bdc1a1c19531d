"""An encoder as files for PyTorch: encoder.safetensors, head.safetensors if it has a head, torch_model.py.

The last rebuilds both in PyTorch and needs timm and nothing of this project. Each safetensors file says in
its header what it takes to run it (tensors.py).
"""

import os
import pathlib

import numpy as np

from simclr_jax import storage
from simclr_jax.models.building import make_encoder
from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.tensors import HEADER, to_header, write_tensors
from simclr_jax.weights.torch_names import encoder_to_torch, head_places, head_to_torch, timm_class
from simclr_jax.weights.tree import Imported, all_arrays, digest, kind_of


def write_torch(directory: str | os.PathLike, imported: Imported) -> list[pathlib.Path]:
    """Writes encoder.safetensors, head.safetensors (if there is a head) and torch_model.py into `directory`.

    encoder.safetensors has the names of timm's and torchvision's ResNets, or of timm's VisionTransformer or
    ConvNeXt, and loads there strictly: fc (head, head.fc) is the classifier, and without one the torch side has
    none (timm: num_classes=0; torchvision: model.fc = torch.nn.Identity()). In PyTorch:

        from torch_model import load
        encoder, head, card = load('encoder.safetensors')       # head is None where there is none

    Each file is written whole or not at all, the encoder last.

    Returns:
        The paths, the encoder's first.

    Raises:
        ValueError: it is an encoder of another make; or the variables do not fit the network or are not finite.
            Nothing is written.
        OSError: a file cannot be written.
    """
    kind = kind_of(imported.encoder)
    if not kind:
        raise ValueError('the format torch holds ResNets, ViTs and ConvNeXts alone, and the encoder is '
                         f'{imported.encoder["name"]}: export it as flax, onnx, savedmodel or stablehlo')
    directory = pathlib.Path(directory)
    all_arrays(imported)        # or it is refused
    arrays = encoder_to_torch(imported.encoder, imported.variables, imported.classifier, imported.image_size)
    num_classes = 0 if imported.classifier is None else len(imported.classifier['bias'])
    head = imported.variables['params'].get('head', {})
    torch_fields = {
        'num_classes': num_classes, 'pair': digest(arrays)[:16],        # of an encoder and a head that belong together
        'head': [[layer, list(np.shape(head[layer]['kernel' if layer.startswith('dense') else 'scale']))]
                 for layer in head_places(imported.head)]}
    if kind == 'resnet':
        block, sizes = DEPTHS[imported.encoder['depth']]
        torch_fields |= {'blocks': list(sizes), 'bottleneck': block is BottleneckBlock,
                         'channels': int(64 * imported.encoder.get('width', 1.0))}
    else:
        torch_fields['timm'] = timm_class(imported.encoder, make_encoder(imported.encoder), imported.image_size)
    metadata = {'format': 'pt', HEADER: to_header(imported, 'torch', torch=torch_fields)}
    encoder_path, head_path = directory / 'encoder.safetensors', directory / 'head.safetensors'
    written = [encoder_path]
    if torch_fields['head']:
        write_tensors(head_path, head_to_torch(imported.head, imported.variables), metadata)
        written.append(head_path)
    else:
        head_path.unlink(missing_ok=True)       # of an earlier export
    loader = 'torch_model.py'
    storage.write_atomically(directory / loader, pathlib.Path(__file__).with_name(loader).read_bytes())
    write_tensors(encoder_path, arrays, metadata)
    return [*written, directory / loader]
