"""What a run does with a user's images by default, says of them, and keeps for those who measure it."""

import json

import numpy as np
import pytest
from PIL import Image

import simclr_jax

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Twelve-bit drawings in two class folders of 20, without a test split, and one file that is no image."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for number in range(40):
        folder = root / f'kind{number % 2}'
        folder.mkdir(exist_ok=True)
        array = rng.integers(0, 4096, (16, 16)).astype(np.uint16)
        array[0, :2] = 0, 4095
        Image.fromarray(array).save(folder / f'{number:02}.png')
    (root / 'kind0/notes.txt').write_text('words')
    return root


def config_of(images, **data):
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.update({'num_train_steps': 2, 'batch_size': 16})
    config.augment.image_size = 16
    config.data.update({'source': f'folder:{images}', 'train_split': 'train', 'test_split': '', **data})
    return config


def test_a_folder_without_a_test_split_is_measured_on_a_tenth_that_is_kept(images, tmp_path, capsys):
    results = simclr_jax.pretrain(config_of(images), str(tmp_path))
    printed = capsys.readouterr().out
    assert set(results) == {'random', 'pretrained'} and 'train: 36 images, 2 classes' in printed
    for note in ('1 files are not images of a known format and are left out: 1 .txt.',
                 'uint16 images: 0 to 4095, the extremes of 40 of them, become 0 to 255 (data.range).',
                 '4 images, 10 % of each class, are held out of training (data.test_split='):
        assert note in printed
    kept = json.loads((tmp_path / 'config.json').read_text())['data']
    assert kept['test_split'] == '10%' and kept['range'] == [0, 4095]

    for change, sentence in (({'test_split': 'none'}, "data.test_split is 'none', but the run began with "),
                             ({'range': (0, 255)}, r'data.range is \(0, 255\), but the run began with')):
        with pytest.raises(ValueError, match=sentence):
            simclr_jax.pretrain(config_of(images, **change), str(tmp_path))
    again = simclr_jax.pretrain(config_of(images), str(tmp_path))       # a finished run, measured again
    assert again['pretrained'] == results['pretrained']
