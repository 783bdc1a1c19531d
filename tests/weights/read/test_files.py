"""Any path is told by what it is; what an encoder takes from a file, its config says."""

import numpy as np
import pytest

import simclr_jax
from simclr_jax.config import base_config
from simclr_jax.evaluate.pretrained import load_pretrained
from simclr_jax.weights.read.files import read_weights
from simclr_jax.weights.tensors import write_flax
from simclr_jax.weights.write.torch import write_torch
from tests.weights.random_weights import assert_same_arrays, random_imported
from tests.weights.tiny_encoders import own_layers, random_images

ENCODER = {'depth': 10, 'width': 0.0625, 'max_pool': 'same', 'norm_epsilon': 1e-3}
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'hidden_width': 8, 'out_dim': 4}


@pytest.fixture(scope='module')
def imported():
    return random_imported(ENCODER, HEAD, classes=3)


def test_one_export_is_read_by_its_directory_and_by_each_of_its_files(tmp_path, imported):
    write_flax(tmp_path / 'encoder.flax.safetensors', imported)
    write_torch(tmp_path, imported)
    for path in (tmp_path, tmp_path / 'encoder.flax.safetensors', tmp_path / 'encoder.safetensors'):
        assert_same_arrays(read_weights(path).variables, imported.variables)
    (tmp_path / 'plain').touch()
    assert (tmp_path / 'encoder.safetensors').stat().st_mode == (tmp_path / 'plain').stat().st_mode
    (tmp_path / 'encoder.flax.safetensors').unlink()
    assert_same_arrays(read_weights(tmp_path).variables, imported.variables)


def test_features_and_config_are_those_of_the_file(tmp_path, imported):
    path = tmp_path / 'mine.flax.safetensors'
    write_flax(path, imported)
    pretrained = load_pretrained(str(path))
    config = pretrained.config
    assert (config.encoder.norm_epsilon, config.encoder.max_pool, config.head.out_dim) == (1e-3, 'same', 4)
    assert (config.augment.image_size, config.eval.crop_proportion) == (96, 0.75)
    assert tuple(config.augment.mean) == (0.1, 0.2, 0.3) and config.data.source == ''
    assert pretrained.step == 7 and set(pretrained.classifier) == {'kernel', 'bias'}
    assert config.optimizer == base_config().optimizer      # what the file does not say is the default
    kernel = pretrained.initial['params']['encoder']['stem_conv']['kernel']
    assert kernel.shape == imported.variables['params']['encoder']['stem_conv']['kernel'].shape

    encoder = simclr_jax.load_encoder(path)
    images = random_images(2, 128, 128)                     # 0.75 of them are the 96 pixels, without resizing
    layers = own_layers(images[:, 16:112, 16:112], imported.variables, encoder=ENCODER, head=HEAD,
                        mean=imported.mean, std=imported.std)
    for number, layer in enumerate(layers):
        np.testing.assert_allclose(encoder(images, layer=number), layer, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('options', [{'which': 'best'}, {'network': 'target'}])
def test_a_file_has_no_steps_and_no_target(tmp_path, imported, options):
    write_flax(tmp_path / 'encoder.flax.safetensors', imported)
    with pytest.raises(ValueError, match='one network and no steps'):
        load_pretrained(str(tmp_path), **options)


def test_a_recipe_in_the_file_is_the_config(tmp_path):
    recipe = base_config()
    recipe.optimizer.learning_rate = 7.0
    write_flax(tmp_path / 'encoder.flax.safetensors',
               random_imported(ENCODER, HEAD, card={'step': 3, 'recipe': recipe.to_dict()}))
    config = load_pretrained(str(tmp_path)).config
    assert config.optimizer.learning_rate == 7.0 and config.encoder.max_pool == 'same'


@pytest.mark.parametrize('name, error, message', [
    ('missing.pth', FileNotFoundError, 'nothing at .*missing.pth. Weights are read from a workdir'),
    ('notes.txt', ValueError, 'no known kind'),
    ('directory', ValueError, 'without weights'),
    ('loop', FileNotFoundError, 'symbolic link'),
])
def test_what_is_no_file_of_weights_is_refused(tmp_path, name, error, message):
    (tmp_path / 'notes.txt').write_text('none')
    (tmp_path / 'directory').mkdir()
    (tmp_path / 'directory' / 'image.png').write_text('none')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises(error, match=message):
        load_pretrained(str(tmp_path / name))
