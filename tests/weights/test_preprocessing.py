"""Imported weights see photographs as they did in PyTorch, and exports say how."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tests.weights.torch_setup import torch  # isort: skip
from torchvision.transforms import v2

import simclr_jax
from simclr_jax.views.resize import Resize
from simclr_jax.weights.read.torch import read_torch
from simclr_jax.weights.tensors import read_flax, write_flax
from simclr_jax.weights.write import torch_model
from simclr_jax.weights.write.export import export_encoder
from simclr_jax.weights.write.torch import write_torch
from tests.weights.random_weights import random_imported

NORMALIZE = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))      # torchvision's references
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
# The tensor's values are kept in float32 by the resize; Pillow's are rounded to 8 bits after it.
CROP = (v2.Resize(256), v2.CenterCrop(224))
PIPELINES = {'tensor': (v2.Compose([v2.ToImage(), TO_FLOAT, *CROP, NORMALIZE]), 1e-5),
             'pillow': (v2.Compose([*CROP, v2.ToImage(), TO_FLOAT, NORMALIZE]), 1e-3)}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """(a file as others save it, the network in PyTorch)"""
    directory = tmp_path_factory.mktemp('torch')
    write_torch(directory, random_imported({'depth': 10, 'width': 0.125}))
    network, _, _ = torch_model.load(directory / 'encoder.safetensors')
    torch.save(network.state_dict(), directory / 'w.pth')
    return directory / 'w.pth', network


@pytest.mark.parametrize('pipeline', PIPELINES)
def test_features_of_photographs_are_those_of_torchvisions_pipeline(pipeline, saved):
    path, network = saved
    transform, tolerance = PIPELINES[pipeline]
    encoder = simclr_jax.load_encoder(path)
    for photograph in load_sample_images().images:
        image = Image.fromarray(photograph) if pipeline == 'pillow' else photograph.copy()
        with torch.no_grad():
            theirs = network(transform(image)[None]).numpy()[0]
        ours = encoder([photograph])[0]
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def test_it_is_kept_by_exports_and_written_in_the_card(saved, tmp_path):
    imported = read_torch(saved[0])
    assert {'resize', 'antialias', 'resize_to'} <= set(imported.card['assumed'])
    export_encoder(str(tmp_path), imported, formats=('torch', 'flax'))
    said = json.loads((tmp_path / 'card.json').read_text())['preprocessing']
    assert said.items() >= {
        'resize': 'shorter side to 256, then the central crop, bilinear, half-pixel centres, antialiasing',
        'antialias': True, 'resize_to': 256, 'image_size': 224}.items()
    in_torch = torch_model.read_card(tmp_path / 'encoder.safetensors')
    assert (in_torch['resize'], in_torch['antialias'], in_torch['resize_to']) == ('bilinear', True, 256)
    for name in ('encoder.safetensors', 'encoder.flax.safetensors'):
        encoder = simclr_jax.load_encoder(tmp_path / name)
        assert encoder.preprocessing.resize == Resize('bilinear', True, 256)
        assert 'shorter side to 256' in repr(encoder)


def test_a_file_that_resizes_as_before_is_for_earlier_versions_too(tmp_path):
    plain = random_imported({'depth': 10, 'width': 0.0625})
    write_flax(tmp_path / 'w.safetensors', plain)
    assert b'"format": 1' in (tmp_path / 'w.safetensors').read_bytes()[:9000].replace(b'\\', b'')
    back = read_flax(tmp_path / 'w.safetensors')
    assert (back.resize, back.antialias, back.resize_to) == ('bicubic', False, 0)
