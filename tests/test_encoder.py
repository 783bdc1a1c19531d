"""The encoder as a library: what `load_encoder` returns, on eight simulated devices."""

import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

import simclr_jax
from simclr_jax.config import base_config, smoke
from simclr_jax.encoder import Encoder
from simclr_jax.evaluate import pretrained
from simclr_jax.evaluate.pretrained import Pretrained
from simclr_jax.models.building import make_network
from simclr_jax.views import device as device_augment
from tests.runs import small_config

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make_encoder(encoder=None, **options):
    config = smoke(base_config())
    config.encoder.width = 0.0625
    config.augment.update({'image_size': 16, 'mean': MEAN, 'std': STD})
    config.eval.crop_proportion = 0.75
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(), mean=MEAN, std=STD,
                           module=encoder)
    variables = jax.device_get(jax.jit(lambda: network.init(
        jax.random.key(1), np.zeros((1, 16, 16, 3), np.float32), train=False))())
    return Encoder(Pretrained(config, network, variables, lambda: variables, 7, 'online', 'a test', {}), **options)


@pytest.fixture(scope='module')
def encoder():
    return make_encoder(batch_size=16)


def images(count, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_features_are_those_of_the_network_on_the_checkpoints_own_preprocessing(encoder):
    batch = images(3)
    crops = np.stack([device_augment.eval_crop(image, image_size=16, proportion=0.75) for image in batch])
    normalised = (crops - np.float32(MEAN)) / np.float32(STD)
    variables = {name: part['encoder'] for name, part in encoder.variables.items()}
    expected = encoder.network.encoder.apply(variables, normalised, train=False)
    found = encoder(batch)
    assert found.dtype == np.float32 and found.shape == (3, encoder.width)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_an_image_has_the_same_features_alone_in_a_batch_and_in_any_place(encoder):
    batch = images(37)                      # three batches of 16, the last one not full
    together = encoder(batch)
    np.testing.assert_allclose(encoder(batch[20:21])[0], together[20], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder(batch[::-1]), together[::-1], rtol=1e-5, atol=1e-6)
    assert encoder(batch[:0]).shape == (0, encoder.width)


def test_floats_in_the_unit_interval_are_the_same_images(encoder):
    batch = images(2)
    np.testing.assert_allclose(encoder(batch / 255), encoder(batch), rtol=1e-4, atol=1e-5)


def test_a_list_of_images_of_several_sizes_keeps_its_order(encoder):
    small, large = images(3), images(2, 31, 18, seed=1)
    mixed = encoder([small[0], large[0], small[1], large[1], small[2]])
    np.testing.assert_allclose(mixed[::2], encoder(small), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[1::2], encoder(large), rtol=1e-5, atol=1e-6)
    assert encoder([]).shape == (0, encoder.width)


def test_every_layer_can_be_asked_for(encoder):
    batch = images(2)
    np.testing.assert_array_equal(encoder(batch, layer='features'), encoder(batch))
    np.testing.assert_array_equal(encoder(batch, layer='projection'), encoder(batch, layer=-1))
    assert encoder(batch, layer=1).shape == (2, 64)
    maps = {name: encoder(batch, layer=name) for name in encoder.layers[1:-1]}
    assert list(maps) == ['stem', 'stage1', 'stage2', 'stage3', 'stage4']
    sides = [16, 16, 8, 4, 2]
    assert [(m.shape[1], m.shape[3]) for m in maps.values()] == list(zip(sides, [4, 4, 8, 16, 32]))
    np.testing.assert_allclose(maps['stage4'].mean((1, 2)), encoder(batch), rtol=1e-5, atol=1e-6)


def test_the_batch_is_cut_over_all_devices():
    seen = []

    class Witness(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            jax.debug.inspect_array_sharding(images, callback=seen.append)
            return images.mean((1, 2))

    assert jax.device_count() == 8 and make_encoder(Witness())(images(3)).shape == (3, 3)
    assert len(seen[-1].device_set) == 8 and not seen[-1].is_fully_replicated


@pytest.mark.parametrize('bad, message', [
    (images(2).astype(np.float32), 'values from 0 to 255'),
    (np.full((1, 8, 8, 3), np.nan), 'values from nan to nan'),
    (images(1)[0], r'shape \[20, 24, 3\]'),
    (images(1).transpose(0, 3, 1, 2), 'channels come first'),
    (images(1).astype(np.int64), 'images are int64'),
    (images(1)[:, :0], 'no pixels'),
])
def test_other_images_are_refused(encoder, bad, message):
    with pytest.raises(ValueError, match=message):
        encoder(bad)


@pytest.mark.parametrize('layer', ['stage9', 9])
def test_another_layer_is_refused_with_the_ones_there_are(encoder, layer):
    with pytest.raises(ValueError, match='projection'):
        encoder(images(1), layer=layer)


def test_no_weights_are_drawn_to_load_those_of_a_run(tmp_path, monkeypatch):
    simclr_jax.pretrain(small_config(**{'data.test_split': 'none'}), str(tmp_path))
    monkeypatch.setattr(pretrained, 'init_variables', None)         # it compiles for seconds
    assert simclr_jax.load_encoder(tmp_path)(np.zeros((1, 8, 8, 3), np.uint8)).shape[0] == 1


def test_a_path_to_nothing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing at'):
        simclr_jax.load_encoder(tmp_path / 'missing')
    with pytest.raises(FileNotFoundError, match='is empty'):
        simclr_jax.load_encoder(tmp_path)
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    with pytest.raises(FileNotFoundError, match='symbolic link'):
        simclr_jax.load_encoder(tmp_path / 'loop')
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(ValueError, match='no known kind'):
        simclr_jax.load_encoder(tmp_path / 'notes.txt')


def test_the_package_is_light_and_its_names_are_there():
    code = ('import sys, simclr_jax; assert not {"jax", "numpy", "tensorflow"} & set(sys.modules); '
            'simclr_jax.load_encoder, simclr_jax.nt_xent, simclr_jax.simclr_views; '
            'assert "tensorflow" not in sys.modules')
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
    assert all(hasattr(simclr_jax, name) for name in simclr_jax.__all__)
    with pytest.raises(AttributeError, match='no attribute'):
        simclr_jax.moco_v4  # noqa: B018
