"""What an export says of itself beside its files: card.json, for people and for other programs."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

import simclr_jax
from simclr_jax import storage
from simclr_jax.views.resize import Resize
from simclr_jax.weights.header import to_header
from simclr_jax.weights.tree import Imported, feature_width, flat, is_resnet, size_step

NAME = 'card.json'
_VERSION = 1
_PACKAGES = ('jax', 'flax', 'numpy', 'safetensors', 'onnx', 'onnxruntime', 'tensorflow', 'tensorflow-cpu',
             'torch', 'timm')
# How each file is used, in a line; `images` are what `input` says.
_LOAD = {
    'encoder.safetensors': "encoder, head, card = torch_model.load('encoder.safetensors')    "
                           '# torch_model.py is beside it; then encoder(images)',
    'head.safetensors': 'read with encoder.safetensors; layers of torch.nn.Sequential',
    'torch_model.py': 'the code that builds both in PyTorch; needs timm',
    'encoder.flax.safetensors': "features = simclr_jax.load_encoder('encoder.flax.safetensors')(images)",
    'encoder.onnx': "features, = onnxruntime.InferenceSession('encoder.onnx').run(None, {'images': images})",
    'savedmodel': "features = tf.saved_model.load('savedmodel').signatures['serving_default']"
                  "(images=images)['features']",
    'encoder.stablehlo': 'features = jax.export.deserialize('
                         "bytearray(open('encoder.stablehlo', 'rb').read())).call(images)",
}
FILES = tuple(_LOAD)


def make_card(imported: Imported, *, layer: int, normalize_inside: bool) -> dict[str, Any]:
    """Everything but 'files', JSON values: what it is, architecture, preprocessing, recipe, evaluation."""
    fields = json.loads(to_header(imported, 'card'))
    resize = Resize(imported.resize, imported.antialias, imported.resize_to)
    classes = None if imported.classifier is None else len(imported.classifier['bias'])
    return {
        'format': 'simclr_jax export', 'version': _VERSION, 'source': imported.source,
        'encoder': fields['encoder'], 'head': fields['head'],
        'feature_width': feature_width(imported.encoder, imported.image_size), 'classes': classes,
        'graphs': {'formats': ['onnx', 'savedmodel', 'stablehlo'], 'layer': layer,
                   'normalize_inside': normalize_inside},
        'preprocessing': {
            'crop': 'the central square of image_size' if resize.resize_to else
                    'the central square whose side is crop_proportion of the shorter side',
            'crop_proportion': fields['crop_proportion'], 'resize': str(resize),
            'antialias': resize.antialias, 'resize_to': resize.resize_to,
            'image_size': fields['image_size'], 'range': [0.0, 1.0],
            'mean': fields['mean'], 'std': fields['std']},
        **imported.card,
        'exported_with': _versions(),
        'fingerprint': _fingerprint(imported, layer, normalize_inside)}


def describe_file(name: str, card: Mapping[str, Any], *, size: int,
                  difference: float | None) -> dict[str, Any]:
    """The entry of one file in card['files']; `difference` is None where it could not be measured."""
    side = card['preprocessing']['image_size']
    fixed = f'[B, {side}, {side}, 3]'
    sizes = '[B, H, W, 3]' if is_resnet(card['encoder']) else fixed
    step = size_step(card['encoder'], side)
    multiples = f'{sizes}, H and W multiples of {step} (its padding is SAME)'
    of_savedmodel = {0: fixed, 1: sizes}.get(step, multiples)
    values = 'normalised inside' if card['graphs']['normalize_inside'] else 'normalised: (x - mean) / std'
    inputs = {
        'encoder.safetensors': 'float32 [B, 3, H, W], normalised: (x - mean) / std',
        'encoder.flax.safetensors': 'uint8, or float32 in [0, 1], [B, H, W, 3] of any size',
        'encoder.onnx': f'float32 {sizes}, {values}', 'savedmodel': f'float32 {of_savedmodel}, {values}',
        'encoder.stablehlo': f'float32 {fixed}, {values}'}
    return {'bytes': size, 'largest_difference': difference, 'load': _LOAD[name]} | (
        {'input': inputs[name]} if name in inputs else {})


def read_card(directory: str | os.PathLike) -> dict[str, Any] | None:
    """The card of an export; None where there is none that can be read."""
    try:
        card = json.loads(storage.read_bytes(os.path.join(directory, NAME)))
    except (OSError, ValueError):
        return None
    return card if isinstance(card, dict) else None


def write_card(directory: str | os.PathLike, card: Mapping[str, Any]) -> None:
    """Writes card.json, whole or not at all."""
    text = json.dumps(card, indent=2, allow_nan=False) + '\n'
    storage.write_atomically(os.path.join(directory, NAME), text.encode())


def _versions():
    versions = {'simclr_jax': simclr_jax.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _fingerprint(imported, layer, normalize_inside):
    """A hash of all that the features of the exported files depend on."""
    fields = json.loads(to_header(imported, 'card'))
    del fields['card'], fields['source']
    digest = hashlib.sha256(json.dumps([fields, layer, normalize_inside], sort_keys=True).encode())
    for path, array in sorted(flat(imported.variables).items()):
        digest.update(path.encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()
