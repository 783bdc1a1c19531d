"""Decoding: the same pixels for any box, and the same files readable, with the compiled loop and without it."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclr_jax.data import compiled
from simclr_jax.data.decode import BadImage, EncodedImage, decoded, read_image
from tests.data.streams import encoded


def picture(height=45, width=67):
    """Smooth enough for JPEG, with edges of colour."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 3 % 256, y * 5 % 256, (x + y) // 9 % 2 * 200 + 20], axis=-1)
    return Image.fromarray(image.astype(np.uint8))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(), 'JPEG', exif=exif)


def sixteen_bits():
    grey = np.asarray(picture().convert('L')).astype(np.uint16)
    return encoded(Image.fromarray(grey * 257), 'PNG')


KINDS = {
    'jpeg': encoded(picture(), 'JPEG'),
    'jpeg 4:4:4': encoded(picture(), 'JPEG', subsampling=0, quality=95),
    'jpeg 4:2:2': encoded(picture(), 'JPEG', subsampling=1, quality=95),
    'restart markers': encoded(picture(), 'JPEG', restart_marker_blocks=3),
    'progressive': encoded(picture(), 'JPEG', progressive=True),
    'grey': encoded(picture().convert('L'), 'JPEG'),
    'upright': turned(1),
    'zeros after the end': encoded(picture(), 'JPEG') + b'\0' * 9,
    'cmyk': encoded(picture().convert('CMYK'), 'JPEG'),
    'png': encoded(picture(), 'PNG'),
    '16 bits': sixteen_bits(),
    'animated': encoded(picture(), 'GIF', save_all=True, append_images=[Image.new('RGB', (67, 45))] * 2),
    'webp': encoded(picture(), 'WEBP'),
    'one pixel': encoded(Image.new('RGB', (1, 1), (200, 90, 30)), 'JPEG'),
    '20,000 wide': encoded(picture(3, 20000), 'JPEG'),
} | {f'orientation {value}': turned(value) for value in range(2, 9)}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_upright_rgb_as_pillow_reads_it_also_in_a_box_and_without_the_compiled_loop(kind, monkeypatch):
    image, expected, rng = decoded(KINDS[kind]), read_image(io.BytesIO(KINDS[kind])), np.random.default_rng(0)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    np.testing.assert_array_equal(image, expected)
    for number in range(20):
        if number == 15:
            monkeypatch.setattr(compiled, 'libjpeg', lambda: None)
        height, width = (rng.integers(1, size + 1) for size in expected.shape[:2])
        top, left = (rng.integers(0, size - n + 1) for size, n in zip(expected.shape, (height, width)))
        pixels = EncodedImage(KINDS[kind]).region(tuple(map(int, (top, left, height, width))))
        np.testing.assert_array_equal(pixels, expected[top:top + height, left:left + width])


def test_a_plain_jpeg_has_the_pixels_of_tensorflows_accurate_decoder():
    for kind in ('jpeg', 'jpeg 4:4:4', 'jpeg 4:2:2', 'restart markers', 'progressive', 'grey', 'upright'):
        expected = tf.io.decode_jpeg(KINDS[kind], channels=3, dct_method='INTEGER_ACCURATE')
        np.testing.assert_array_equal(decoded(KINDS[kind]), expected)


def test_only_the_box_of_a_plain_jpeg_is_decoded():
    for kind in ('jpeg', 'progressive', 'grey', 'upright', 'zeros after the end', '20,000 wide'):
        region = EncodedImage(KINDS[kind]).region((1, 3, 2, 10))
        height, width, _ = region.base.shape        # what it is a part of
        assert region.shape == (2, 10, 3) and height == 2 and width <= 10 + 2 + 2 + 32      # margins and a block


def test_sixteen_bits_are_scaled_and_transparency_shows_the_background():
    np.testing.assert_array_equal(decoded(sixteen_bits())[..., 1], np.asarray(picture().convert('L')))
    transparent = picture().convert('RGBA')
    transparent.putalpha(9)
    expected = np.asarray(picture()) * (9 / 255) + 255 * (246 / 255)        # over white
    np.testing.assert_allclose(decoded(encoded(transparent, 'PNG')), expected, atol=0.5)


def test_pixels_pass_as_they_are():
    pixels = np.asarray(picture())
    image = EncodedImage(pixels)
    assert (image.height, image.width) == (45, 67)
    np.testing.assert_array_equal(image.region((4, 6, 30, 20)), pixels[4:34, 6:26])


def jpeg_of_size(height, width):
    """A JPEG whose header claims another size."""
    data = bytearray(KINDS['jpeg'])
    frame = data.index(b'\xff\xc0')
    data[frame + 5:frame + 9] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    return bytes(data)


BAD = {
    'empty': b'', 'text': b'no image at all', 'start only': b'\xff\xd8', 'start and end': b'\xff\xd8\xff\xd9',
    'frame cut': KINDS['jpeg'][:KINDS['jpeg'].index(b'\xff\xc0') + 7] + b'\xff\xd9',
    'no height': jpeg_of_size(0, 67),
    'png cut': KINDS['png'][:-40], 'gif cut': KINDS['animated'][:200], 'webp cut': KINDS['webp'][:100],
} | {f'{kind} without its last {n}': KINDS[kind][:-n] for kind in ('jpeg', 'progressive', 'grey', 'upright')
     for n in (1, 2, 40, len(KINDS[kind]) // 2)}


@pytest.mark.parametrize('kind', BAD)
def test_a_broken_file_is_named_as_such_for_every_box(kind):
    """Also where the box lies above the place at which the file ends."""
    for box in ((0, 0, 1, 1), (0, 0, 8, 8), (0, 0, 45, 67)):
        with pytest.raises(BadImage):
            EncodedImage(BAD[kind]).region(box)


def test_where_libjpeg_warns_pillow_decides():
    data = KINDS['jpeg'][:-40] + KINDS['jpeg'][-2:]       # the last blocks are missing
    assert compiled.read_box(data, compiled.plain_size(data, 1 << 20), (0, 0, 45, 67)) is None
    np.testing.assert_array_equal(decoded(data), read_image(io.BytesIO(data)))


def test_what_has_not_the_size_of_its_header_is_refused():
    assert compiled.read_box(KINDS['jpeg'], (45, 66), (0, 0, 45, 66)) is None


WITHOUT_TENSORFLOW = """
import io, sys
sys.modules['tensorflow'] = None    # importing it fails
import numpy as np
from PIL import Image
from simclr_jax.data import arrays, decode, folder, pipeline
from simclr_jax.views.fields import View
buffer = io.BytesIO()
Image.new('RGB', (9, 7), (200, 90, 30)).save(buffer, 'JPEG')
image = decode.EncodedImage(buffer.getvalue())
assert image.region((1, 2, 3, 4)).shape == (3, 4, 3)
source = arrays.ArraySource('a', 'train', np.zeros((8, 6, 6, 3), np.uint8), np.zeros(8, np.int32), None)
options = dict(seed=0, batch_size=4, view1=View(), view2=View(), image_size=6)
assert next(pipeline.train_batches(source, form='crops', **options))['crop1'].shape == (4, 6, 6, 3)
try:
    pipeline.train_batches(source, form='views', **options)
except ValueError as error:
    assert "data.augment_on='host' needs tensorflow: pip install 'simclr_jax[tfds]'" in str(error)
else:
    sys.exit('views of the host were made without tensorflow')
"""


def test_files_and_arrays_can_be_read_where_tensorflow_is_not_installed():
    result = subprocess.run([sys.executable, '-c', WITHOUT_TENSORFLOW], capture_output=True, text=True,
                            timeout=120)
    assert result.returncode == 0, result.stderr
