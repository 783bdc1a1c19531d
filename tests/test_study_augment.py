"""Operations in a given order on one branch (paper Fig. 5): by numpy, and against each alone."""

import functools

import jax
import numpy as np
import pytest

from simclr_jax.config import augment_config
from simclr_jax.data.batches import Inputs
from simclr_jax.runtime import sharding
from simclr_jax.views.device import augment, augment_in_sequence
from simclr_jax.views.from_config import views_of

SIZE = 16
IMAGE = np.random.default_rng(0).random((SIZE, SIZE, 3)).astype(np.float32)
KEY = jax.random.key(3)


def operations(**probabilities):
    config = augment_config(image_size=SIZE, strength=1.0)
    for name in ('crop', 'flip', 'jitter', 'grey', 'blur'):
        config[name].probability = 0.0
    for name, probability in probabilities.items():
        config[name].probability = probability
    return views_of(config)[0]


@pytest.fixture(scope='module')
def views():
    """{sequence: the view}, each made by one compiled function."""
    made = {}
    fields = operations(rotate=1.0, cutout=1.0, grey=1.0, sobel=1.0, crop=1.0)
    sequences = [('rotate',), ('cutout',), ('rotate', 'cutout'), ('cutout', 'rotate'), ('grey',),
                 ('sobel', 'grey'), ('grey', 'sobel'), ('crop',), ('cutout', 'crop'), ()]

    @jax.jit
    def all_of_them(image, key):
        return [augment_in_sequence(image, key, fields, sequence=sequence) for sequence in sequences]

    for sequence, view in zip(sequences, all_of_them(IMAGE, KEY)):
        made[sequence] = np.asarray(view)
    return made


def test_nothing_in_the_sequence_leaves_the_image(views):
    np.testing.assert_array_equal(views[()], IMAGE)


def test_an_operation_alone_is_that_of_the_full_augmentation(views):
    for name in ('rotate', 'cutout', 'crop'):
        alone = jax.jit(functools.partial(augment, view=operations(**{name: 1.0}), image_size=SIZE))
        np.testing.assert_allclose(views[name,], alone(IMAGE, KEY), atol=1e-6)


def test_the_second_operation_sees_what_the_first_one_made(views):
    """Cutout zeroes the same square in either order, before or after the image has turned."""
    hole = (views['cutout',] == 0).all(-1)
    turned = views['rotate',]
    turns = next(k for k in (1, 2, 3) if np.allclose(np.rot90(IMAGE, k), turned, atol=1e-6))
    np.testing.assert_allclose(views['rotate', 'cutout'], np.where(hole[..., None], 0, turned), atol=1e-6)
    np.testing.assert_allclose(views['cutout', 'rotate'],
                               np.rot90(np.where(hole[..., None], 0, IMAGE), turns), atol=1e-6)
    assert (views['rotate', 'cutout'] != views['cutout', 'rotate']).any()
    assert np.abs(views['sobel', 'grey'] - views['grey', 'sobel']).max() > 1e-3
    # A crop behind a cutout shows the crop of an image with a hole.
    crop = jax.jit(functools.partial(augment, view=operations(crop=1.0), image_size=SIZE))(
        np.where(hole[..., None], 0, IMAGE), KEY)
    np.testing.assert_allclose(views['cutout', 'crop'], crop, atol=1e-6)


@pytest.mark.parametrize('sequence', [('blur', 'blur'), ('colour',)])
def test_a_sequence_of_what_is_no_operation_is_refused(sequence):
    with pytest.raises(ValueError, match='augment.sequence is .*jitter'):
        augment_in_sequence(IMAGE, KEY, operations(), sequence=sequence)


def test_one_branch_is_the_crop_itself_the_other_is_made_of_it():
    mesh, rows = sharding.make_mesh(jax.devices()[:1]), 4
    crops = np.random.default_rng(1).integers(0, 256, (2, rows, SIZE, SIZE, 3), np.uint8)
    inputs = Inputs('crops', operations(), operations(rotate=1.0), SIZE, 0, rows, sequence=('rotate',))
    prepare = jax.jit(inputs.make_prepare(mesh))
    batch = prepare({'crop1': crops[0], 'crop2': crops[1], 'label': np.zeros(rows, np.int32),
                     'epoch': np.zeros(rows, np.int32), 'index': np.arange(rows, dtype=np.int32)}, 0)
    np.testing.assert_allclose(batch['view1'], crops[0] / np.float32(255), atol=1e-6)
    for one, two in zip(batch['view1'], batch['view2']):
        assert any(np.allclose(np.rot90(one, k), two, atol=1e-6) for k in (1, 2, 3))
    with pytest.raises(ValueError, match="augment_on='device'"):
        Inputs('views', operations(), operations(), SIZE, 0, rows, sequence=('rotate',))
