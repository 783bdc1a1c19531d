"""--config.task=bench_input: the parts of a user's input path, and the cores that an accelerator needs."""

import json

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config, smoke
from simclr_jax.data.shapes import make_shapes
from simclr_jax.inspect import input as bench

PARTS = ['decode', "decode, pad ('padded')", "decode, crop ('crops')", 'on the host: decode, crop, flip',
         '... and colour', "... and blur ('views')"]


def make_config(source, **overrides):
    config = smoke(base_config())
    config.data.update({'source': source, 'train_split': 'train'})
    config.update({'batch_size': 16})
    config.augment.image_size = 16
    config.bench_input.num_images = 48      # more than an epoch
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    for number, image in enumerate(make_shapes('train', 40, 40)[0]):
        Image.fromarray(image[number % 2:]).save(path / f'{number:02}.jpg')     # of two sizes: not in memory
    (path / 'broken.jpg').write_bytes(b'no image')
    return path


@pytest.mark.parametrize('augment_on, pad_to, form', [('device', 0, 'crops'), ('device', 64, 'padded'),
                                                      ('host', 0, 'views')])
def test_a_folder_is_measured_part_by_part(augment_on, pad_to, form, folder, tmp_path, capsys):
    config = make_config(f'folder:{folder}', **{
        'data.augment_on': augment_on, 'data.pad_to': pad_to, 'bench_input.images_per_second': 1e6})
    report = bench.bench_input(config, str(tmp_path))
    assert list(report['parts']) == PARTS and all(rate > 0 for rate in report['parts'].values())
    assert report['whole']['form'] == form
    assert report['cores'] == pytest.approx(1e6 / report['whole']['per_core'])
    assert report['skipped'] == ['broken.jpg']
    assert json.loads((tmp_path / 'bench_input.json').read_text()) == report
    said = capsys.readouterr().out
    assert f'1,000,000 images/s of the training step need {report["cores"]:.1f} cores' in said
    assert all(part in said for part in PARTS)


def test_a_data_set_in_memory_needs_no_cores_and_a_cpu_is_no_accelerator(tmp_path, capsys):
    images = np.zeros((32, 16, 16, 3), np.uint8)
    np.savez(tmp_path / 'set.npz', images=images)
    report = bench.bench_input(make_config(f'arrays:{tmp_path}/set.npz'), str(tmp_path / 'w'))
    assert report['parts'] == {} and report['whole']['form'] == 'memory'
    assert report['accelerator'] is None and report['cores'] is None
    said = capsys.readouterr().out
    assert 'on the devices, which hold the data set' in said and 'No accelerator here' in said


def test_the_difference_of_a_part_is_to_the_part_before():
    parts = dict(zip(PARTS, [1000.0, 800.0, 500.0, 400.0, 250.0, 200.0]))
    whole = {'form': 'crops', 'per_second': 900.0, 'per_core': 450.0}
    lines = bench.describe({'parts': parts, 'whole': whole, 'accelerator': 900.0, 'cores': 2.0,
                            'num_cores': 8})
    differences = [line.split()[-1] for line in lines[0].splitlines()[3:]]
    # A crop decodes no whole image, and contains no padding.
    assert differences == ['+1.00', '+1.25', '+2.00', '+0.50', '+1.50', '+1.00']
    assert lines[-1] == '900 images/s of the training step need 2.0 cores; this machine has 8.'


def test_a_missing_folder_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match='/nowhere'):
        bench.bench_input(make_config('folder:/nowhere'), str(tmp_path / 'w'))
    assert not (tmp_path / 'w').exists()
