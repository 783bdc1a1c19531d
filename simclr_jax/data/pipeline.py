"""Batches of augmented images as a pure function of (seed, step); nothing of an iterator is saved.

Row r of global batch s stands at position p = s * batch_size + r of an endless stream, of which
`epoch_and_index` tells the example; its views follow from (seed, epoch, index) alone, and so depend on no batch
size, shard count or number of threads. Streamed sources keep another order (see `tfds.StreamedSource`).

Threads fill the rows of a batch: each decodes an image once, as far as its crops need it, outside of
Python's lock. Whole views are finished by a tf.data pipeline behind them; nothing else here needs
tensorflow. An image that cannot be read is noted in `source.skipped`, and the next readable one takes its
place, in a stream the next of its batch.
"""

import collections
import functools
import itertools
import math
import os
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.compiled import crop_resize
from simclr_jax.data.decode import BadImage, EncodedImage
from simclr_jax.data.source import Source, Streamed
from simclr_jax.views import host
from simclr_jax.views.draws import Box, Draws, union
from simclr_jax.views.fields import SmallViews, View
from simclr_jax.views.resize import Resize

_AHEAD = 2      # batches in the making while one is in use
_MORE_THREADS = 2       # than processors: some wait for a disk
_REMOTE_THREADS = 32    # that wait for a store, beside those
_UNIFORM_ROWS = 32      # small images that a thread takes at a time
_ALIGNMENT = 64     # bytes
_TRANSFERS = ('uint8', 'bfloat16', 'float32')
# Images that a thread of the host form finishes at a time, up to a side and beyond it.
_CHUNK_OF_SMALL, _SMALL_SIDE, _CHUNK = 32, 64, 8

Batch = dict[str, np.ndarray]


class _Form(NamedTuple):
    """What a batch holds and how a row comes to be."""

    arrays: dict[str, tuple[tuple[int, ...], Any]]      # name -> shape of a row, dtype
    fill: Callable[[Batch, int, EncodedImage, int, int], None]      # (batch, row, image, epoch, index)
    has_gaps: bool = False      # rows without an image stay zeros


class _Row(NamedTuple):
    """A row of a batch: which example's random numbers, and the examples that may stand there, best first."""

    epoch: int
    index: int
    candidates: Iterable[tuple[int, bytes | None, int]]     # (index, image, label) of a stream; else (index, None, -1)


def train_batches(source: Source, *, seed: int, batch_size: int, form: str, view1: View, view2: View,
                  image_size: int, start_step: int = 0, shard_index: int = 0,
                  shard_count: int = 1, num_threads: int = 0, transfer: str = 'uint8', pad_to: int = 0,
                  small: SmallViews | None = None) -> Iterator[Batch]:
    """Endless batches for two views per image, from step `start_step` on.

    Args:
        source: of `loading.load_source`.
        seed: in [0, 2**31).
        batch_size: global, over all shards; this one yields rows
            [shard_index * b, (shard_index + 1) * b) with b = batch_size // shard_count.
        form: how far the host takes an image: 'views', 'crops' or 'padded', see below.
        view1, view2: what becomes of an image. image_size: S.
        start_step: the number of batches already taken.
        num_threads: that decode; 0 takes a few more than there are processors.
        transfer: 'uint8' (rounded), 'bfloat16' or 'float32', of form 'views'. pad_to: P >= 2 S, of 'padded'.
        small: further views, of form 'crops'.

    Returns:
        Iterator of {'label': int32 [b], -1 for none} and
        'views': 'view1', 'view2': [b, S, S, C], uint8 or else in [0, 1]; 'index': int32 [b].
        'crops': 'crop1', 'crop2': uint8 [b, S, S, C], rounded and clipped, not flipped; 'epoch', 'index':
            int32 [b]; with k small views of side s 'small': uint8 [b, k, s, s, C], likewise.
        'padded': 'image': uint8 [b, P, P, C], the part that holds both crops, zeros beyond it; 'box1',
            'box2': int32 [b, 4], the crops in it as (top, left, height, width); 'epoch', 'index'. Where that
            part exceeds P, both crops are made here and lie side by side, S x S each.

    Raises:
        ValueError: the batch is larger than the data set or not divisible by shard_count, an argument is out
            of range, or, from `next`, more than source.max_bad_share of the images cannot be read.
    """
    check_form(form, image_size=image_size, transfer=transfer, pad_to=pad_to)
    make_form = {'views': _float_crops, 'crops': functools.partial(_crops, small=small),
                 'padded': functools.partial(_padded, pad_to=pad_to)}[form]
    rows = make_form({'view1': view1, 'view2': view2}, seed, (image_size, image_size, source.rules.channels))
    chunk = 0 if form != 'views' else _CHUNK_OF_SMALL if image_size <= _SMALL_SIDE else _CHUNK
    batches = _endless(source, rows, seed=seed, batch_size=batch_size, start_step=start_step,
                       shard_index=shard_index, shard_count=shard_count, num_threads=num_threads, chunk=chunk)
    if form != 'views':
        return batches
    finish = {'view1': host.make_finish(view1, transfer), 'view2': host.make_finish(view2, transfer)}
    return host.finished(batches, finish, batch_size // shard_count, num_threads or _num_processors())


def check_form(form: str, *, image_size: int, transfer: str, pad_to: int) -> None:
    """ValueError for arguments of `train_batches` that will not do."""
    if form not in ('views', 'crops', 'padded'):
        raise ValueError(f"The form of a batch is 'views', 'crops' or 'padded'; got {form!r}.")
    if transfer not in _TRANSFERS:
        raise ValueError(f'data.transfer is {transfer!r}; it takes {", ".join(map(repr, _TRANSFERS))}.')
    if form == 'padded' and pad_to < 2 * image_size:
        raise ValueError(f'data.pad_to is {pad_to}; it must be at least {2 * image_size}, twice the image '
                         'size: it holds two crops side by side.')


def probe_batches(source: Source, *, seed: int, batch_size: int, image_size: int, view: View,
                  start_step: int = 0, shard_index: int = 0, shard_count: int = 1, num_threads: int = 0
                  ) -> Iterator[Batch]:
    """Endless batches of {'image': float32 [b, S, S, C], 'label': int32 [b]}, cropped and flipped.

    For linear evaluation and fine-tuning; arguments and errors are those of `train_batches`.
    view: a crop and a flip.
    """
    def fill(batch, row, image, epoch, index):
        draws, boxes, region = _decode_boxes((view,), seed, image, epoch, index)
        crop = host.crop_view(region, boxes[0], draws[0], view, out=batch['image'][row])
        np.clip(crop, 0, 1, out=crop)

    form = _Form({'image': ((image_size, image_size, source.rules.channels), np.float32)}, fill)
    return _endless(source, form, seed=seed, batch_size=batch_size, start_step=start_step,
                    shard_index=shard_index, shard_count=shard_count, num_threads=num_threads)


def eval_batches(source: Source, *, batch_size: int, image_size: int, crop_proportion: float,
                 resize: Resize = Resize(), shard_index: int = 0, shard_count: int = 1,
                 num_threads: int = 0) -> Iterator[Batch]:
    """One pass over every example in order, through the central crop.

    Args:
        source, image_size, shard_index, shard_count, num_threads: as in `train_batches`.
        batch_size: local, b.
        crop_proportion: side of the crop over the image's shorter side.
        resize: other ways than the official one, see `views.resize`.

    Returns:
        Iterator of {'image': float32 [b, S, S, C], 'label': int32 [b], 'valid': bool [b]}, equally many for
        every shard. 'valid' is False and the label -1 for padding and for files that cannot be read.
    """
    def fill(batch, row, image, epoch, index):
        box, proportion = (0, 0, image.height, image.width), crop_proportion
        if resize == Resize():      # no more is decoded than counts
            box, proportion = host.eval_box(image.height, image.width, crop_proportion), 1.0
        batch['image'][row] = host.eval_crop(
            image.region(box), image_size=image_size, proportion=proportion, resize=resize)
        batch['valid'][row] = True

    host.eval_box(1, 1, crop_proportion)    # is it in range?
    square = (image_size, image_size, source.rules.channels)
    form = _Form({'image': (square, np.float32), 'valid': ((), bool)}, fill, has_gaps=True)
    num_batches = -(-source.num_examples // (batch_size * shard_count))
    if isinstance(source, Streamed):
        examples = source.ordered(shard_index=shard_index, shard_count=shard_count, is_decoded=False)
        found = _streamed_rows(examples.batch(batch_size), has_stand_ins=False)
    else:
        indices = range(source.num_examples)
        found = ([_Row(0, 0, [(index, None, -1)]) for index in indices[first:first + batch_size]]
                 for first in itertools.count(shard_index * batch_size, shard_count * batch_size))
    batches = itertools.islice(itertools.chain(found, itertools.repeat([])), num_batches)
    return _filled(source, batches, form, batch_size, num_threads)


# ---- forms -------------------------------------------------------------------------------------------


def _float_crops(views: dict[str, View], seed: int, square: tuple[int, int, int]) -> _Form:
    """What `host.finished` makes views of."""
    has_noise = {name: view.noise.probability > 0 for name, view in views.items()}

    def fill(batch, row, image, epoch, index):
        draws, boxes, region = _decode_boxes(views.values(), seed, image, epoch, index)
        for (name, view), box, draw in zip(views.items(), boxes, draws):
            host.crop_view(region, box, draw, view, out=batch[f'{name}/crop'][row])
            batch[f'{name}/choices'][row] = host.choices(draw, view, square[0])
            if has_noise[name]:
                batch[f'{name}/noise'][row] = draw.normals(square)
        batch['index'][row] = index

    shapes = {f'{name}/{part}': shape for name in views for part, shape in (
        ('crop', square), ('choices', (host.NUM_CHOICES,)), ('noise', square if has_noise[name] else ()))}
    return _Form({name: (shape, np.float32) for name, shape in shapes.items()} | {'index': ((), np.int32)}, fill)


def _crops(views: dict[str, View], seed: int, square: tuple[int, int, int], *, small: SmallViews | None) -> _Form:
    further, size = ([small.view] * small.count, small.size) if small else ([], 0)

    def fill(batch, row, image, epoch, index):
        _, boxes, region = _decode_boxes([*views.values(), *further], seed, image, epoch, index)
        for name, box, view in zip(('crop1', 'crop2'), boxes, views.values()):
            crop_resize(region, box, square[0], out=batch[name][row], resize=view.crop.resized)
        for place, (box, view) in enumerate(zip(boxes[len(views):], further)):
            crop_resize(region, box, size, out=batch['small'][row, place], resize=view.crop.resized)
        batch['epoch'][row], batch['index'][row] = epoch, index

    crop, number = (square, np.uint8), ((), np.int32)
    more = {'small': ((small.count, small.size, small.size, square[2]), np.uint8)} if small else {}
    return _Form({'crop1': crop, 'crop2': crop, 'epoch': number, 'index': number} | more, fill)


def _padded(views: dict[str, View], seed: int, square: tuple[int, int, int], *, pad_to: int) -> _Form:
    def fill(batch, row, image, epoch, index):
        _, boxes, region = _decode_boxes(views.values(), seed, image, epoch, index)
        size, (height, width) = square[0], region.shape[:2]
        batch['image'][row] = 0
        if max(height, width) <= pad_to:
            batch['image'][row, :height, :width] = region
        else:
            for slot, (box, view) in enumerate(zip(boxes, views.values())):
                left = slot * size
                batch['image'][row, :size, left:left + size] = crop_resize(
                    region, box, size, out=np.empty(square, np.uint8), resize=view.crop.resized)
                boxes[slot] = (0, left, size, size)
        batch['box1'][row], batch['box2'][row] = boxes
        batch['epoch'][row], batch['index'][row] = epoch, index

    box, number = ((4,), np.int32), ((), np.int32)
    return _Form({'image': ((pad_to, pad_to, square[2]), np.uint8), 'box1': box, 'box2': box, 'epoch': number,
                  'index': number}, fill)


def _decode_boxes(views: Collection[View], seed: int, image: EncodedImage, epoch: int, index: int
                  ) -> tuple[list[Draws], list[Box], np.ndarray]:
    """What is drawn for each view, the part of the image that holds all their crops, and the crops in it."""
    draws = [Draws(seed, epoch, index, slot) for slot, _ in enumerate(views)]
    boxes = [draw.box(image.height, image.width, view.crop) for draw, view in zip(draws, views)]
    top, left, height, width = union(boxes)
    region = image.region((top, left, height, width))
    return draws, [(y - top, x - left, h, w) for y, x, h, w in boxes], region


# ---- order and rows --------------------------------------------------------------------------------------


def epoch_and_index(seed: int, positions: np.ndarray, num_examples: int
                    ) -> tuple[np.ndarray, np.ndarray]:
    """Maps positions of the stream to (epoch, example): a new permutation in every epoch.

    Args:
        seed: 0 or greater.
        positions: int64 [n], position p = step * batch size + row; epoch, r = divmod(p, N).
        num_examples: N.

    Returns:
        epoch int64 [n], and index int64 [n], element r of the epoch's permutation of N.
    """
    epoch, rank = np.divmod(np.asarray(positions, np.int64), num_examples)
    index = np.empty_like(rank)
    for value in np.unique(epoch):
        rows = epoch == value
        index[rows] = permutation(seed, int(value), num_examples)[rank[rows]]
    return epoch, index


def order(seed: int, batch_size: int, num_examples: int, start_step: int = 0, *, shard_index: int = 0,
          shard_count: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`epoch_and_index` of this shard's rows of one global batch after the other, without end."""
    rows = np.arange(batch_size // shard_count) + shard_index * (batch_size // shard_count)
    return (epoch_and_index(seed, step * batch_size + rows, num_examples) for step in itertools.count(start_step))


@functools.lru_cache(maxsize=4)  # A batch seldom spans more than two epochs.
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch: the examples 0 .. N-1 as int64 [N], read-only."""
    philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    shuffled = np.random.Generator(philox).permutation(num_examples)
    shuffled.flags.writeable = False
    return shuffled


def check_batch_size(source: Source, batch_size: int, shard_count: int = 1, *, field: str = 'batch_size'
                     ) -> None:
    """ValueError, which names `field`, unless a training batch fits the data and the shards can share it."""
    if batch_size > source.num_examples:
        raise ValueError(f'{field} is {batch_size}, but {source.name}, split {source.split}, '
                         f'has only {source.num_examples} images: choose a smaller batch.')
    if batch_size % shard_count:
        raise ValueError(f'{field} is {batch_size}, which {shard_count} processes cannot share '
                         'evenly: choose a multiple.')


def _endless(source: Source, form: _Form, *, seed: int, batch_size: int, start_step: int, shard_index: int,
             shard_count: int, num_threads: int, chunk: int = 0) -> Iterator[Batch]:
    """Batches of this shard's rows, or chunks of so many rows regardless of batches."""
    check_batch_size(source, batch_size, shard_count)
    local, shard = batch_size // shard_count, {'shard_index': shard_index, 'shard_count': shard_count}
    if isinstance(source, Streamed):
        examples = source.stream(seed=seed, start=start_step * local, **shard)
        batches = _streamed_rows(examples.batch(local))
    else:
        batches = ([_Row(epoch, index, zip(itertools.chain(range(index, source.num_examples), range(index)),
                                           itertools.repeat(None), itertools.repeat(-1)))
                    for epoch, index in zip(epochs.tolist(), indices.tolist())]
                   for epochs, indices in order(seed, batch_size, source.num_examples, start_step, **shard))
    if chunk:
        rows = itertools.chain.from_iterable(batches)
        batches = (list(itertools.islice(rows, chunk)) for _ in itertools.count())
    return _filled(source, batches, form, chunk or local, num_threads)


def _streamed_rows(examples: Any, *, has_stand_ins: bool = True) -> Iterator[list[_Row]]:
    """Rows of a tf.data set of batches of encoded images, for which the next of their batch may stand in."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    for batch in examples.prefetch(1).with_options(options).as_numpy_iterator():
        candidates = list(zip(*(batch[key].tolist() for key in ('index', 'image', 'label'))))
        yield [_Row(epoch, candidates[row][0], candidates[row:] + candidates[:row] if has_stand_ins
                    else candidates[row:row + 1]) for row, epoch in enumerate(batch['epoch'].tolist())]


# ---- threads -----------------------------------------------------------------------------------------


def _filled(source: Source, batches: Iterable[list[_Row]], form: _Form, batch_size: int, num_threads: int
            ) -> Iterator[Batch]:
    """Batches of `batch_size` rows, made by threads a few batches ahead; `next` raises what they raised."""
    source.check_bad_share()
    pool = futures.ThreadPoolExecutor(num_threads or _num_processors() + (
        _REMOTE_THREADS if source.is_remote else _MORE_THREADS))
    size = _UNIFORM_ROWS if source.uniform else 1
    in_making, memory = collections.deque(), Memory()
    try:
        for rows in itertools.chain(batches, [None] * _AHEAD):      # at last those that are in the making
            if rows is not None:
                batch = {name: memory.array((batch_size, *shape), dtype)
                         for name, (shape, dtype) in form.arrays.items()}
                if form.has_gaps:
                    for array in batch.values():
                        array.fill(0)
                batch['label'] = np.full(batch_size, -1, np.int32)
                in_making.append((batch, [
                    pool.submit(_fill_rows, source, rows[first:first + size], form, batch, first)
                    for first in range(0, len(rows), size)]))
            if in_making and (rows is None or len(in_making) > _AHEAD):
                for task in in_making[0][1]:
                    task.result()
                yield in_making.popleft()[0]
    finally:
        if not sys.is_finalizing():     # then Python has ended the threads
            pool.shutdown(wait=False, cancel_futures=True)


def _fill_rows(source: Source, rows: list[_Row], form: _Form, batch: Batch, first: int) -> None:
    """Fills the rows of a batch from `first` on, each with the first of its candidates that can be read."""
    for number, row in enumerate(rows, first):
        for index, data, label in row.candidates:
            if index in source.unreadable:
                continue
            try:
                image = EncodedImage(source.load(index) if data is None else data, source.rules)
                form.fill(batch, number, image, row.epoch, row.index)
            except (BadImage, OSError) as error:
                source.skip(index, error)
                source.check_bad_share()
                continue
            batch['label'][number] = source.labels[index] if data is None else label
            break
        else:
            if not form.has_gaps:
                raise ValueError(f"No image of '{source.name}', split {source.split}, can be read in place of "
                                 f'{source.name_of(row.index)}, which is unreadable.')


def _num_processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class Memory:
    """Makes arrays in the memory of arrays that are gone: fresh memory costs a fault of every page.

    They begin at multiples of 64 bytes, so that TensorFlow and JAX take them without a copy.
    """

    def __init__(self):
        self._free = collections.defaultdict(list)      # by size

    def array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array that holds anything; from one thread."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free[size]
        # No array below: numpy would let parts of an array outlive it and hold that instead.
        memory = free.pop() if free else bytearray(size + _ALIGNMENT)
        offset = -np.frombuffer(memory, np.uint8).ctypes.data % _ALIGNMENT
        array = np.ndarray(shape, dtype, memory, offset)
        weakref.finalize(array, free.append, memory).atexit = False
        return array
