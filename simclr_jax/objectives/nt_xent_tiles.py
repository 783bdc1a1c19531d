"""NT-Xent and its gradient in tiles of the similarity matrix, which is never whole in memory.

The 2N projections lie as image 0 view 1, image 0 view 2, image 1 view 1, ..., so that the positive of
row i is row i ^ 1. The forward pass visits the similarities s_ik = <z_i, z_k> / temperature tile by
tile and keeps, for every anchor, the largest of those with its negatives, the sum of exponentials
under it, and their weighted sum: from these come the loss, the accuracy and the entropy. The gradient
computes the tiles again. With lse_i the log of the denominator of anchor i, p its positive and q_i the
share of its negatives in its softmax,

    dz_i = (sum_{k != i, p} (exp(s_ik - lse_i) + exp(s_ik - lse_k)) z_k - (q_i + q_p) z_p)
           / (temperature * 2N),

where the second exponential is row i in the role of a candidate. The positive stands outside of the
sum, as -q = exp(s_ip - lse_i) - 1, or nothing would be left of the digits where q is small. The matrix
is symmetric, so a device that knows all projections and all 2N log-sum-exps needs nothing else for the
gradient of its own rows; and a device that is alone visits the tiles on and above the diagonal only. A
log-sum-exp is kept as (largest, total): added up in one float32, it would lose what similarities far
from 0 share. For the same reason every s_ik is less by |m|^2 / temperature, m the mean of all projections,
which leaves the softmax as it is: where projections lie close together, differences keep more digits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE_IMAGES = 512  # [1024, 1024] similarities, 4 MiB: near a core's cache, large enough for matmuls
GPU_TILE_IMAGES = 2048  # [4096, 4096], 64 MiB: a GPU takes some microseconds to launch each of a tile's kernels
LARGE = 16384  # projections; beyond, tiles of twice the side: faster, and small beside the projections
MASKED = -1e37  # a similarity that does not count; finite, since 0 * -inf is not a number
NEAR = 60.0  # exp of anything this close to 0 is exact in float32, and so is its quotient by another


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def mean_over_anchors(z, temperature, axes, decoupled, tile):
    """Loss, accuracy and entropy, three scalars, of the projections z [2n, D] that each device holds."""
    return _forward(z, temperature, axes, decoupled, tile)[0]


@mean_over_anchors.defjvp
def _mean_over_anchors_jvp(axes, decoupled, tile, primals, tangents):
    # The gradient is computed on the way forward and multiplied by what arrives: nothing but it is kept, and
    # it can be differentiated again.
    z, temperature = primals
    outputs, residuals = _forward(z, temperature, axes, decoupled, tile)
    dz, dtemperature = _gradient(z, temperature, *residuals, axes, decoupled, tile)
    tangent = jnp.sum(dz * tangents[0])
    if axes:
        tangent = lax.psum(tangent, axes)
    zero = jnp.zeros_like(tangent)  # the metrics have none
    return outputs, (tangent + dtemperature * tangents[1], zero, zero)


def _forward(z, temperature, axes, decoupled, tile):
    everyone = lax.all_gather(z, axes, tiled=True) if axes else z  # [2N, D]
    negatives, positive = _sweep_forward(_grid(z, everyone, axes, tile), temperature)  # [2n] each
    largest, total = negatives.largest, jnp.where(negatives.total > 0, negatives.total, 1)  # 0: one image
    expected = negatives.weighted / total  # [2n], of s - largest under the softmax of the negatives
    lead = largest - positive  # [2n]
    gap = lead + jnp.log(total)  # [2n], of the log-sum-exp of the negatives and the positive
    if decoupled:
        loss, share, binary_entropy, lse = gap, jnp.ones_like(gap), 0.0, (largest, total)
    else:
        loss, share = jax.nn.softplus(gap), jax.nn.sigmoid(gap)  # [2n], share of the negatives
        binary_entropy = (1 - share) * loss + share * jax.nn.softplus(-gap)
        top = jnp.maximum(largest, positive)
        lse = top, total * jnp.exp(largest - top) + jnp.exp(positive - top)
    anchors = jnp.stack([loss, (lead < 0).astype(jnp.float32),
                         binary_entropy + share * (jnp.log(total) - expected),
                         share * (lead + expected)])  # [4, 2n]
    means = lax.pmean(anchors.mean(axis=1), axes) if axes else anchors.mean(axis=1)
    loss, accuracy, entropy, surplus = means
    return (loss, accuracy, entropy), (everyone, jnp.stack(lse, axis=1), share, surplus)


def _gradient(z, temperature, everyone, lse, share, surplus, axes, decoupled, tile):
    """Of the loss, in z [2n, D] and in the temperature."""
    all_lse = lax.all_gather(lse, axes, tiled=True) if axes else lse  # [2N, 2]
    repulsion = _sweep_backward(_grid(z, everyone, axes, tile), lse, all_lse, temperature)  # [2n, D]
    pairs = z.reshape(-1, 2, z.shape[1])[:, ::-1] * share.reshape(-1, 2).sum(axis=1)[:, None, None]
    attraction = pairs.reshape(z.shape)  # [2n, D], (q_i + q_p) z_p
    # d loss / d temperature = -(sum_k p_ik s_ik - positive) / temperature, in the mean.
    return (repulsion - attraction) / (temperature * len(everyone)), -surplus / temperature


# ---------------------------------------------------------------------------------------------------
# Tiles


class _Grid(NamedTuple):
    """The similarities [2n, 2N] of a device's rows with all columns, as r x c tiles of [R, C].

    The last tile of a side may be ragged: it is filled up with zero rows, whose columns never count.
    """

    rows: jax.Array  # [r, R, D]
    columns: jax.Array  # [c, C, D]
    centre: jax.Array  # [D], the mean of all columns
    row_index: jax.Array  # [r, R], the place of each row among all 2N
    column_index: jax.Array  # [c, C]
    height: int  # 2n
    width: int  # 2N

    def sweep(self, visit, carry):
        """carry, _ = visit(carry, (a, b), is_diagonal) for tile (a, b) after tile, in one order for all devices.

        Only diagonal tiles can hold a similarity of an image with itself. Tiles that are not stand
        for their mirror image too. Among several devices the tiles of rows and of columns need not
        lie at the same places, and any tile may be on the diagonal.
        """
        r, c = len(self.rows), len(self.columns)
        if self.height < self.width:
            visits = [(np.stack(np.divmod(np.arange(r * c), c), axis=1), True)]
        else:                           # all rows: a tile and its mirror image are both this device's
            above = np.stack(np.triu_indices(r, k=1), axis=1)
            visits = [(np.stack([np.arange(r)] * 2, axis=1), True)] + ([(above, False)] if r > 1 else [])
        for pairs, is_diagonal in visits:
            carry, _ = lax.scan(functools.partial(visit, is_diagonal=is_diagonal), carry, pairs)
        return carry


def _grid(z, everyone, axes, tile):
    first = lax.axis_index(axes) * len(z) if axes else 0
    rows, columns = (_split(x, _side(len(x), tile)) for x in (z, everyone))
    index = jnp.arange(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
    column_index = jnp.arange(columns.shape[0] * columns.shape[1]).reshape(columns.shape[:2])
    centre = lax.stop_gradient(everyone.mean(axis=0))  # any vector would do: the loss does not depend on it
    return _Grid(rows, columns, centre, first + index, column_index, len(z), len(everyone))


def _side(length, tile):
    """Projections along one side of a tile, for `length` of them: even, so that pairs stay together.

    `tile` is the number of its images, or the name of the platform that it is for.
    """
    if not isinstance(tile, str):
        return min(2 * tile, length)
    images = GPU_TILE_IMAGES if tile == 'gpu' else TILE_IMAGES
    tiles = -(-length // (2 * images * (2 if length > LARGE else 1)))
    side = -(-length // tiles)  # as equal as can be, so that little is filled up
    return length if tiles == 1 else -(-side // 128) * 128  # whole matrix units of a TPU or GPU


def _split(x, side, filler=0):
    """x [K, E] as [ceil(K / side), side, E], the last one filled up."""
    count = -(-len(x) // side)
    filled = jnp.pad(x, [(0, count * side - len(x)), (0, 0)], constant_values=filler)
    return filled.reshape(count, side, x.shape[1])


class _Tile(NamedTuple):
    """Similarities [R, C]. Each use adds them up anew: to keep the sums would cost a CPU a pass over memory."""

    product: jax.Array  # [R, C]
    rows: jax.Array  # [R]
    columns: jax.Array  # [C]

    def sum(self):
        return self.product + (self.rows[:, None] + self.columns)


def _similarities(grid, a, b, temperature):
    """Tile (a, b), float32."""
    rows, columns = _at(grid.rows, a) - grid.centre, _at(grid.columns, b) - grid.centre
    # bf16 or TF32 products are too coarse to be divided by a temperature of 0.1.
    product = jnp.matmul(rows / temperature, columns.T, precision='highest')
    return _Tile(product, *(jnp.sum(x * grid.centre, axis=1) / temperature for x in (rows, columns)))


def _negatives(tile, grid, a, b, is_diagonal):
    """Tile (a, b) without the filled columns, own similarities and positives."""
    row, column = _at(grid.row_index, a)[:, None], _at(grid.column_index, b)[None, :]
    masked = jnp.where(a < 0, 0.0, MASKED)  # never 0; a constant tile would be kept in memory all along
    product = tile.product
    if grid.column_index.size > grid.width:
        product = jnp.where(column >= grid.width, masked, product)
    if is_diagonal:
        product = jnp.where(row >> 1 == column >> 1, masked, product)  # the same image
    return tile._replace(product=product)


class _Summary(NamedTuple):
    """What an anchor keeps of the similarities s that it has met, each [...]."""

    largest: jax.Array  # max s
    total: jax.Array  # sum exp(s - largest)
    weighted: jax.Array  # sum exp(s - largest) * (s - largest)


def _summarise(s, axis):
    largest = s.max(axis)
    below = s - jnp.expand_dims(largest, axis)
    weight = jnp.exp(below)
    return _Summary(largest, weight.sum(axis), (weight * below).sum(axis))


def _summarise_both(tile):
    """_summarise along the rows and along the columns."""
    largest = tile.sum().max(1), tile.sum().max(0)
    top = largest[0].max()

    def once(tile):
        below = tile.sum() - top
        weight = jnp.exp(below)
        both = (_Summary(jnp.broadcast_to(top, x.shape), weight.sum(axis), (weight * below).sum(axis))
                for axis, x in zip((1, 0), largest))
        return tuple(_refer(part, x) for part, x in zip(both, largest))

    def twice(tile):
        return _summarise(tile.sum(), 1), _summarise(tile.sum(), 0)

    return _once_if(jnp.minimum(largest[0].min(), largest[1].min()) > top - NEAR, once, twice, tile)


def _once_if(near, once, twice, tile):
    """once(tile), with one exponential per similarity, or twice(tile), with two, where float32 needs them.

    The choice pays on a CPU. A GPU has exponentials to spare, and would have to wait for `near`.
    """
    return lax.platform_dependent(tile, cpu=lambda tile: lax.cond(near, once, twice, tile), default=twice)


def _refer(summary, largest):
    """The summary with its sums taken under `largest` instead."""
    below = summary.largest - largest
    scale = jnp.exp(below)
    return _Summary(largest, scale * summary.total, scale * (summary.weighted + below * summary.total))


def _join(one, other):
    """The summary of both sets of similarities."""
    largest = jnp.maximum(one.largest, other.largest)
    one, other = _refer(one, largest), _refer(other, largest)
    return _Summary(largest, one.total + other.total, one.weighted + other.weighted)


def _sweep_forward(grid, temperature):
    """The summary of every row's negatives, and its similarity with its positive, [2n] each."""

    # What tiles say of their rows and of their columns is kept apart: updated at two places in one step,
    # an array of a loop is copied whole each time.
    def visit(carry, pair, is_diagonal):
        (by_rows, by_columns, positive), (a, b) = carry, pair
        tile = _similarities(grid, a, b, temperature)
        if is_diagonal:
            positive = _put(positive, a, _pick_positive(_at(positive, a), tile.sum(), grid, a, b))
        tile = _negatives(tile, grid, a, b, is_diagonal)
        if is_diagonal:
            return (fold(by_rows, a, _summarise(tile.sum(), axis=1)), by_columns, positive), None
        of_rows, of_columns = _summarise_both(tile)
        return (fold(by_rows, a, of_rows), fold(by_columns, b, of_columns), positive), None

    def fold(summary, i, new):
        met = _join(_Summary(*(_at(x, i) for x in summary)), new)
        return _Summary(*(_put(x, i, v) for x, v in zip(summary, met)))

    zeros = jnp.zeros_like(grid.rows[..., 0])  # [r, R]
    nothing = _Summary(zeros + MASKED, zeros, zeros)
    by_rows, by_columns, positive = grid.sweep(visit, (nothing, nothing, zeros))
    return jax.tree.map(lambda x: x.reshape(-1)[: grid.height], (_join(by_rows, by_columns), positive))


def _pick_positive(known, s, grid, a, b):
    """known [R], with the similarities to those positives that are columns of tile s [R, C] = (a, b).

    Taken from the tile: computed otherwise it is rounded otherwise, and would win or lose every tie.
    """
    column = (_at(grid.row_index, a) ^ 1) - _at(grid.column_index, b)[0]  # [R]
    is_here = (column >= 0) & (column < s.shape[1])
    found = jnp.take_along_axis(s, jnp.where(is_here, column, 0)[:, None], axis=1)[:, 0]
    return jnp.where(is_here, found, known)


def _sweep_backward(grid, lse, all_lse, temperature):
    """sum_k (exp(s_ik - lse_i) + exp(s_ik - lse_k)) z_k over the negatives k of every row i, [2n, D]."""
    row_lse, column_lse = (_split(x, part.shape[1], filler=1)  # [r, R, 2], [c, C, 2]
                           for x, part in ((lse, grid.rows), (all_lse, grid.columns)))
    # Rows of the product are kept as columns: [D, C] @ [C, R] runs 1.6x faster on a CPU than the
    # transposed [C, R].T @ [R, D] that a mirrored tile would need.
    rows, columns = (jnp.swapaxes(x, 1, 2) for x in (grid.rows, grid.columns))  # [r, D, R], [c, D, C]

    def visit(carry, pair, is_diagonal):
        (by_rows, by_columns), (a, b) = carry, pair
        tile = _negatives(_similarities(grid, a, b, temperature), grid, a, b, is_diagonal)
        weight = _weights(tile, _at(row_lse, a), _at(column_lse, b))  # [R, C]
        by_rows = add(by_rows, a, jnp.matmul(_at(columns, b), weight.T, precision='highest'))
        if not is_diagonal:
            by_columns = add(by_columns, b, jnp.matmul(_at(rows, a), weight, precision='highest'))
        return (by_rows, by_columns), None

    def add(pulls, i, new):
        return _put(pulls, i, _at(pulls, i) + new)

    nothing = jnp.zeros_like(rows)  # [r, D, R]
    by_rows, by_columns = grid.sweep(visit, (nothing, nothing))
    pulls = by_rows + by_columns
    return jnp.swapaxes(pulls, 1, 2).reshape(-1, rows.shape[1])[: grid.height]


def _weights(tile, row_lse, column_lse):
    """exp(s_ik - lse_i) + exp(s_ik - lse_k) of a tile, [R, C], with the lse [R, 2] and [C, 2]."""
    (row_largest, row_total), (column_largest, column_total) = row_lse.T, column_lse.T
    top = jnp.maximum(row_largest.max(), column_largest.max())

    def once(tile):
        row_share, column_share = (jnp.exp(top - largest) / total for largest, total in (
            (row_largest, row_total), (column_largest, column_total)))
        return jnp.exp(tile.sum() - top) * (row_share[:, None] + column_share)

    def twice(tile):
        return (jnp.exp(tile.sum() - row_largest[:, None]) * (1 / row_total)[:, None]
                + jnp.exp(tile.sum() - column_largest) * (1 / column_total))

    return _once_if(jnp.minimum(row_largest.min(), column_largest.min()) > top - NEAR, once, twice, tile)


def _at(x, i):
    return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x, i, value):
    return lax.dynamic_update_index_in_dim(x, value, i, 0)
