"""Weighted k-nearest-neighbour classification (Wu et al. 2018, sec. 3.4), exact."""

import concurrent.futures
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax.runtime import sharding
from simclr_jax.evaluate.features import Features, check_same_preprocessing, unit_rows

# Rows at a time: a device holds a block of the bank, and one [queries, bank] block of similarities.
_QUERIES, _BANK = 1024, 65_536
_ROUND, _ROUND_QUERIES = 512, 64        # padded to multiples: small sets of nearly one size share a program
_SMALL = 8192           # the largest bank that is padded so
_FEW = 64               # rows that a thread takes at a time
_GROUP = 16             # columns that are first represented by their largest


def knn_accuracy(train: Features, test: Features, *, num_classes: int, k: int | Sequence[int],
                 temperature: float) -> float | dict[int, float]:
    """The share of test examples whose neighbours vote for their class; of several k, {k: share}.

    Each test feature finds its k most similar training features by cosine; each votes for its class
    with weight exp(cosine / temperature). k is at most the number of training features.

    Raises:
        ValueError: train and test were preprocessed differently, or k is below 1.
    """
    check_same_preprocessing(train, test)
    several = [k] if isinstance(k, int) else list(k)
    if not several or min(several) < 1:
        raise ValueError(f'k of kNN is {k}: it is 1 or more.')
    similarity, row = nearest_neighbours(train, test.features, k=min(max(several), len(train.labels)))
    weights = np.exp((similarity - 1) / temperature)            # at most 1; the scale cancels
    votes, shares = np.zeros((len(test.labels), num_classes)), {}
    counted = 0
    for each in sorted(set(several)):
        columns = slice(counted, each)
        np.add.at(votes, (np.arange(len(votes))[:, None], train.labels[row[:, columns]]), weights[:, columns])
        counted, shares[each] = each, float((votes.argmax(-1) == test.labels).mean())
    return shares[k] if isinstance(k, int) else {each: shares[each] for each in several}


def nearest_neighbours(train: Features, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 and rows of `train` int32, [Q, k] each, largest first: the k most similar of them.

    The queries [Q, D] are shared out over all processes, which must all call this with the same arguments,
    and over their devices; the bank goes through memory a block at a time. Of rows that are equally similar
    any may be taken, the same ones every time.

    Raises:
        ValueError: k is more than the number of training features.
    """
    if k > len(train.features):
        raise ValueError(f'{k} neighbours were asked for, but there are {len(train.features)} features.')
    # On processors the matrix product of numpy's BLAS is faster than XLA's, and choosing beats its top_k.
    find = _find_by_numpy if jax.default_backend() == 'cpu' else _find_on_devices
    return find(train.features, queries, k)


# ---- on processors -----------------------------------------------------------------------------------


def _find_by_numpy(bank: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    each = -(-len(queries) // jax.process_count())              # rows of a process
    rows = unit_rows(_rows(queries, jax.process_index() * each, each))
    found = np.zeros((each, 0), np.float32), np.zeros((each, 0), np.int32)
    blocks = np.empty((min(_BANK, len(bank)), bank.shape[1]), np.float32)
    dots = np.empty((min(_QUERIES, each), len(blocks)), np.float32)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:     # numpy lets go of the lock
        for start in range(0, len(bank), _BANK):
            block, parts = blocks[:len(bank) - start], []
            list(pool.map(_write_unit_rows, _few(bank[start:start + _BANK]), _few(block)))
            for first in range(0, each, _QUERIES):
                tile = slice(first, first + _QUERIES)
                out = np.matmul(rows[tile], block.T, out=dots[:len(rows[tile]), :len(block)])
                parts += pool.map(functools.partial(_merge, k=k, start=start),
                                  *(_few(array) for array in (out, *(array[tile] for array in found))))
            found = tuple(map(np.concatenate, zip(*parts)))
    return tuple(_gather(part[None], len(queries)) for part in found)


def _write_unit_rows(rows: np.ndarray, to: np.ndarray) -> None:
    to[:] = unit_rows(rows)


def _few(array: np.ndarray) -> list[np.ndarray]:
    """Views of a few rows each: what is made of them stays in a processor's cache."""
    return [array[first:first + _FEW] for first in range(0, len(array), _FEW)]


def _merge(dots: np.ndarray, similarity: np.ndarray, row: np.ndarray, *, k: int, start: int
           ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest, or all, of those found so far and of a block's cosines [q, N] from row `start` on."""
    values, columns = _candidates(dots, min(k, dots.shape[1]))
    similarity = np.concatenate([similarity, values], axis=1)
    row = np.concatenate([row, start + columns], axis=1)
    order = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(row, order, axis=1)


def _candidates(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries of [q, N] and their columns, [q, k or more]: the k largest of each row are among them.

    Columns are taken in groups. k values or more reach the k-th largest of the groups' maxima, and few more
    than k, unless many are equal: then all are searched.
    """
    groups = values.shape[1] // _GROUP
    if groups >= 2 * k:
        maxima = values[:, :groups * _GROUP].reshape(-1, _GROUP, groups).max(1)
        bound = np.partition(maxima, groups - k, axis=1)[:, groups - k]
        chosen = np.flatnonzero(values >= bound[:, None])
        row, column = np.divmod(chosen.astype(np.int32), np.int32(values.shape[1]))
        counts = np.bincount(row, minlength=len(values))
        if len(values) and k <= counts.min() and counts.max() <= _GROUP * k:
            place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            found = np.full((len(values), counts.max()), -np.inf, np.float32)
            columns = np.zeros(found.shape, np.int32)
            found[row, place], columns[row, place] = values[row, column], column
            return found, columns
    columns = np.argpartition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k:].astype(np.int32)
    return np.take_along_axis(values, columns, axis=1), columns


# ---- on accelerators ---------------------------------------------------------------------------------


def _find_on_devices(bank: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    mesh = sharding.make_mesh()
    each = -(-len(queries) // mesh.size)                        # rows of a device
    tile = min(_QUERIES, -(-each // _ROUND_QUERIES) * _ROUND_QUERIES) * mesh.size // jax.process_count()
    first_rows = range(jax.process_index() * tile, len(queries) + jax.process_index() * tile,
                       tile * jax.process_count())
    # Found so far, of each tile of this process; the last ones are padded with rows of zeros.
    tiles = [_rows(queries, first, tile) for first in first_rows]
    found = [()] * len(tiles)
    for start in range(0, len(bank), _BANK):
        block = bank[start:start + _BANK]
        unit = _prepare_bank(sharding.put_replicated(mesh, block))
        whole = len(unit) == len(block)
        merge = _make_merge(mesh, k, whole)
        for number, rows in enumerate(tiles):
            merged = merge(*sharding.put_batch(mesh, (rows, found[number])), unit, np.int32(len(block)),
                           np.int32(start))
            found[number] = jax.tree.map(_local_rows, merged)
    return tuple(_gather(np.stack(parts), len(queries)) for parts in zip(*found))


@functools.cache
def _make_merge(mesh, k, whole):
    def merge(queries, found, bank, count, start):
        """The k nearest of those found so far, if any, and of the first `count` rows of a block."""
        dots = jnp.matmul(unit_rows(queries), bank.T, precision='highest')     # [Q, N]
        nearest, index = largest(dots, min(k, len(bank)), len(bank) if whole else count)
        if not found:
            return nearest, start + index
        nearest = jnp.concatenate([found[0], nearest], axis=1)
        index = jnp.concatenate([found[1], start + index], axis=1)
        nearest, chosen = jax.lax.top_k(nearest, k)
        return nearest, jnp.take_along_axis(index, chosen, axis=1)

    return jax.jit(merge, out_shardings=sharding.batch_sharding(mesh))


def largest(values: jax.Array, k: int, count: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of the first `count` columns of [Q, N]: exact, and faster where k is far below N.

    Equal values come in any order; where k exceeds `count`, -inf fills up. Columns are taken in groups. The
    k groups with the largest maxima hold the k largest values: to each other group there are k values, the
    maxima of those, that are not smaller than any of its own.
    """
    groups = values.shape[1] // _GROUP
    if values.shape[1] % _GROUP or groups < 2 * k:
        return jax.lax.top_k(jnp.where(jnp.arange(values.shape[1]) < count, values, -jnp.inf), k)
    grouped = values.reshape(-1, _GROUP, groups)        # group j: columns j, j + groups, ...
    starts, whole = groups * jnp.arange(_GROUP)[:, None], isinstance(count, int) and count == values.shape[1]
    if not whole:
        grouped = jnp.where(starts + jnp.arange(groups) < count, grouped, -jnp.inf)
    chosen = jax.lax.top_k(grouped.max(1), k)[1]                                # [Q, k]
    columns = (starts + chosen[:, None]).reshape(-1, _GROUP * k)
    candidates = jnp.take_along_axis(values, columns, axis=1, mode='promise_in_bounds')
    if not whole:
        candidates = jnp.where(columns < count, candidates, -jnp.inf)
    found, index = jax.lax.top_k(candidates, k)
    return found, jnp.take_along_axis(columns, index, axis=1)


def _rows(array: np.ndarray, first: int, count: int) -> np.ndarray:
    """Rows first .. first + count, zeros beyond the end."""
    rows = array[first:first + count]
    return np.pad(rows, ((0, count - len(rows)), (0, 0))) if len(rows) < count else rows


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis is shared out."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _gather(tiles: np.ndarray, count: int) -> np.ndarray:
    """Tiles [T, q, k] of every process as [count, k]: the processes' tiles alternate."""
    if jax.process_count() > 1:
        tiles = np.swapaxes(multihost_utils.process_allgather(tiles), 0, 1)     # [T, P, q, k]
    return tiles.reshape(-1, tiles.shape[-1])[:count]


@jax.jit
def _prepare_bank(block):
    """Unit rows, and rows of zeros up to a round number."""
    multiple = _ROUND if len(block) <= _SMALL else _GROUP
    return jnp.pad(unit_rows(block), ((0, -len(block) % multiple), (0, 0)))
