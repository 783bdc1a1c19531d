"""Weighted k-nearest-neighbour classification (Wu et al. 2018, sec. 3.4), exact."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import sharding
from simclr_jax.evaluate.features import Features, check_same_preprocessing

# Rows at a time: a device holds a block of the bank, and one [queries, bank] block of similarities.
_QUERIES, _BANK = 1024, 65_536
_ROUND, _ROUND_QUERIES = 512, 64        # padded to multiples: small sets of nearly one size share a program
_SMALL = 8192           # the largest bank that is padded so
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

    The queries [Q, D] are shared out over all devices of all processes, which must all call this with
    the same arguments; the bank goes to each a block at a time.
    """
    if k > len(train.features):
        raise ValueError(f'{k} neighbours were asked for, but there are {len(train.features)} features.')
    mesh = sharding.make_mesh()
    each = -(-len(queries) // mesh.size)                        # rows of a device
    tile = min(_QUERIES, -(-each // _ROUND_QUERIES) * _ROUND_QUERIES) * mesh.size // jax.process_count()
    first_rows = range(jax.process_index() * tile, len(queries) + jax.process_index() * tile,
                       tile * jax.process_count())
    # Found so far, of each tile of this process; the last ones are padded with rows of zeros.
    tiles = [_rows(queries, first, tile) for first in first_rows]
    found = [()] * len(tiles)
    for start in range(0, len(train.features), _BANK):
        block = train.features[start:start + _BANK]
        bank = _prepare_bank(sharding.put_replicated(mesh, block))
        whole = len(bank) == len(block)
        merge = _make_merge(mesh, k, whole)
        for number, rows in enumerate(tiles):
            merged = merge(*sharding.put_batch(mesh, (rows, found[number])), bank, np.int32(len(block)),
                           np.int32(start))
            found[number] = jax.tree.map(_local_rows, merged)
    return tuple(_gather(np.stack(parts), len(queries)) for parts in zip(*found))


@functools.cache
def _make_merge(mesh, k, whole):
    def merge(queries, found, bank, count, start):
        """The k nearest of those found so far, if any, and of the first `count` rows of a block."""
        dots = jnp.matmul(_normalize(queries), bank.T, precision='highest')     # [Q, N]
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
    return jnp.pad(_normalize(block), ((0, -len(block) % multiple), (0, 0)))


def _normalize(features):
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norms, 1e-12)
