"""The embedded data set: the same everywhere, balanced, and told apart by outline alone."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax.data.shapes import CLASS_NAMES, make_shapes


def test_default_sizes_and_types():
    images, labels = make_shapes('test')
    assert images.shape == (2000, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (2000,) and labels.dtype == np.int32
    assert len(make_shapes('train', 8)[0]) == 10_000


def test_classes_are_balanced():
    np.testing.assert_array_equal(np.bincount(make_shapes('train', 8, 500)[1]),
                                  np.full(len(CLASS_NAMES), 50))


@pytest.mark.parametrize('count', [1, 37, 200, 201])
def test_first_images_do_not_depend_on_how_many_are_drawn(count):
    more = make_shapes('train', 16, 450)
    for some, all_of_them in zip(make_shapes('train', 16, count), more):
        np.testing.assert_array_equal(some, all_of_them[:count])


def test_splits_seeds_and_blocks_share_no_image():
    draws = [make_shapes('train', 16, 450)[0], make_shapes('test', 16, 450)[0],
             make_shapes('train', 16, 450, seed=1)[0]]
    images = np.concatenate(draws).reshape(3 * 450, -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_another_size_shows_the_same_scenes():
    small = make_shapes('train', 32, 40)[0].astype(float)
    large = make_shapes('train', 128, 40)[0].astype(float)
    pooled = large.reshape(40, 32, 4, 32, 4, 3).mean((2, 4))
    assert large.shape == (40, 128, 128, 3)
    assert np.abs(pooled - small).mean() < 10  # Noise is drawn per pixel.


def test_every_shape_stands_out_from_its_background():
    """In luminance, so also where colours are dropped."""
    images = make_shapes('train', 32, 400)[0] / 255.0
    grey = np.sort((images @ [0.299, 0.587, 0.114]).reshape(400, -1))
    # The shape covers 12 to 23 % of the image and is all lighter or all darker than the rest.
    spread = np.maximum(grey[:, -60:].mean(1) - np.median(grey, 1),
                        np.median(grey, 1) - grey[:, :60].mean(1))
    assert spread.min() > 0.15


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="not 'validation'"):
        make_shapes('validation')


def test_colour_histograms_say_next_to_nothing_about_the_class():
    def histograms(split, count):
        images, labels = make_shapes(split, 32, count)
        channels = images.reshape(count, -1, 3).transpose(0, 2, 1)
        return np.array([[np.histogram(channel, 16, (0, 256))[0] for channel in image]
                         for image in channels]).reshape(count, -1) / 1024, labels

    train, test = histograms('train', 4000), histograms('test', 1000)
    for classifier in (LogisticRegression(max_iter=300, C=0.1), KNeighborsClassifier(15)):
        accuracy = classifier.fit(*train).score(*test)
        assert accuracy < 0.15  # Measured 0.085 and 0.106; chance is 0.10.
