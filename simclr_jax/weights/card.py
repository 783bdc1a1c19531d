"""What an export says of itself: card.json, for programs, and README.md, the model card of the Hugging Face Hub."""

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

import simclr_jax
from simclr_jax import storage
from simclr_jax.models.resnet import ResNet
from simclr_jax.views.resize import Resize
from simclr_jax.weights.tensors import to_header
from simclr_jax.weights.tree import Imported, digest, feature_width, flat, is_resnet, kind_of, size_step

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
README = 'README.md'
_OWN = 'private images'
_NETWORKS = {'vit': 'ViT', 'convnext': 'ConvNeXt'}
_METHODS = {'simclr': 'SimCLR', 'moco': 'MoCo', 'byol': 'BYOL', 'simsiam': 'SimSiam', 'barlow_twins': 'Barlow Twins',
            'vicreg': 'VICReg', 'nnclr': 'NNCLR', 'instance_discrimination': 'Instance discrimination'}
# Sources whose name tells no path: TFDS's and those of the Hub.
_PUBLIC = re.compile(r'([A-Za-z]\w*(?:/[\w.-]+)?)(?::\d[\d.]*)?|hf:([A-Za-z][\w-]*(?:/[\w.-]+)?)(?::[\w.-]+)?')
_TIMM_DEPTHS = (18, 34, 50, 101, 152)
# Encoder fields that timm's classes have no other form of.
_AS_TIMM = {name: getattr(ResNet, name) for name in
            ('width', 'stem', 'sk_ratio', 'max_pool', 'conv_padding', 'project_first', 'norm_epsilon')}


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
        'fingerprint': digest(flat(imported.variables), json.dumps([
            {name: value for name, value in fields.items() if name not in ('card', 'source')}, layer, normalize_inside],
            sort_keys=True))}       # of all that the features of the exported files depend on


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


class Result(NamedTuple):
    """A share of right answers of one encoder: 'pretrained', 'random', ..."""

    encoder: str
    metric: str                                 # 'kNN top-1'
    value: float
    interval: tuple[float, float] | None
    data: str
    split: str


def write_model_card(directory: str, card: Mapping[str, Any], results: Sequence[Result], *, license: str = '',
                     repository: str = '', written: str | None = None) -> str | None:
    """Writes README.md, unless one is there that was edited or is not an export's.

    Args:
        card: card.json, with 'files'. results: what was measured of it. license: as the Hub names it, or ''.
        repository: OWNER/NAME, where it will be on the Hub; '': it is loaded from its directory.
        written: the SHA-256 of the README.md that the last export wrote here.

    Returns:
        The SHA-256 of what was written; None: a README.md is there and was left alone.
    """
    path = os.path.join(directory, README)
    if os.path.exists(path) and _digest(storage.read_bytes(path)) != written:
        return None
    text = make_model_card(card, results, license=license, repository=repository).encode()
    storage.write_atomically(path, text)
    return _digest(text)


def make_model_card(card: Mapping[str, Any], results: Sequence[Result], *, license: str = '', repository: str = ''
                    ) -> str:
    """The text; see `write_model_card`."""
    recipe, encoder = card.get('recipe') or {}, card['encoder']
    method = _METHODS.get((recipe.get('method') or {}).get('name', ''), '')
    kind = kind_of(encoder)
    network = f'ResNet-{encoder["depth"]}' if is_resnet(encoder) else _NETWORKS.get(kind) or encoder['name']
    name = repository.partition('/')[2] or f'{method} {network}'.strip()
    source = _public((recipe.get('data') or {}).get('source', ''))
    datasets = [source] if source not in ('', _OWN, 'shapes') else []
    metadata = {
        'library_name': 'simclr_jax', **({'license': license} if license else {}),
        'pipeline_tag': 'image-feature-extraction',
        'tags': ['self-supervised-learning', *([method.lower().replace(' ', '-')] if method else []),
                 *([kind] if kind else []), 'jax', 'flax',
                 *(tag for file, tag in (('encoder.safetensors', 'pytorch'), ('encoder.onnx', 'onnx'))
                   if file in card['files'])],
        **({'datasets': datasets} if datasets else {}),
        **({'metrics': ['accuracy'], 'model-index': [_index(name, results)]} if results else {})}
    parts = [
        f'---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n# {name}',
        f'An encoder of images: {network}, {card["feature_width"]:,} features ({card["source"]}).'
        + (f' Trained on {source}.' if source else '')
        + f' Exported with simclr_jax {simclr_jax.__version__}; card.json has the whole recipe.',
        *_evaluation(results), '## Preprocessing', _preprocessing(card), '## Use', *_uses(card, repository),
        '## Licence', f'{license}.' if license else
        'Not chosen yet. The weights belong to whoever trained them: put a line `license: ...` into the block at '
        'the top and the terms here, or export again with `--config.export.license=...`.']
    return '\n\n'.join(parts) + '\n'


def _index(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """The Hub's `model-index`: what was measured of the pretrained encoder."""
    return {'name': name, 'results': [
        {'task': {'type': 'image-classification', 'name': 'on frozen features'},
         'dataset': {'name': _public(result.data), 'type': _public(result.data), 'split': result.split},
         'metrics': [{'type': 'accuracy', 'name': result.metric, 'value': round(100 * result.value, 2)}]}
        for result in results if result.encoder == 'pretrained']}


def _public(source: str) -> str:
    """The name of a data set that others know; that of a folder or a file is a path, and stays here."""
    found = _PUBLIC.fullmatch(source)
    if not source or not found or os.path.exists(source.removeprefix('hf:')):
        return _OWN if source else ''
    return found[1] or found[2]


def _evaluation(results: Sequence[Result]) -> list[str]:
    if not results:
        return []
    rows = [f'| {_public(result.data)}, {result.split} | {result.encoder} | {result.metric} | {100 * result.value:.1f}'
            + (' ({:.1f}-{:.1f})'.format(*(100 * end for end in result.interval)) if result.interval else '') + ' |'
            for result in results]
    return ['## Evaluation', 'In per cent; in brackets the 95 % interval over the test images. `random` is the same '
            'network untrained.', '\n'.join(['| data | encoder | metric | value |', '|---|---|---|---|', *rows])]


def _preprocessing(card: Mapping[str, Any]) -> str:
    fields = card['preprocessing']
    side = fields['image_size']
    crop = (f'the shorter side resized to {fields["resize_to"]} pixels, the central {side} x {side} cut out'
            if fields['resize_to'] else
            f'the central square of {fields["crop_proportion"]:g} of the shorter side, resized to {side} x {side}')
    mean, std = (', '.join(f'{value:.4g}' for value in fields[name]) for name in ('mean', 'std'))
    inside = 'normalise the pixels themselves' if card['graphs']['normalize_inside'] else 'take normalised pixels'
    return (f'Pixels in [0, 1]; {crop} ({fields["resize"]}); then (x - mean) / std with mean ({mean}) and std ({std}). '
            f'`load_encoder` does all of it; the programs (ONNX, SavedModel, StableHLO) {inside}.')


def _uses(card: Mapping[str, Any], repository: str) -> list[str]:
    """How each file is loaded; Python that runs beside the files."""
    files, uses = card['files'], []
    if repository:
        uses.append(f'The files: `hf download {repository} --local-dir .`')
    place = f'hf:{repository}' if repository else '.'
    if 'encoder.flax.safetensors' in files or 'encoder.safetensors' in files:
        uses += ['With simclr_jax, from images [N, H, W, 3] of any size, uint8 or in [0, 1]:', _python(
            'import simclr_jax', f'encoder = simclr_jax.load_encoder({place!r})', 'features = encoder(images)')]
    if 'encoder.safetensors' in files:
        uses += ['In PyTorch, with timm and the `torch_model.py` beside this file, from preprocessed and normalised '
                 'images [N, 3, H, W]:', _python(
                     'import torch_model', "encoder, head, card = torch_model.load('encoder.safetensors')",
                     'features = encoder(normalised)')]
        if _is_timm(card):
            uses += ['Or by timm alone:', _python(
                'import safetensors.torch, timm', f"model = timm.create_model('resnet{card['encoder']['depth']}', "
                f"num_classes={card['classes'] or 0})",
                "model.load_state_dict(safetensors.torch.load_file('encoder.safetensors'), strict=True)",
                'features = model.eval()(normalised)')]
    if 'encoder.onnx' in files:
        uses += [f'In ONNX, from images {files["encoder.onnx"]["input"]}:', _python(
            'import onnxruntime', "session = onnxruntime.InferenceSession('encoder.onnx')",
            "features, = session.run(None, {'images': images})")]
    for file, title in (('savedmodel', 'TensorFlow'), ('encoder.stablehlo', 'JAX without simclr_jax')):
        if file in files:
            uses.append(f'In {title}, from images {files[file]["input"]}: `{files[file]["load"]}`')
    return uses


def _is_timm(card: Mapping[str, Any]) -> bool:
    """Whether timm's class of this depth is this very network."""
    encoder = card['encoder']
    return is_resnet(encoder) and encoder['depth'] in _TIMM_DEPTHS and all(
        encoder.get(name, value) == value for name, value in _AS_TIMM.items())


def _python(*lines: str) -> str:
    return '\n'.join(['```python', *lines, '```'])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
