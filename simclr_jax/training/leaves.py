"""How an optimiser goes over the parameters: one after the other, or on a GPU those of one shape together.

A GPU takes some microseconds to launch a kernel, and a ResNet-50 has 170 parameters. By itself XLA launches two
kernels for each norm. It updates the kernel of a convolution in the order in memory that cuDNN gives its gradient,
output channels first, and copies the new values and the momenta back into theirs.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

_ROW = 4096     # elements that one block of threads adds up


class Leaves(Protocol):
    """Two functions over many arrays; the values of both forms are equal but for the order of sums."""

    def arranged(self, gradients: Any) -> Any:
        """The tree of gradients as it is to be read by what updates the parameters."""
        ...

    def norms(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """The Euclidean norm of each of the arrays, which may have any shapes: float32 scalars."""
        ...

    def norm(self, tree: Any) -> jax.Array:
        """That of all arrays of a tree together."""
        ...


class OneByOne:
    """Plain, for CPUs and TPUs, and for arrays that are split over devices."""

    def arranged(self, gradients: Any) -> Any:
        return gradients

    def norms(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        return [jnp.asarray(optax.safe_norm(array, 0.0)) for array in arrays]      # that of optax.lars

    def norm(self, tree: Any) -> jax.Array:
        return jnp.asarray(optax.tree.norm(tree))


class Grouped:
    """In few kernels, for GPUs that each hold the arrays whole."""

    def arranged(self, gradients: Any) -> Any:
        leaves, structure = jax.tree.flatten(gradients)
        groups = {}
        for index, leaf in enumerate(leaves):
            if leaf.ndim > 1:           # XLA joins the rest, of norms, with what makes their gradients
                groups.setdefault(leaf.shape, []).append(index)
        for shape, group in groups.items():
            together = lax.optimization_barrier(jnp.stack([leaves[index].ravel() for index in group]))
            for index, flat in zip(group, together):
                leaves[index] = flat.reshape(shape)
        return jax.tree.unflatten(structure, leaves)

    def norms(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        return list(jnp.sqrt(_squared_norms(arrays)))

    def norm(self, tree: Any) -> jax.Array:
        return jnp.sqrt(_squared_norms(jax.tree.leaves(tree)).sum())


def leaves_for(platform: str, *, split: bool) -> Leaves:
    """Grouped on a 'gpu', unless the arrays are split over devices; else OneByOne."""
    return Grouped() if platform == 'gpu' and not split else OneByOne()


def _squared_norms(arrays: Sequence[jax.Array]) -> jax.Array:
    """[L], in one kernel for each array, which leaves a vector of partial sums, and some for all of these."""
    parts = [_partial_sums(array.ravel()) for array in arrays]
    longest = max((len(part) for part in parts), default=0)
    rows = [each for part in parts for each in (part, jnp.zeros(longest - len(part)))]
    # The barrier: or XLA would add up each row by itself before they are put together.
    together = lax.optimization_barrier(jnp.concatenate(rows or [jnp.zeros(0)]))
    return together.reshape(len(parts), longest).sum(axis=1)


def _partial_sums(flat: jax.Array) -> jax.Array:
    squares = flat * flat
    if len(flat) <= _ROW:
        return squares
    length = max(divisor for divisor in range(1, _ROW + 1) if len(flat) % divisor == 0)
    return squares.reshape(-1, length).sum(axis=1) if length >= 32 else squares.sum(keepdims=True)
