"""Two views become one batch and two again, without an image leaving its device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from simclr_jax.methods.views import interleave_views, split_views

COLLECTIVES = ('all-gather', 'all-to-all', 'all-reduce', 'reduce-scatter', 'collective-permute')


def program_on_eight_devices(function, shapes):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P('data'))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function, in_shardings=rows, out_shardings=rows).lower(*arguments).compile()
    return compiled.as_text()


def test_views_of_one_image_are_neighbours_and_come_back():
    view1 = np.arange(12.0).reshape(3, 2, 2)
    view2 = -view1
    rows = interleave_views(view1, view2)
    assert rows.shape == (6, 2, 2)
    for i in range(3):
        np.testing.assert_array_equal(rows[2 * i], view1[i])
        np.testing.assert_array_equal(rows[2 * i + 1], view2[i])
    back1, back2 = split_views(rows)
    np.testing.assert_array_equal(back1, view1)
    np.testing.assert_array_equal(back2, view2)


def test_no_image_moves_between_devices():
    images = [(16, 4, 4, 3)] * 2
    joined = program_on_eight_devices(interleave_views, images)
    split = program_on_eight_devices(split_views, [(32, 7)])
    assert not any(name in joined + split for name in COLLECTIVES)

    # What interleaving is for: the obvious alternative does move them.
    concatenated = program_on_eight_devices(lambda *pair: jnp.concatenate(pair), images)
    assert any(name in concatenated for name in COLLECTIVES)
