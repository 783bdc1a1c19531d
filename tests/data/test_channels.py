"""Images of other channels than RGB: bands of satellites, from files and arrays through the whole command."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import simclr_jax
from simclr_jax.config import base_config, smoke
from simclr_jax.data import loading
from simclr_jax.data.compiled import crop_resize
from simclr_jax.data.decode import BadImage, Rules, read_image
from simclr_jax.evaluate.embed import embed, read_features
from simclr_jax.evaluate.knn_task import knn
from simclr_jax.evaluate.pretrained import as_imported, load_pretrained
from simclr_jax.models import resnet
from simclr_jax.views.draws import Draws
from simclr_jax.views.fields import Blur, Crop, Cutout, Flip, Jitter, Rotate, Solarize, View
from simclr_jax.weights.tensors import write_flax
from simclr_jax.weights.write.export import export
from tests.evaluate.runs import task_config
from tests.view_fields import host_views

pytestmark = pytest.mark.usefixtures('one_device')
RNG = np.random.default_rng(0)
EVERYTHING = View(crop=Crop(1.0), flip=Flip(1.0), rotate=Rotate(1.0), jitter=Jitter(1.0), blur=Blur(1.0),
                  solarize=Solarize(1.0), cutout=Cutout(1.0))


def bands(channels, count=40, size=12, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, (count, size, size, channels), dtype)


def load(name, **data):
    options = loading.options(base_config().data.to_dict() | data, image_size=8, is_lead=True)
    return loading.load_source(name, 'train', **options)


@pytest.mark.parametrize('channels, given, expected', [
    (2, 0, 2), (6, 0, 6), (16, 0, 16), (4, 4, 4), (1, 1, 1), (1, 0, 3), (4, 0, 3), (3, 0, 3)])
def test_arrays_keep_the_channels_they_have_or_are_asked_for(tmp_path, channels, given, expected):
    images = bands(channels)
    np.savez(tmp_path / 'a.npz', images=images)
    source = load(f'arrays:{tmp_path}/a.npz', channels=given)
    assert source.channels == expected and source.images.shape == (40, 12, 12, expected)
    if channels == expected:
        np.testing.assert_array_equal(source.images, images)


def test_npy_files_and_pages_of_a_tiff_are_bands(tmp_path):
    images = bands(5, count=2)
    (tmp_path / 'npy').mkdir()
    (tmp_path / 'tiff').mkdir()
    for number, image in enumerate(images):
        np.save(tmp_path / 'npy' / f'{number}.npy', image)
        pages = [Image.fromarray(image[..., band]) for band in range(5)]
        pages[0].save(tmp_path / 'tiff' / f'{number}.tif', save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(load(f'folder:{tmp_path}/npy').images, images)
    np.testing.assert_array_equal(load(f'folder:{tmp_path}/tiff', channels=5).images, images)
    first_page = load(f'folder:{tmp_path}/tiff')
    np.testing.assert_array_equal(first_page.images, np.repeat(images[..., :1], 3, axis=-1))
    assert any('TIFFs of 5 pages, of which the first is read; data.channels=5' in note
               for note in first_page.notes)


def test_a_cache_holds_all_bands(tmp_path):
    images = bands(5, count=3, size=16)
    (tmp_path / 'images').mkdir()
    for number, image in enumerate(images):
        np.save(tmp_path / 'images' / f'{number}.npy', image)
    for kind, side in (('decoded', 16), ('resized:8', 8)):
        options = loading.options(base_config().data.to_dict() | {'cache': kind, 'cache_dir': str(tmp_path / 'cache')},
                                  image_size=8, is_lead=False) | {'decode_once': False}
        source = loading.load_source(f'folder:{tmp_path}/images', 'train', **options)
        assert source.load(1).shape == (side, side, 5)
    expected = Image.fromarray(images[1, ..., 4]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(source.load(1)[..., 4], expected)


def test_items_may_have_their_channels_first_or_last():
    images = bands(6, size=20)
    for items in (list(images), list(images.transpose(0, 3, 1, 2))):
        source = loading.as_source(items, rules=Rules(channels=0))
        assert source.channels == 6
        np.testing.assert_array_equal(source.load(3), images[3])


def test_one_channel_is_grey_and_sixteen_bits_of_bands_become_eight(tmp_path):
    colour = Image.fromarray(bands(3, count=1)[0])
    buffer = io.BytesIO()
    colour.save(buffer, 'PNG')
    np.testing.assert_array_equal(read_image(io.BytesIO(buffer.getvalue()), Rules(channels=1))[..., 0],
                                  np.asarray(colour.convert('L')))
    with pytest.raises(BadImage, match=r'uint8 \[12, 12, 3\]: .* of C = 6 channels \(data.channels\)'):
        read_image(io.BytesIO(buffer.getvalue()), Rules(channels=6))
    deep = bands(6, dtype=np.uint16) // 16
    np.savez(tmp_path / 'a.npz', images=deep)
    low, high = deep.min(), deep.max()
    source = load(f'arrays:{tmp_path}/a.npz')
    np.testing.assert_allclose(source.images, (deep - low) * (255 / (high - low)), atol=0.5)


@pytest.mark.parametrize('channels, sentence', [(17, 'data.channels is 17: it takes 1 to 16'),
                                                (6, "data.channels is 6, but the images of 'shapes' have 3")])
def test_channels_that_cannot_be_are_refused(channels, sentence):
    with pytest.raises(ValueError, match=sentence):
        load('shapes', channels=channels)


@pytest.mark.parametrize('channels', [1, 2, 6])
def test_each_band_is_cropped_and_augmented_as_it_would_be_in_rgb(channels):
    """The host's operations beside colour treat channels alike: bands thrice over are the same bands."""
    image, draws = bands(channels, count=1, size=30)[0], Draws(0, 0, 5, 0)
    box = (3, 2, 20, 17)
    out = crop_resize(image, box, 8, out=np.empty((8, 8, channels), np.float32))
    view = EVERYTHING.without_rgb()
    augmented = host_views(image, [draws], view, image_size=8)[0]
    for band in range(channels):
        three = np.repeat(image[..., band:band + 1], 3, axis=-1)
        expected = crop_resize(three, box, 8, out=np.empty((8, 8, 3), np.float32))
        np.testing.assert_array_equal(out[..., band], expected[..., 0])
        expected = host_views(three, [draws], view, image_size=8)[0]
        np.testing.assert_allclose(augmented[..., band], expected[..., 0], atol=1e-6)


@pytest.fixture(scope='module', autouse=True)
def small_resnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.DEPTHS, 4, (resnet.BasicBlock, (1,)))
        yield


@pytest.fixture(scope='module')
def satellite(tmp_path_factory):
    """A file of 6 bands and two classes: in one the first bands are bright, in the other the last."""
    path = tmp_path_factory.mktemp('satellite')
    labels = np.arange(60) % 2
    images = bands(6, count=60, size=16) // 2
    images[labels == 0, ..., :3] += 100
    images[labels == 1, ..., 3:] += 100
    np.savez(path / 'a.npz', images=images, labels=labels)
    return path


def run_config(satellite, augment_on):
    config = smoke(base_config())
    config.update({'num_train_steps': 3, 'batch_size': 16})
    config.encoder.update({'depth': 4, 'width': 0.25})
    config.augment.image_size = 16
    config.data.update({'source': f'arrays:{satellite}/a.npz', 'augment_on': augment_on, 'test_split': '30%'})
    return config


def check_run(workdir):
    kept = json.loads((workdir / 'config.json').read_text())
    assert kept['data']['channels'] == 6 and kept['augment']['mean'] == [0.0] * 6
    encoder = simclr_jax.load_encoder(workdir)
    assert encoder(bands(6, count=3)).shape == (3, encoder.width)
    with pytest.raises(ValueError, match=r'expected \[N, H, W, 6\]'):
        encoder(bands(3, count=3))


def test_six_bands_train_and_the_encoder_is_measured_and_used(satellite, capsys):
    workdir = satellite / 'run'
    for _ in range(2):      # finished, it goes on from its last step
        simclr_jax.pretrain(run_config(satellite, 'device'), str(workdir))
        assert ('Images of 6 channels: saturation, hue, grey of the views, which are of red, green and blue, '
                'are left out.' in capsys.readouterr().out)
    check_run(workdir)
    file, images = str(satellite / 'encoder.safetensors'), bands(6, count=3)
    write_flax(file, as_imported(load_pretrained(workdir)))
    one, two = (simclr_jax.load_encoder(path)(images) for path in (file, workdir))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match='takes images of 6 channels, and files of weights are for RGB'):
        export(task_config('export', str(workdir)), str(satellite / 'export'))
    measured = knn(task_config('knn', str(workdir)), str(workdir))
    assert measured['pretrained'].keys() == measured['random'].keys() == measured['raw pixels'].keys()
    features = read_features(embed(task_config('embed', str(workdir)), str(satellite / 'features'))[0])
    assert len(features.features) == 60     # the whole split of the file


def test_six_bands_train_with_views_of_the_host(satellite, tmp_path):
    assert 'pretrained' in simclr_jax.pretrain(run_config(satellite, 'host'), str(tmp_path))
    check_run(tmp_path)


def test_numbers_for_another_count_of_channels_are_refused(satellite, tmp_path):
    config = run_config(satellite, 'device')
    config.augment.mean = (0.4, 0.5, 0.6)
    with pytest.raises(ValueError, match=r'augment.mean is \(0.4, 0.5, 0.6\), but the images have 6'):
        simclr_jax.pretrain(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
