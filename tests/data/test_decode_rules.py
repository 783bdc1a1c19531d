"""Depth, transparency and size: the right pixels, on data whose right value is known."""

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config
from simclr_jax.data import loading
from simclr_jax.data.decode import AUTO, EncodedImage, Rules, of_array, read_image
from tests.data.streams import encoded

RNG = np.random.default_rng(0)


def png16(array):
    """A PNG of 16 bits with 1 to 4 channels, which Pillow cannot write. Specification: w3.org/TR/png."""
    height, width, channels = array.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunks


def twelve_bits(channels):
    return RNG.integers(0, 4096, (6, 8, channels)).astype(np.uint16)


def over(colour, alpha, background):
    """The formula of compositing, in float64."""
    return colour * alpha + np.array(background) * (1 - alpha)


@pytest.mark.parametrize('channels', [1, 3])
def test_sixteen_bits_are_scaled_from_a_range_of_their_own(channels):
    array = twelve_bits(channels)
    image = read_image(io.BytesIO(png16(array)), Rules(range=(0, 4095)))
    expected = np.broadcast_to(array / 4095 * 255, (6, 8, 3))
    np.testing.assert_allclose(image, expected, atol=0.5)
    np.testing.assert_array_equal(read_image(io.BytesIO(png16(array)), Rules(range=None)), np.broadcast_to(
        array // 257, (6, 8, 3)))


@pytest.mark.parametrize('channels', [2, 4])
def test_sixteen_bits_with_transparency(channels):
    array = RNG.integers(0, 65536, (6, 8, channels)).astype(np.uint16)
    image = read_image(io.BytesIO(png16(array)), Rules(range=(0, 65535), background=(10, 200, 90)))
    expected = over(array[..., :-1] / 257, array[..., -1:] / 65535, (10, 200, 90))
    np.testing.assert_allclose(image, expected, atol=1.6)       # colour, alpha and result are each rounded


@pytest.mark.parametrize('dtype', [np.float32, np.int32, np.uint16])
def test_tiffs_of_any_depth(dtype):
    array = (RNG.random((6, 8)) * 3000).astype(dtype)
    image = read_image(io.BytesIO(encoded(Image.fromarray(array), 'TIFF')), Rules(range=(100, 2000)))
    np.testing.assert_allclose(image[..., 1], np.clip((array - 100.0) / 1900 * 255, 0, 255), atol=0.5)


def test_deep_images_are_turned_upright_as_others_are():
    array = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        reduced = Image.fromarray((array // 257).astype(np.uint8))
        eight = read_image(io.BytesIO(encoded(reduced, 'TIFF', exif=exif)))
        deep = read_image(io.BytesIO(encoded(Image.fromarray(array), 'TIFF', exif=exif)))
        np.testing.assert_array_equal(deep, eight)


def test_the_range_is_that_of_the_data_set_and_is_kept_and_said(tmp_path):
    arrays = [twelve_bits(1)[..., 0] for _ in range(4)]
    arrays[2][0, 0], arrays[1][0, 1] = 4095, 0
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f'{number}.png')
    train = loading.load_source(f'folder:{tmp_path}', 'train')
    assert train.rules.range == (0, 4095)
    assert 'uint16 images: 0 to 4095, the extremes of 4 of them, become 0 to 255 (data.range).' in train.notes
    image = read_image(io.BytesIO(train.load(3)), train.rules)
    np.testing.assert_allclose(image[..., 0], arrays[3] / 4095 * 255, atol=0.5)
    assert loading.fields_found(train, None) == {'channels': 3, 'range': (0, 4095)}
    np.savez(tmp_path / 'a.npz', train_images=np.stack(arrays), test_images=np.stack(arrays[3:]))
    train, test = loading.load_pair(f'arrays:{tmp_path}/a.npz', 'train', '')
    np.testing.assert_array_equal(train.images[3], test.images[0])      # not by its own extremes


def test_eight_bits_stay_as_they_are_whatever_the_range():
    array = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    for limits in (None, AUTO, (0, 50)):
        np.testing.assert_array_equal(read_image(io.BytesIO(encoded(Image.fromarray(array), 'PNG')), Rules(
            range=limits)), array)


@pytest.mark.parametrize('background', ['white', '#102030'])
@pytest.mark.parametrize('kind, mode', [('PNG', 'RGBA'), ('PNG', 'LA'), ('PNG', 'P'), ('WEBP', 'RGBA'),
                                        ('GIF', 'P'), ('TIFF', 'RGBA'), ('npy', '')])
def test_transparent_pixels_show_the_background(tmp_path, kind, mode, background):
    """Black ink on nothing: black where the ink is, the background elsewhere."""
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[2:5, 2:5, 3] = 255
    if kind == 'npy':
        np.save(tmp_path / 'a.npy', ink)
    elif mode == 'P':
        palette = Image.fromarray((ink[..., 3] // 255).astype(np.uint8), 'L').convert('P')
        palette.putpalette([0, 0, 0] * 256)
        palette.save(tmp_path / f'a.{kind.lower()}', transparency=0)
    else:
        Image.fromarray(ink).convert(mode).save(
            tmp_path / f'a.{kind.lower()}', **({'lossless': True} if kind == 'WEBP' else {}))
    data = base_config().data.to_dict() | {'background': background}
    options = loading.options(data, image_size=8, is_lead=True)
    source = loading.load_source(f'folder:{tmp_path}', 'train', **options)
    colour = {'white': (255,) * 3, '#102030': (16, 32, 48)}[background]
    expected = np.where(ink[..., 3:] == 255, 0, np.array(colour))
    np.testing.assert_array_equal(source.images[0], expected)


def test_half_transparency_is_a_mixture_in_files_and_in_arrays():
    array = RNG.integers(0, 256, (6, 8, 4), np.uint8)
    expected = over(array[..., :3].astype(float), array[..., 3:] / 255, (255, 255, 255))
    for image in (read_image(io.BytesIO(encoded(Image.fromarray(array), 'PNG'))), of_array(array)):
        np.testing.assert_allclose(image, expected, atol=0.5)
    own = read_image(io.BytesIO(encoded(Image.fromarray(array), 'PNG')), Rules(background=None))
    np.testing.assert_array_equal(own, array[..., :3])


def test_what_is_no_colour_or_range_is_named():
    data = base_config().data.to_dict()
    for change, sentence in (({'background': 'whit'}, "data.background is 'whit': it takes a colour"),
                             ({'range': (5, 5)}, r'data.range is \(5.0, 5.0\): it takes two numbers'),
                             ({'max_pixels': 0}, 'data.max_pixels is 0')):
        with pytest.raises(ValueError, match=sentence):
            loading.options(data | change, image_size=8, is_lead=True)


def test_a_larger_jpeg_is_read_reduced_and_anything_else_is_refused_without_a_warning():
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8), (100, 1)))
    rules = Rules(max_pixels=5500)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image = EncodedImage(encoded(smooth, 'JPEG'), rules)
        assert (image.height, image.width) == (50, 100)
        np.testing.assert_allclose(image.region((0, 0, 50, 100))[25, :, 0], np.linspace(0, 255, 100), atol=6)
        with pytest.raises(ValueError, match='200 x 100 pixels are more than data.max_pixels = 5500'):
            EncodedImage(encoded(smooth, 'PNG'), rules)
        flat = Image.new('1', (10_000, 10_000))      # where Pillow warns
        assert read_image(io.BytesIO(encoded(flat, 'PNG'))).shape == (10_000, 10_000, 3)


def test_images_of_one_colour_or_nearly_black_are_counted_and_named(tmp_path):
    for name, array in (('black', np.zeros((8, 8))), ('dark', RNG.integers(0, 9, (8, 8))),
                        ('flat', np.full((8, 8), 90)), ('fine', RNG.integers(0, 256, (8, 8)))):
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / f'{name}.png')
    train, _ = loading.load_pair(f'folder:{tmp_path}', 'train', 'none')
    assert ('3 of 4 sampled images are of one colour or nearly black (black.png, dark.png, flat.png)'
            in train.notes[0])


def test_a_cache_keeps_the_rules_by_which_it_was_made(tmp_path):
    """Train and test are read alike, and another background is another cache."""
    ink = np.zeros((9, 9, 4), np.uint8)
    for split in ('train', 'test'):
        (tmp_path / 'images' / split).mkdir(parents=True)
        Image.fromarray(ink).save(tmp_path / 'images' / split / 'a.png')
        Image.fromarray(twelve_bits(1)[..., 0] // 2).save(tmp_path / 'images' / split / 'b.png')
    for background, value in (('red', (255, 0, 0)), ('#000010', (0, 0, 16))):
        data = base_config().data.to_dict() | {
            'background': background, 'cache': 'decoded', 'cache_dir': str(tmp_path / 'cache')}
        where = loading.options(data, image_size=8, is_lead=False) | {'decode_once': False}
        train, test = loading.load_pair(f'folder:{tmp_path}/images', 'train', '', **where)
        assert (train.load(0) == value).all() and (test.load(0) == value).all()
        assert train.rules.range == test.rules.range and isinstance(train.rules.range, tuple)


def test_transparency_takes_little_memory_beside_the_image():
    """An image of a folder may be large, and several are read at a time."""
    side = 1500
    array = np.zeros((side, side, 4), np.uint8)
    array[::2] = (200, 100, 50, 128)
    data = encoded(Image.fromarray(array), 'PNG')
    tracemalloc.start()
    try:
        image = read_image(io.BytesIO(data), Rules(background=(0, 0, 255)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image[0, 0].tolist() == [100, 50, 152] and image[1, 0].tolist() == [0, 0, 255]
    assert peak < 11 * side ** 2        # bytes; the file's four and the result's three are among them
