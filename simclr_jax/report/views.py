"""The views of a run, made by its own operations: for the gallery, and to compare views with each other."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.data import batches as inputs
from simclr_jax.views import device as device_augment
from simclr_jax.views.fields import OPS
from simclr_jax.views import host as host_augment
from simclr_jax.data.source import Source
from simclr_jax.data.order import epoch_and_index
from simclr_jax.models.network import Network
from simclr_jax.report.images import picture

View = Mapping[str, Mapping[str, Any]]


def two_views(source: Source, count: int, *, view1: View, view2: View, image_size: int, seed: int,
              mesh: jax.sharding.Mesh, sequence: Sequence[str] = ()
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `count` images of a run on `source`: rows [N] of it and both views float32 [N, S, S, 3].

    view1, view2: operations as `device_augment.augment` takes them; sequence: see `inputs.make_prepare`. What
    cannot be read is replaced as in a run.
    """
    count = min(count, source.num_examples)
    form = inputs.choose_form('device', image_size=image_size, source=source)
    prepare = inputs.make_prepare(form, view1=view1, view2=view2, image_size=image_size, seed=seed,
                                  batch_size=count, mesh=mesh, sequence=sequence)
    with inputs.train_batches(source, form, mesh, seed=seed, batch_size=count, view1=view1, view2=view2,
                              image_size=image_size) as batches:
        views = jax.jit(prepare)(next(batches), jnp.int32(0))
    _, rows = epoch_and_index(seed, np.arange(count), source.num_examples)
    return rows, np.asarray(views['view1']), np.asarray(views['view2'])


def squares(source: Source, rows: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Central squares [M, S, S, 3] float32 of the images that can be read, and their places in `rows`."""
    images = [picture(source, int(row)) for row in rows]
    kept = [place for place, image in enumerate(images) if image is not None]
    crops = [host_augment.eval_crop(images[place], image_size=image_size, proportion=1.0) for place in kept]
    return np.array(crops).reshape(-1, image_size, image_size, 3), np.array(kept, int)


def used_operations(view1: View, view2: View) -> dict[str, tuple[float, float]]:
    """{operation: its probability in view 1 and in view 2} of those that run, in their order."""
    both = {name: (view1[name]['probability'], view2[name]['probability']) for name in OPS}
    return {name: shares for name, shares in both.items() if any(shares)}


def each_alone(images: np.ndarray, view1: View, view2: View, *, seed: int) -> dict[str, np.ndarray]:
    """{operation: images [N, S, S, 3] after it and no other}, each at probability 1.

    Of an operation whose fields differ between the views, those of the first view that uses it.
    """
    size = images.shape[1]
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(len(images)))

    def one(name):
        fields = view1[name] if view1[name]['probability'] else view2[name]
        operations = {op: {'probability': 0.0} for op in OPS} | {name: dict(fields) | {'probability': 1.0}}
        return device_augment.over_batch(
            functools.partial(device_augment.augment, image_size=size, **operations))

    names = list(used_operations(view1, view2))
    made = jax.jit(lambda images, keys: {name: one(name)(images, keys) for name in names})(images, keys)
    return {name: np.asarray(made[name]) for name in names}


def outputs(network: Network, variables: dict, images: np.ndarray, *, batch_size: int = 128
            ) -> tuple[np.ndarray, np.ndarray]:
    """Features h [N, D] and projections z [N, out_dim] of images [N, S, S, 3] in [0, 1]."""
    @jax.jit
    def apply(variables, images):
        output = network.apply(variables, images, train=False)
        return output.features, output.projection

    batch_size = min(batch_size, len(images))
    parts = []
    for first in range(0, len(images), batch_size):
        batch = images[first:first + batch_size]
        filled = np.concatenate([batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)])
        parts.append([np.asarray(part)[:len(batch)] for part in apply(variables, filled)])
    return tuple(np.concatenate(column) for column in zip(*parts))
