"""The way of a batch from the host to the two views that a method sees.

A batch arrives in one of four forms, and `Inputs.make_prepare` says what the training step does with it:

    views    both views, made on the host
    crops    a crop for each view, resized and uint8; all that follows a crop happens on the device
    padded   the part of the image that holds both crops, uint8, and where they lie in it: crops too happen
             on the device
    memory   the whole data set, uint8, which lies on every device; the step takes its rows itself

Every view is a function of (seed, epoch, example) alone.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.data import pipeline
from simclr_jax.data.source import Source
from simclr_jax.runtime import sharding
from simclr_jax.views import device, host
from simclr_jax.views.fields import SmallViews, View
from simclr_jax.views.resize import Resize

_MEMORY_BYTES = 4 << 30         # of every device, at most, for a data set that lies there
_VIEWS = 0x51EB         # folded into the seed's key: what the method draws has the key itself


def choose_form(augment_on: str, *, image_size: int, pad_to: int = 0, transfer: str = 'uint8',
                source: Source | None = None) -> str:
    """The form of the batches of `source`; None stands for one that is read from files.

    Args:
        augment_on: 'host', or 'device': all that can be done there.
        pad_to: side of a padded image; 0 leaves the crops to the host.
        transfer: see `data.pipeline.train_batches`.

    Raises:
        ValueError: an argument will not do.
    """
    if augment_on not in ('host', 'device'):
        raise ValueError(f"data.augment_on is {augment_on!r}: it takes 'host' or 'device'.")
    if augment_on == 'host':
        host.check_tensorflow()
    form = 'views' if augment_on == 'host' else 'padded' if pad_to else 'crops'
    pipeline.check_form(form, image_size=image_size, transfer=transfer, pad_to=pad_to)
    if form != 'views' and source is not None and source.uniform and source.images.nbytes <= _MEMORY_BYTES:
        return 'memory'
    return form


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How the batches of a run come to be, and what its step makes of them.

    Attributes:
        form: of a batch, see above.
        view1, view2: what becomes of an image.
        image_size: S, side of the views.
        seed: of the order and of the views.
        batch_size: global, B.
        sequence: if there is one, view 2 is made of view 1 by these operations of `view2`, in this order
            (see `device.augment_in_sequence`): of the same crop, therefore.
        transfer, pad_to, num_threads: see `data.pipeline.train_batches`.
        channels: C, of an image.
        small: further views of each image; None for none. Forms 'crops' and 'memory' can have them.

    Raises:
        ValueError: a sequence, or functions of the user's, for views that are made on the host; or both; small views
            with a sequence, or of a form that cannot have them.
    """

    form: str
    view1: View
    view2: View
    image_size: int
    seed: int
    batch_size: int
    sequence: Sequence[str] = ()
    transfer: str = 'uint8'
    pad_to: int = 0
    num_threads: int = 0
    channels: int = 3
    small: SmallViews | None = None

    def __post_init__(self):
        if self.sequence and self.form == 'views':
            raise ValueError("augment.sequence needs data.augment_on='device'.")
        if self.form == 'views':
            for view in (self.view1, self.view2):
                host.check_view(view)
        if self.small and (self.sequence or self.form not in ('crops', 'memory')):
            raise ValueError("augment.small_views needs data.augment_on='device', data.pad_to=0 and no "
                             'augment.sequence.')
        if self.sequence and self.view2.extra:
            raise ValueError('augment.sequence already lists every operation of view 2: it cannot be combined '
                             'with augment.extra.')

    def batches(self, source: Source, mesh: jax.sharding.Mesh, start_step: int = 0) -> 'InMemory | Prefetch':
        """Endless global batches of `source` on the devices of `mesh`, from step `start_step` on.

        A context manager: on leaving it, threads end. Errors are those of `data.pipeline.train_batches`.
        """
        if self.form == 'memory':
            pipeline.check_batch_size(source, self.batch_size, jax.process_count())
            return InMemory(source, mesh, seed=self.seed, batch_size=self.batch_size, start_step=start_step)
        batches = pipeline.train_batches(
            source, seed=self.seed, batch_size=self.batch_size, form=self.form, view1=self.view1,
            view2=self.view2, image_size=self.image_size, start_step=start_step, num_threads=self.num_threads,
            transfer=self.transfer, pad_to=self.pad_to, small=self.small, **sharding.shard())
        return Prefetch(batches, functools.partial(sharding.put_batch, mesh))

    def abstract_batch(self, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of any form but 'memory', as shapes: to compile for."""
        def rows(shape, dtype):
            return jax.ShapeDtypeStruct((self.batch_size, *shape), dtype,
                                        sharding=sharding.batch_sharding(mesh))

        square, padded = ((*[side] * 2, self.channels) for side in (self.image_size, self.pad_to))
        position = {'epoch': rows((), jnp.int32), 'index': rows((), jnp.int32)}
        view, crop = rows(square, jnp.dtype(self.transfer)), rows(square, jnp.uint8)
        box = rows((4,), jnp.int32)
        small = self.small and {'small': rows((self.small.count, *[self.small.size] * 2, self.channels), jnp.uint8)}
        return {'label': rows((), jnp.int32)} | {
            'views': {'view1': view, 'view2': view, 'index': rows((), jnp.int32)},
            'crops': {'crop1': crop, 'crop2': crop} | position | (small or {}),
            'padded': {'image': rows(padded, jnp.uint8), 'box1': box, 'box2': box} | position}[self.form]

    def make_prepare(self, mesh: jax.sharding.Mesh) -> Callable[[dict, jax.Array], dict]:
        """(batch, step) -> {'view1', 'view2': float32 [B, S, S, C] in [0, 1], 'label', 'index': int32 [B]}.

        'index' is the number of an image in the data set; views that were made elsewhere may lack it. The k small
        views, of side s, are 'small': float32 [B, k, s, s, C].

        For the training step to call: pure, and sharded over `mesh` as the batch is.
        """
        resized = {'image_size': self.image_size}
        lone_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'

        def from_views(batch, step):
            del step
            return batch | {name: batch[name].astype(jnp.float32) / (255.0 if batch[name].dtype == jnp.uint8 else 1.0)
                            for name in ('view1', 'view2')}

        def from_crops(batch, step):
            del step
            crops = jnp.stack([batch['crop1'], batch['crop2']], axis=1)         # [B, 2, S, S, C]
            small = self._small(device.augment_crop, (batch['small'],), batch, lone_cpu) if self.small else {}
            return self._both(device.augment_crop, (crops,), batch, lone_cpu) | small

        def from_padded(batch, step):
            del step
            boxes = jnp.stack([batch['box1'], batch['box2']], axis=1)           # [B, 2, 4]
            images = jnp.stack([batch['image']] * 2, axis=1)                    # [B, 2, P, P, C]
            return self._both(functools.partial(device.augment_box, **resized), (images, boxes), batch, lone_cpu)

        def from_memory(data, step):
            rows = data['first'] + (step - data['base']) * self.batch_size + jnp.arange(self.batch_size)
            rows = jax.lax.with_sharding_constraint(rows, sharding.batch_sharding(mesh))
            index = data['order'][rows]
            batch = {'label': data['labels'][index], 'index': index,
                     'epoch': data['epoch'] + (rows >= len(data['images']))}
            images = data['images'][index]                                      # [B, H, W, C]
            views = self._both(functools.partial(device.augment, **resized), (jnp.stack([images] * 2, axis=1),),
                               batch, lone_cpu)
            if self.small:
                views |= self._small(functools.partial(device.augment, image_size=self.small.size),
                                     (jnp.stack([images] * self.small.count, axis=1),), batch, lone_cpu)
            return views

        return {'views': from_views, 'crops': from_crops, 'padded': from_padded,
                'memory': from_memory}[self.form]

    def _both(self, function: Callable, arguments: tuple[jax.Array, ...], batch: dict, lone_cpu: bool
              ) -> dict[str, jax.Array]:
        """The two views by function(*one view's arguments, key, view=view), see `device.both_views`."""
        keys = self._keys(batch, jnp.arange(2))
        if not self.sequence:
            view1, view2 = device.both_views(function, (self.view1, self.view2), *arguments, keys,
                                             lone_cpu=lone_cpu)
        else:
            first = device.over_batch(functools.partial(function, view=self.view1), lone_cpu=lone_cpu)
            then = device.over_batch(functools.partial(device.augment_in_sequence, view=self.view2,
                                                       sequence=self.sequence), lone_cpu=lone_cpu)
            view1 = first(*(argument[:, 0] for argument in arguments), keys[:, 0])
            view2 = then(view1, keys[:, 1])
        return {'view1': view1, 'view2': view2, 'label': batch['label'], 'index': batch['index']}

    def _small(self, function: Callable, arguments: tuple[jax.Array, ...], batch: dict, lone_cpu: bool
               ) -> dict[str, jax.Array]:
        """The small views by function(*one view's arguments, key, view=view); arguments [B, k, ...]."""
        assert self.small
        keys = self._keys(batch, 2 + jnp.arange(self.small.count))
        made = device.over_batch(functools.partial(function, view=self.small.view), lone_cpu=lone_cpu)
        return {'small': made(*arguments, keys)}

    def _keys(self, batch: dict, slots: jax.Array) -> jax.Array:
        """Of the views `slots` [k] of each image: keys [B, k]."""
        fold_in, of_one = jax.random.fold_in, (None, 0)
        epochs = jax.vmap(fold_in, of_one)(fold_in(jax.random.key(self.seed), _VIEWS), batch['epoch'])
        return jax.vmap(jax.vmap(fold_in, of_one), (0, None))(jax.vmap(fold_in)(epochs, batch['index']), slots)


# ---- batches on the devices --------------------------------------------------------------------------


class InMemory:
    """The data set on every device, and the order of the present and the next epoch: nothing else per step.

    Elements: 'images' uint8 [N, H, W, C], 'labels' int32 [N], 'order' int32 [2 N], and the scalars 'epoch'
    that the order begins with, 'base', a step, and 'first', the place in the order of that step's first row.
    What changes is replaced when an epoch begins, and is the same array until then.
    """

    waited = 0.0        # seconds, see Prefetch

    def __init__(self, source: Source, mesh: jax.sharding.Mesh, *, seed: int, batch_size: int,
                 start_step: int):
        self._mesh, self._seed, self._batch_size, self._step = mesh, seed, batch_size, start_step
        self._num_examples = source.num_examples
        self._data = sharding.put_replicated(mesh, {
            'images': np.ascontiguousarray(source.images), 'labels': source.labels.astype(np.int32)})
        self._epoch = None

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        epoch, first = divmod(self._step * self._batch_size, self._num_examples)
        if epoch != self._epoch:
            orders = [pipeline.permutation(self._seed, e, self._num_examples) for e in (epoch, epoch + 1)]
            self._data |= sharding.put_replicated(self._mesh, {
                'order': np.concatenate(orders).astype(np.int32), 'epoch': np.int32(epoch),
                'base': np.int32(self._step), 'first': np.int32(first)})
            self._epoch = epoch
        self._step += 1
        return dict(self._data)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


class Prefetch:
    """Draws batches and puts them on the devices in a thread of its own, `ahead` of them at most.

    So the host's work and the transfer overlap with what the devices compute. `waited` adds up the seconds
    for which `next` had to wait: where they are much of a step's time, the input is what limits it. An error
    of the batches is raised by `next`.
    """

    def __init__(self, batches: Iterator, put: Callable[[Any], Any], ahead: int = 3):
        self.waited = 0.0
        self._thread, self._batches = futures.ThreadPoolExecutor(1), map(put, batches)
        self._drawn = collections.deque(self._thread.submit(next, self._batches) for _ in range(ahead))

    def __iter__(self):
        return self

    def __next__(self) -> Any:
        started = time.perf_counter()
        try:
            return self._drawn.popleft().result()
        finally:
            self._drawn.append(self._thread.submit(next, self._batches))
            self.waited += time.perf_counter() - started

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._thread.shutdown(wait=False, cancel_futures=True)
        futures.wait([batch for batch in self._drawn if batch.running()], timeout=5.0)


# ---- evaluation --------------------------------------------------------------------------------------


def eval_batches(source: Source, *, batch_size: int, **crop) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example: {'image', 'label': int32 [b], 'valid': bool [b]}, this process's rows.

    'image' is uint8 [b, H, W, C] of a source in memory, else the central crop, float32 [b, S, S, C]:
    `centre_crops` makes the crops of both. Arguments as `data.pipeline.eval_batches`.
    """
    options = {'batch_size': batch_size, **sharding.shard()}
    return eval_rows(source, **options) if source.uniform else pipeline.eval_batches(source, **options, **crop)


@functools.partial(jax.jit, static_argnames=('image_size', 'proportion', 'resize'))
def centre_crops(images: jax.Array, *, image_size: int, proportion: float,
                 resize: Resize = Resize()) -> jax.Array:
    """Images of `eval_batches` as float32 [B, S, S, C] in [0, 1]."""
    if images.dtype != jnp.uint8:
        return images
    return device.over_batch(functools.partial(
        device.eval_crop, image_size=image_size, proportion=proportion, resize=resize))(images)


def probe_batches(source: Source, *, seed: int, batch_size: int, **crop) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches for linear evaluation and fine-tuning; `crops_and_flips` makes their images.

    Arguments and errors as `data.pipeline.probe_batches`, the rows of this process.
    """
    options = {'seed': seed, 'batch_size': batch_size, **sharding.shard()}
    return train_rows(source, **options) if source.uniform else pipeline.probe_batches(source, **options, **crop)


def make_crops_and_flips(*, seed: int, image_size: int, view: View) -> Callable[[dict], jax.Array]:
    """A batch of `probe_batches` -> float32 [B, S, S, C] in [0, 1], cropped and flipped at random."""
    def one(image, epoch, index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), index)
        return device.augment(image, key, view, image_size=image_size)

    @jax.jit
    def crops_and_flips(batch):
        if batch['image'].dtype != jnp.uint8:
            return batch['image']
        return device.over_batch(one)(batch['image'], batch['epoch'], batch['index'])

    return crops_and_flips


def train_rows(source: Source, *, seed: int, batch_size: int, start_step: int = 0, shard_index: int = 0,
               shard_count: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of a source in memory: {'image': uint8 [b, H, W, C], 'label', 'epoch', 'index': int32 [b]}.

    Arguments, order and errors are those of `data.pipeline.train_batches`.
    """
    pipeline.check_batch_size(source, batch_size, shard_count)
    for epoch, index in pipeline.order(seed, batch_size, source.num_examples, start_step, shard_index=shard_index,
                                       shard_count=shard_count):
        yield {'image': source.images[index], 'label': source.labels[index],
               'epoch': epoch.astype(np.int32), 'index': index.astype(np.int32)}


def eval_rows(source: Source, *, batch_size: int, shard_index: int = 0, shard_count: int = 1
              ) -> Iterator[dict[str, np.ndarray]]:
    """One pass over every example of a source in memory, in order.

    Batches of {'image': uint8 [b, H, W, C], 'label': int32 [b], 'valid': bool [b]}.
    batch_size: local, b. Equally many batches for every shard: 'valid' is False for padding.
    """
    for first in range(0, source.num_examples, batch_size * shard_count):
        rows = first + shard_index * batch_size + np.arange(batch_size)
        valid = rows < source.num_examples
        index = np.where(valid, rows, 0)
        yield {'image': source.images[index], 'label': np.where(valid, source.labels[index], -1),
               'valid': valid}
