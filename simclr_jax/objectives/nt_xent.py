"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, eq. 1 and Algorithm 1), in tiles.

`nt_xent` is the loss; `nt_xent_dense` says the same in a few lines that hold the whole similarity
matrix, and is what the tiles are tested against.

The tiles. The 2N projections lie as image 0 view 1, image 0 view 2, image 1 view 1, ..., so that the
positive of row i is row i ^ 1. The forward pass visits the similarity matrix tile by tile and keeps,
for every anchor, the largest similarity, the sum of exponentials under it, and their weighted sum:
from these come the log-sum-exp, the accuracy and the entropy. The backward pass computes the tiles
again. With s_ik = <z_i, z_k> / temperature and lse_i the log of the denominator of anchor i,

    dz_i = (sum_k (exp(s_ik - lse_i) + exp(s_ik - lse_k)) z_k - 2 z_pos(i)) / (temperature * 2N),

where the second exponential is row i in the role of a candidate. The matrix is symmetric, so a
device that knows all projections and all 2N log-sum-exps needs nothing else for the gradient of its
own rows; and a device that is alone visits the tiles on and above the diagonal only. A log-sum-exp
is kept as (largest, total): added up in one float32, it would lose what similarities far from 0 share.
"""

import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P

TILE_IMAGES = 512  # [1024, 1024] similarities, 4 MiB: near a core's cache, large enough for matmuls
LARGE = 16384  # projections; beyond, tiles of twice the side: faster, and small beside the projections
MASKED = -1e30  # a similarity that does not count; finite, since 0 * -inf is not a number
NEAR = 60.0  # exp of anything this close to 0 is exact in float32, and so is its quotient by another


def nt_xent(
    view1: jax.Array,  # [N, D]
    view2: jax.Array,  # [N, D]
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    mesh: Mesh | None = None,
    decoupled: bool = False,
    tile: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalised temperature-scaled cross entropy: the mean over the 2N anchors of eq. 1.

    Every projection is an anchor once. Its positive is the other view of the same image; the
    candidates of its softmax are the 2N-1 other projections. Memory grows with N, not with its
    square: no matrix of all similarities is formed, forward or backward.

    Args:
        view1: projections of the first views, [N, D], any float type; computed in float32.
        view2: projections of the second views, row i being the same image as row i of view1.
        temperature: tau > 0, a number or a scalar array; the loss has its gradient too.
        normalize: cosine similarity (the paper); False takes plain inner products.
        mesh: None computes the loss on one device. A mesh splits the rows over all its axes: each
            device gathers all projections and computes the loss of its own 2N / devices anchors.
        decoupled: leaves the positive out of the denominator of each anchor (Yeh et al. 2021,
            Decoupled Contrastive Learning, eq. 6), so that 2N-2 candidates remain in it.
        tile: images in a tile, whose sides are 2 * tile projections; None chooses. The result
            does not depend on it.

    Returns:
        The loss, a float32 scalar, and its metrics, float32 scalars without gradient:
        'contrastive_accuracy', the share of anchors whose positive is more similar than each of
        the 2N-2 negatives (a tie is a miss), and 'contrastive_entropy', the mean entropy in nats
        of the softmax over the candidates in the denominator: at most log(2N-1), or log(2N-2)
        where decoupled.

    Raises:
        ValueError: views that are not two equal [N, D] shapes, N not divisible by the devices
            of the mesh, a temperature that is not positive, a tile of less than one image, or
            decoupled with a single image, which has no negatives.

    Derivatives are first-order and in reverse (`jax.grad`). The official code
    (google-research/simclr tf2/objective.py) returns exactly twice this loss.
    """
    _check(view1, view2, temperature, decoupled, tile)
    temperature = jnp.asarray(temperature, jnp.float32)
    axes = () if mesh is None else mesh.axis_names

    def local_share(view1, view2, temperature):  # [n, D], [n, D] with n = N / devices
        z = _projections(view1, view2, normalize)  # [2n, D]
        return _mean_of_anchors(z, temperature, axes, decoupled, tile)

    if mesh is not None:
        if view1.shape[0] % mesh.size:
            raise ValueError(
                f'nt_xent cannot split a batch of {view1.shape[0]} over {mesh.size} devices: '
                'choose a batch size that is a multiple of the device count.')
        local_share = jax.shard_map(
            local_share, mesh=mesh, in_specs=(P(axes), P(axes), P()), out_specs=P())
    return _named(*local_share(view1, view2, temperature))


def nt_xent_dense(
    view1: jax.Array,  # [N, D]
    view2: jax.Array,  # [N, D]
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    decoupled: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`nt_xent` on one device, written plainly: the [2N, 2N] similarities, and JAX's own gradient."""
    _check(view1, view2, temperature, decoupled)
    z = _projections(view1, view2, normalize)  # [2N, D]
    row = jnp.arange(len(z))[:, None]  # [2N, 1]
    column = row.T  # [1, 2N]
    is_own, is_positive = column == row, column == row ^ 1  # [2N, 2N]
    s = jnp.matmul(z / temperature, z.T, precision='highest')  # [2N, 2N]
    positive = jnp.sum(s, axis=1, where=is_positive)  # [2N]
    logits = jnp.where(is_own | is_positive if decoupled else is_own, -jnp.inf, s)  # [2N, 2N]
    loss = jax.nn.logsumexp(logits, axis=1) - positive  # [2N]
    correct = positive > jnp.max(s, axis=1, where=~(is_own | is_positive), initial=-jnp.inf)  # [2N]
    entropy = jax.scipy.special.entr(jax.nn.softmax(logits)).sum(axis=1)  # [2N], entr(0) = 0
    return _named(loss.mean(), correct.astype(jnp.float32).mean(), entropy.mean())


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Rows of x at unit length; a zero row stays zero and has a finite gradient."""
    squared_norm = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared_norm, epsilon))


def _check(view1, view2, temperature, decoupled, tile=None):
    if view1.ndim != 2 or view1.shape != view2.shape:
        raise ValueError(
            f'nt_xent needs two [N, D] views of equal shape, got {view1.shape} and {view2.shape}.')
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise ValueError(f'nt_xent needs a positive temperature, got {temperature}.')
    if decoupled and view1.shape[0] < 2:
        raise ValueError('nt_xent: decoupled needs at least two images, one has no negatives.')
    if tile is not None and tile < 1:
        raise ValueError(f'nt_xent needs tiles of at least one image, got {tile}.')


def _projections(view1, view2, normalize):
    """Both views as float32 rows, the two of an image one after the other: [2N, D]."""
    z = jnp.stack([view1, view2], axis=1).astype(jnp.float32)  # [N, 2, D]
    z = z.reshape(-1, view1.shape[1])  # [2N, D]
    return l2_normalize(z) if normalize else z


def _named(loss, accuracy, entropy):
    metrics = {'contrastive_accuracy': accuracy, 'contrastive_entropy': entropy}
    return loss, lax.stop_gradient(metrics)


# ---------------------------------------------------------------------------------------------------
# The loss of this device's rows, and its gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _mean_of_anchors(z, temperature, axes, decoupled, tile):
    """Loss, accuracy and entropy, three scalars, of the projections z [2n, D] that each device holds."""
    return _forward(z, temperature, axes, decoupled, tile)[0]


def _forward(z, temperature, axes, decoupled, tile):
    everyone = lax.all_gather(z, axes, tiled=True) if axes else z  # [2N, D]
    summary, positive = _sweep_forward(_grid(z, everyone, axes, tile), temperature)  # [2n] each
    is_hit = (positive > summary.largest).astype(jnp.float32)
    if not decoupled:
        summary = _join(summary, _Summary(positive, jnp.ones_like(positive), jnp.zeros_like(positive)))
    log_total = jnp.log(summary.total)  # [2n]
    expected = summary.weighted / summary.total  # [2n], of s - largest under the softmax
    lead = summary.largest - positive  # [2n]
    anchors = jnp.stack([lead + log_total, is_hit, log_total - expected, lead + expected])  # [4, 2n]
    means = lax.pmean(anchors.mean(axis=1), axes) if axes else anchors.mean(axis=1)
    loss, accuracy, entropy, surplus = means
    lse = jnp.stack([summary.largest, summary.total], axis=1)  # [2n, 2]
    return (loss, accuracy, entropy), (z, everyone, lse, temperature, surplus)


def _backward(axes, decoupled, tile, residuals, cotangents):
    z, everyone, lse, temperature, surplus = residuals
    dloss = cotangents[0]  # the metrics carry no gradient
    all_lse = lax.all_gather(lse, axes, tiled=True) if axes else lse  # [2N, 2]
    attraction = z.reshape(-1, 2, z.shape[1])[:, ::-1].reshape(z.shape)  # [2n, D], z_pos(i)
    repulsion = _sweep_backward(_grid(z, everyone, axes, tile), lse, all_lse, temperature, decoupled)
    dz = (repulsion - 2 * attraction) * (dloss / (temperature * len(everyone)))  # [2n, D]
    # d loss / d temperature = -(sum_k p_ik s_ik - positive) / temperature, in the mean.
    return dz, -dloss * surplus / temperature


_mean_of_anchors.defvjp(_forward, _backward)


# ---------------------------------------------------------------------------------------------------
# Tiles


class _Grid(NamedTuple):
    """The similarities [2n, 2N] of a device's rows with all columns, as r x c tiles of [R, C].

    The last tile of a side may be ragged: it is filled up with zero rows, whose columns never count.
    """

    rows: jax.Array  # [r, R, D]
    columns: jax.Array  # [c, C, D]
    row_index: jax.Array  # [r, R], the place of each row among all 2N
    column_index: jax.Array  # [c, C]
    height: int  # 2n
    width: int  # 2N

    @property
    def is_square(self):
        """Whether this device holds all rows, so that a tile and its mirror image are both its own."""
        return self.height == self.width

    def visits(self):
        """Tiles to visit, as (pairs [visits, 2] of row and column, is_diagonal), in one order for all.

        Only diagonal tiles can hold a similarity of an image with itself. Tiles that are not stand
        for their mirror image too. Among several devices the tiles of rows and of columns need not
        lie at the same places, and any tile may be on the diagonal.
        """
        r, c = len(self.rows), len(self.columns)
        if not self.is_square:
            return [(np.stack(np.divmod(np.arange(r * c), c), axis=1), True)]
        above = np.stack(np.triu_indices(r, k=1), axis=1)
        return [(np.stack([np.arange(r)] * 2, axis=1), True)] + ([(above, False)] if r > 1 else [])


def _grid(z, everyone, axes, tile):
    first = lax.axis_index(axes) * len(z) if axes else 0
    rows, columns = (_split(x, _side(len(x), tile)) for x in (z, everyone))
    index = jnp.arange(rows.shape[0] * rows.shape[1]).reshape(rows.shape[:2])
    column_index = jnp.arange(columns.shape[0] * columns.shape[1]).reshape(columns.shape[:2])
    return _Grid(rows, columns, first + index, column_index, len(z), len(everyone))


def _side(length, tile):
    """Projections along one side of a tile, for `length` of them: even, so that pairs stay together."""
    if tile is not None:
        return min(2 * tile, length)
    tiles = -(-length // (2 * TILE_IMAGES * (2 if length > LARGE else 1)))
    side = -(-length // tiles)  # as equal as can be, so that little is filled up
    return length if tiles == 1 else -(-side // 128) * 128  # whole matrix units of a TPU or GPU


def _split(x, side, filler=0):
    """x [K, E] as [ceil(K / side), side, E], the last one filled up."""
    count = -(-len(x) // side)
    filled = jnp.pad(x, [(0, count * side - len(x)), (0, 0)], constant_values=filler)
    return filled.reshape(count, side, x.shape[1])


def _similarities(grid, a, b, temperature):
    """Tile (a, b), [R, C] float32."""
    # bf16 or TF32 products are too coarse to be divided by a temperature of 0.1.
    return jnp.matmul(_at(grid.rows, a) / temperature, _at(grid.columns, b).T, precision='highest')


def _mask(s, grid, a, b, is_diagonal, positives):
    """Tile s [R, C] = (a, b) without the filled columns, own similarities and, if asked, positives."""
    row, column = _at(grid.row_index, a)[:, None], _at(grid.column_index, b)[None, :]
    hidden = column >= grid.width  # [1, C]
    if is_diagonal:
        same_image = row >> 1 == column >> 1  # [R, C]
        hidden |= same_image if positives else row == column
    return jnp.where(hidden, MASKED, s)


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


def _summarise_both(s):
    """_summarise(s, axis=1) and _summarise(s, axis=0)."""
    largest = s.max(1), s.max(0)
    top = largest[0].max()

    def once(s):
        below = s - top
        weight = jnp.exp(below)
        both = (_Summary(jnp.broadcast_to(top, x.shape), weight.sum(axis), (weight * below).sum(axis))
                for axis, x in zip((1, 0), largest))
        return tuple(_refer(part, x) for part, x in zip(both, largest))

    def twice(s):
        return _summarise(s, 1), _summarise(s, 0)

    return _once_if(jnp.minimum(largest[0].min(), largest[1].min()) > top - NEAR, once, twice, s)


def _once_if(near, once, twice, s):
    """once(s), with one exponential per similarity, or twice(s), with two, where float32 needs them.

    The choice pays on a CPU. A GPU has exponentials to spare, and would have to wait for `near`.
    """
    return lax.platform_dependent(s, cpu=lambda s: lax.cond(near, once, twice, s), default=twice)


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
        by_rows, by_columns, positive = carry
        a, b = pair
        s = _similarities(grid, a, b, temperature)  # [R, C]
        if is_diagonal:
            positive = _put(positive, a, _pick_positive(_at(positive, a), s, grid, a, b))
        s = _mask(s, grid, a, b, is_diagonal, positives=True)
        if is_diagonal:
            return (fold(by_rows, a, _summarise(s, axis=1)), by_columns, positive), None
        of_rows, of_columns = _summarise_both(s)
        return (fold(by_rows, a, of_rows), fold(by_columns, b, of_columns), positive), None

    def fold(summary, i, new):
        met = _join(_Summary(*(_at(x, i) for x in summary)), new)
        return _Summary(*(_put(x, i, v) for x, v in zip(summary, met)))

    zeros = jnp.zeros_like(grid.rows[..., 0])  # [r, R]
    nothing = _Summary(zeros + MASKED, zeros, zeros)
    carry = nothing, nothing, zeros
    for pairs, is_diagonal in grid.visits():
        carry, _ = lax.scan(functools.partial(visit, is_diagonal=is_diagonal), carry, pairs)
    by_rows, by_columns, positive = carry
    return jax.tree.map(lambda x: x.reshape(-1)[: grid.height], (_join(by_rows, by_columns), positive))


def _pick_positive(known, s, grid, a, b):
    """known [R], with the similarities to those positives that are columns of tile s [R, C] = (a, b).

    Taken from the tile: computed otherwise it is rounded otherwise, and would win or lose every tie.
    """
    column = (_at(grid.row_index, a) ^ 1) - _at(grid.column_index, b)[0]  # [R]
    is_here = (column >= 0) & (column < s.shape[1])
    found = jnp.take_along_axis(s, jnp.where(is_here, column, 0)[:, None], axis=1)[:, 0]
    return jnp.where(is_here, found, known)


def _sweep_backward(grid, lse, all_lse, temperature, decoupled):
    """sum_k (exp(s_ik - lse_i) + exp(s_ik - lse_k)) z_k for every row i, [2n, D]."""
    row_lse, column_lse = (_split(x, part.shape[1], filler=1)  # [r, R, 2], [c, C, 2]
                           for x, part in ((lse, grid.rows), (all_lse, grid.columns)))
    # Rows of the product are kept as columns: [D, C] @ [C, R] runs 1.6x faster on a CPU than the
    # transposed [C, R].T @ [R, D] that a mirrored tile would need.
    rows, columns = (jnp.swapaxes(x, 1, 2) for x in (grid.rows, grid.columns))  # [r, D, R], [c, D, C]

    def visit(carry, pair, is_diagonal):
        by_rows, by_columns = carry
        a, b = pair
        s = _mask(_similarities(grid, a, b, temperature), grid, a, b, is_diagonal, decoupled)  # [R, C]
        weight = _weights(s, _at(row_lse, a), _at(column_lse, b))  # [R, C]
        by_rows = add(by_rows, a, jnp.matmul(_at(columns, b), weight.T, precision='highest'))
        if not is_diagonal:
            by_columns = add(by_columns, b, jnp.matmul(_at(rows, a), weight, precision='highest'))
        return (by_rows, by_columns), None

    def add(pulls, i, new):
        return _put(pulls, i, _at(pulls, i) + new)

    nothing = jnp.zeros_like(rows)  # [r, D, R]
    carry = nothing, nothing
    for pairs, is_diagonal in grid.visits():
        carry, _ = lax.scan(functools.partial(visit, is_diagonal=is_diagonal), carry, pairs)
    pulls = carry[0] + carry[1]
    return jnp.swapaxes(pulls, 1, 2).reshape(-1, rows.shape[1])[: grid.height]


def _weights(s, row_lse, column_lse):
    """exp(s_ik - lse_i) + exp(s_ik - lse_k) of a tile s [R, C], with the lse [R, 2] and [C, 2]."""
    (row_largest, row_total), (column_largest, column_total) = row_lse.T, column_lse.T
    top = jnp.maximum(row_largest.max(), column_largest.max())

    def once(s):
        row_share, column_share = (jnp.exp(top - largest) / total for largest, total in (
            (row_largest, row_total), (column_largest, column_total)))
        return jnp.exp(s - top) * (row_share[:, None] + column_share)

    def twice(s):
        return (jnp.exp(s - row_largest[:, None]) * (1 / row_total)[:, None]
                + jnp.exp(s - column_largest) * (1 / column_total))

    return _once_if(jnp.minimum(row_largest.min(), column_largest.min()) > top - NEAR, once, twice, s)


def _at(x, i):
    return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _put(x, i, value):
    return lax.dynamic_update_index_in_dim(x, value, i, 0)
