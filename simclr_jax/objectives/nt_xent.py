"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020, eq. 1 and Algorithm 1).

With the similarities s_ik = <z_i, z_k> / temperature of the 2N projections, the loss of anchor i is

    -log(exp(s_ip) / sum_{k != i} exp(s_ik)) = log(1 + sum_{k != i, p} exp(s_ik - s_ip)),

where p is the other view of its image. The second form is what is computed: it keeps its digits where the
task is nearly solved and the loss close to 0. `nt_xent_dense` writes it plainly and holds the whole
similarity matrix; `nt_xent` is the same in tiles (nt_xent_tiles.py), on any number of devices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from simclr_jax.objectives import nt_xent_tiles
from simclr_jax.objectives.parts import check_divisible, checked_temperature, l2_normalize, on_mesh, whole


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
        mesh: None computes the loss on one device. A mesh splits the rows over all its axes, Auto or
            Explicit: each device gathers all projections and computes the loss of its own
            2N / devices anchors.
        decoupled: leaves the positive out of the denominator of each anchor (Yeh et al. 2021,
            Decoupled Contrastive Learning, eq. 6), so that 2N-2 candidates remain in it.
        tile: images in a tile, whose sides are 2 * tile projections; None chooses, by the platform of the
            mesh, or else of jax's default device. The result does not depend on it.

    Returns:
        The loss, a float32 scalar, and its metrics, float32 scalars without gradient:
        'contrastive_accuracy', the share of anchors whose positive is more similar than each of
        the 2N-2 negatives (a tie is a miss), and 'contrastive_entropy', the mean entropy in nats
        of the softmax over the candidates in the denominator: at most log(2N-1), or log(2N-2)
        where decoupled. The loss is NaN for a traced temperature that turns out not to be positive.

    Raises:
        ValueError: views that are not two equal [N, D] shapes of at least one image, N not divisible
            by the devices of the mesh, a temperature that is not positive, a tile of less than one
            image, or decoupled with a single image, which has no negatives.

    It has derivatives of every order, forward and reverse. Those of first order cost no [N, N] memory,
    nor do Hessian-vector products by `jax.jvp` of `jax.grad`; reverse mode twice keeps all tiles. The
    official code (google-research/simclr tf2/objective.py) returns exactly twice this loss.

    >>> import jax.numpy as jnp, simclr_jax
    >>> view1, view2 = jnp.eye(4), 3 * jnp.eye(4)           # each pair alike, and orthogonal to all others
    >>> loss, metrics = simclr_jax.nt_xent(view1, view2, temperature=0.5)
    >>> round(float(loss), 4), float(metrics['contrastive_accuracy'])
    (0.5944, 1.0)
    """
    _check(view1, view2, decoupled)
    temperature = checked_temperature('nt_xent', temperature)
    check_divisible('nt_xent', view1.shape[0], mesh)
    if tile is not None and tile < 1:
        raise ValueError(f'nt_xent needs tiles of at least one image, got {tile}.')
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return _tiled(view1, view2, temperature, normalize, mesh, decoupled, tile or platform)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _tiled(view1, view2, temperature, normalize, mesh, decoupled, tile):

    def local_share(view1, view2, temperature, axes):  # [n, D], [n, D] with n = N / devices
        z = _projections(view1, view2, normalize)  # [2n, D]
        return nt_xent_tiles.mean_over_anchors(z, temperature, axes, decoupled, tile)

    return _named(*on_mesh(local_share, mesh, (view1, view2), temperature))


def nt_xent_dense(
    view1: jax.Array,  # [N, D]
    view2: jax.Array,  # [N, D]
    *,
    temperature: float | jax.Array,
    normalize: bool = True,
    decoupled: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`nt_xent` on one device, written plainly: the [2N, 2N] similarities, and JAX's own gradient."""
    _check(view1, view2, decoupled)
    temperature = checked_temperature('nt_xent', temperature)
    view1, view2 = whole(view1, view2)
    z = _projections(view1, view2, normalize)  # [2N, D]
    row = jnp.arange(len(z))[:, None]  # [2N, 1]
    column = row.T  # [1, 2N]
    is_own, is_positive = column == row, column == row ^ 1  # [2N, 2N]
    is_negative = ~(is_own | is_positive)  # [2N, 2N]
    # Less the same for all candidates of an anchor, which leaves more digits where they lie close together.
    candidates = z - lax.stop_gradient(z.mean(axis=0))  # [2N, D]
    s = jnp.matmul(z, candidates.T, precision='highest') / temperature  # [2N, 2N]
    positive = jnp.sum(s, axis=1, where=is_positive)  # [2N]
    negatives = jax.nn.logsumexp(jnp.where(is_negative, s, nt_xent_tiles.MASKED), axis=1)  # [2N]
    gap = negatives - positive  # [2N]
    loss = gap if decoupled else jax.nn.softplus(gap)  # [2N]
    correct = positive > jnp.max(s, axis=1, where=is_negative, initial=-jnp.inf)  # [2N]
    counted = jnp.where(is_negative if decoupled else ~is_own, s, -jnp.inf)  # [2N, 2N]
    entropy = jax.scipy.special.entr(jax.nn.softmax(counted)).sum(axis=1)  # [2N], entr(0) = 0
    return _named(loss.mean(), correct.astype(jnp.float32).mean(), entropy.mean())


def _check(view1, view2, decoupled):
    if view1.ndim != 2 or view1.shape != view2.shape or not len(view1):
        raise ValueError('nt_xent needs two [N, D] views of equal shape and at least one image, got '
                         f'{view1.shape} and {view2.shape}.')
    if decoupled and len(view1) < 2:
        raise ValueError('nt_xent: decoupled needs at least two images, one has no negatives.')


def _projections(view1, view2, normalize):
    """Both views as float32 rows, the two of an image one after the other: [2N, D]."""
    z = jnp.stack([view1, view2], axis=1).astype(jnp.float32)  # [N, 2, D]
    z = z.reshape(-1, view1.shape[1])  # [2N, D]
    return l2_normalize(z) if normalize else z


def _named(loss, accuracy, entropy):
    metrics = {'contrastive_accuracy': accuracy, 'contrastive_entropy': entropy}
    return loss, lax.stop_gradient(metrics)
