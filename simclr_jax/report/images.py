"""Images of a source for a report: a seeded sample, their pixels, and the views that a run makes of them."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from simclr_jax.data import batches, loading
from simclr_jax.data.pipeline import epoch_and_index
from simclr_jax.data.source import Source, Streamed, take_rows
from simclr_jax.models.network import Network, outputs as network_outputs
from simclr_jax.views import device, host
from simclr_jax.views.fields import OPS, View

SIDE = 224      # pixels of a picture on a sheet of `charts`


class _Encoded(Source):
    """The encoded images of some examples of a stream, in memory, as a source of random access."""

    def __init__(self, of: Source, examples: list[dict[str, Any]]):
        self._images = [example['image'] for example in examples]
        self._indices = [example['index'] for example in examples]
        self.labels = np.array([example['label'] for example in examples], np.int32)
        super().__init__(of.name, of.split, len(examples), of.class_names)
        self.max_bad_share, self.rules = of.max_bad_share, of.rules

    def load(self, index: int) -> bytes:
        return self._images[index]

    def name_of(self, index: int) -> str:
        return f'example {self._indices[index]}'


def sample(source: Source, count: int, seed: int) -> tuple[Source, np.ndarray, str]:
    """At most `count` images of `source` in its order, their rows in it, and how they were chosen, in words.

    A function of (source, count, seed). Of a stream they are the first ones: TFDS shuffles a data set when
    it prepares it, and what lies further back would have to be read past.
    """
    if isinstance(source, Streamed):
        found = list(itertools.islice(
            source.ordered(shard_index=0, shard_count=1, is_decoded=False).as_numpy_iterator(), count))
        indices = np.array([example['index'] for example in found])
        words = f'the first {len(found):,} of {source.num_examples:,} images as stored'
        return _Encoded(source, found), indices, words
    if source.num_examples <= count:
        return source, np.arange(source.num_examples), f'all {source.num_examples:,} images'
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.choice(source.num_examples, count, replace=False))
    return take_rows(source, indices), indices, (f'{count:,} of {source.num_examples:,} images, chosen at '
                                                 f'random with seed {seed}')


def picture(source: Source, index: int) -> np.ndarray | None:
    """An example to show: uint8 [h, w, 3] of at most SIDE pixels a side; None where it cannot be read.

    source: of random access. A page has hundreds of them, each of which may be of 100 megapixels.
    """
    pixels = source.pixels(index)
    return None if pixels is None else smaller(pixels, SIDE)


def smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    """Of at most `side` pixels a side: uint8 [h, w, 3], from [H, W, 3]."""
    if max(pixels.shape[:2]) <= side:
        return pixels
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def pictures(name: str, split: str, indices: Iterable[int], options: Mapping[str, Any]
             ) -> dict[int, np.ndarray | None]:
    """{index: its `picture`} of a split by its name; `options`: of `loading.load_source`.

    Raises FileNotFoundError or ValueError where the data are no longer there.
    """
    source = loading.load_source(name, split, **options)
    if not isinstance(source, Streamed):
        return {int(index): picture(source, int(index)) if index < source.num_examples else None
                for index in indices}
    if '[' in split:
        raise ValueError(f'{name} is streamed, and single images of a slice of it cannot be fetched')
    found = {}
    for index in map(int, indices):
        rows, _, _ = sample(loading.load_source(name, f'{split}[{index}:{index + 1}]', **options), 1, 0)
        found[index] = picture(rows, 0)
    return found


# ---- views -------------------------------------------------------------------------------------------


def two_views(source: Source, count: int, *, view1: View, view2: View, image_size: int, seed: int,
              mesh: jax.sharding.Mesh, sequence: Sequence[str] = ()
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first `count` images of a run on `source`: rows [N] of it and both views float32 [N, S, S, 3].

    view1, view2: of the run; sequence: see `batches.Inputs`. What cannot be read is replaced as in a run.
    """
    count = min(count, source.num_examples)
    form = batches.choose_form('device', image_size=image_size, source=source)
    inputs = batches.Inputs(form, view1, view2, image_size, seed, count, sequence)
    with inputs.batches(source, mesh) as stream:
        views = jax.jit(inputs.make_prepare(mesh))(next(stream), jnp.int32(0))
    _, rows = epoch_and_index(seed, np.arange(count), source.num_examples)
    return rows, np.asarray(views['view1']), np.asarray(views['view2'])


def squares(source: Source, rows: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Central squares [M, S, S, 3] float32 of the images that can be read, and their places in `rows`."""
    crops, kept = [], []
    for place, row in enumerate(rows):
        image = source.pixels(int(row))
        if image is not None:
            crops.append(host.eval_crop(image, image_size=image_size, proportion=1.0))
            kept.append(place)
    return np.array(crops).reshape(-1, image_size, image_size, 3), np.array(kept, int)


def used_operations(view1: View, view2: View) -> dict[str, tuple[float, float]]:
    """{operation: its probability in view 1 and in view 2} of those that run, in their order."""
    both = {name: (getattr(view1, name).probability, getattr(view2, name).probability) for name in OPS}
    return {name: shares for name, shares in both.items() if any(shares)}


def each_alone(images: np.ndarray, view1: View, view2: View, *, seed: int) -> dict[str, np.ndarray]:
    """{operation: images [N, S, S, 3] after it and no other}, each at probability 1.

    Of an operation whose fields differ between the views, those of the first view that uses it.
    """
    size = images.shape[1]
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(len(images)))

    def one(name):
        operation = getattr(view1 if getattr(view1, name).probability else view2, name)
        view = View(**{name: dataclasses.replace(operation, probability=1.0)})
        return device.over_batch(functools.partial(device.augment, view=view, image_size=size))

    names = list(used_operations(view1, view2))
    made = jax.jit(lambda images, keys: {name: one(name)(images, keys) for name in names})(images, keys)
    return {name: np.asarray(made[name]) for name in names}


def outputs(network: Network, variables: dict, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features h [N, D] and projections z [N, out_dim] of images [N, S, S, 3] in [0, 1]."""
    @jax.jit
    def apply(variables, images):
        output = network_outputs(network, variables, images)
        return output.features, output.projection

    parts = [apply(variables, images[first:first + 128]) for first in range(0, len(images), 128)]
    features, projections = (np.concatenate(column) for column in zip(*parts))
    return features, projections
