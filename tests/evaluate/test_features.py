import jax
import numpy as np

from simclr_jax.runtime import sharding
from simclr_jax.evaluate.features import extract_features, raw_pixels


def test_padding_is_dropped_and_rows_stay_with_their_labels():
    rng = np.random.default_rng(0)
    images = rng.random((24, 2, 2, 3), np.float32)
    valid = np.ones(24, bool)
    valid[[5, 22, 23]] = False
    batches = [{'image': images[rows], 'label': np.arange(24, dtype=np.int32)[rows], 'valid': valid[rows]}
               for rows in (slice(0, 8), slice(8, 16), slice(16, 24))]
    extracted = extract_features(jax.jit(raw_pixels), batches, sharding.make_mesh(), at_most=24)
    np.testing.assert_array_equal(extracted.labels, np.flatnonzero(valid))
    np.testing.assert_array_equal(extracted.features, images[valid].reshape(21, -1))
