import jax
import numpy as np
import pytest

from simclr_jax.data.source import Source
from simclr_jax.evaluate.features import encode_source, raw_pixels
from simclr_jax.evaluate.linear import linear
from simclr_jax.runtime import sharding
from tests.evaluate.runs import small_config, task_config


class Pictures(Source):
    """24 images of 16 pixels a side, of which one cannot be read and two have no label."""

    labels = np.where(np.isin(np.arange(24), (2, 9)), -1, np.arange(24)).astype(np.int32)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)

    def load(self, index):
        if index == 5:
            raise OSError('no image')
        return self.pixels[index]


@pytest.mark.parametrize('labelled, left_out', [(True, [2, 5, 9]), (False, [5])])
def test_rows_stay_with_their_labels_whatever_is_left_out(labelled, left_out):
    config, calls = small_config(), []
    config.eval.batch_size = 10                                     # filled up to 16 on eight devices
    pictures = Pictures('pictures', 'train', 24, tuple(map(str, range(24))))
    found, rows = encode_source(jax.jit(raw_pixels), pictures, config, sharding.make_mesh(),
                                labelled=labelled, advance=lambda: calls.append(1))
    expected = np.setdiff1d(np.arange(24), left_out)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(found.labels, Pictures.labels[expected])
    pixels = Pictures.pixels[expected].reshape(len(expected), -1) / 255
    np.testing.assert_allclose(found.features, pixels, atol=1e-6)
    assert len(calls) == 24
    assert found.preprocessing == '16 px, crop 1, mean (0.4, 0.5, 0.6), std (1, 1, 1)'


def test_a_batch_that_eight_devices_cannot_share_is_refused_with_its_field(workdir, tmp_path):
    with pytest.raises(ValueError, match='^linear.batch_size 12 is not divisible by the 8 devices'):
        linear(task_config('linear', workdir, batch_size=12), str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
