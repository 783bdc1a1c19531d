"""No program sums a broadcast on a CPU: jaxlib 0.10.2 does it with threads that overwrite each other.

openxla/xla#49085, google/XNNPACK#11243: such a sum has another value at every call, without a word. XLA makes
one of `x.mean(where=mask)` whose mask is broadcast, and of `jnp.broadcast_to(x, shape).sum()`.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.evaluate.health import pair_metrics, spread
from simclr_jax.objectives.info_nce import info_nce, info_nce_in_batch
from simclr_jax.objectives.margin import margin_triplet
from simclr_jax.objectives.nt_logistic import nt_logistic
from simclr_jax.objectives.nt_xent import nt_xent, nt_xent_dense
from simclr_jax.objectives.redundancy import barlow_twins, vicreg
from simclr_jax.objectives.sup_con import sup_con

N, D = 512, 32                                          # large enough for XLA to share a sum among threads
LABELS = np.arange(N) % 10
FUNCTIONS = {
    'nt_xent': partial(nt_xent, temperature=0.5),
    'nt_xent in tiles': partial(nt_xent, temperature=0.5, tile=128),
    'nt_xent decoupled': partial(nt_xent, temperature=0.5, decoupled=True),
    'nt_xent_dense': partial(nt_xent_dense, temperature=0.5),
    'nt_logistic': partial(nt_logistic, temperature=0.5),
    'margin_triplet': partial(margin_triplet, margin=0.4),
    'sup_con': lambda view1, view2: sup_con(view1, view2, LABELS, temperature=0.1),
    'info_nce': lambda view1, view2: info_nce(view1, view2, view1 + view2, temperature=0.2),
    'info_nce_in_batch': partial(info_nce_in_batch, temperature=0.2),
    'barlow_twins': barlow_twins,
    'vicreg': vicreg,
    'pair_metrics': pair_metrics,
    'spread': lambda view1, view2: spread(view1 + view2),
}


def sums_of_broadcasts(function, *arguments):
    """The reductions of a compiled program that are shared among threads and read a broadcast array."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    shared = set(re.findall(r'calls=%([\w.-]+)[^\n]*__ynn_fusion', text))
    found = []
    for name, body in re.findall(r'^%([\w.-]+) \([^\n]*\{\n(.*?)^\}', text, re.DOTALL | re.MULTILINE):
        broadcasts = re.findall(r'%([\w.-]+) = [^\n]*? broadcast\([^)]*\), dimensions=\{\d', body)
        if name in shared:
            found += [one for one in broadcasts if re.search(rf' reduce(-window)?\(%{re.escape(one)},', body)]
    return found


@pytest.mark.parametrize('name', FUNCTIONS)
def test_no_sum_reads_a_broadcast(name):
    def total(view1, view2):                            # of all outputs, so that none is left out
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(FUNCTIONS[name](view1, view2)))

    view = jax.ShapeDtypeStruct((N, D), jnp.float32)
    assert sums_of_broadcasts(jax.value_and_grad(total, (0, 1)), view, view) == []


def test_one_is_found_where_there_is_one():
    mask = jax.ShapeDtypeStruct((N, N), jnp.bool_)
    values = jax.ShapeDtypeStruct((3, N, N), jnp.float32)
    if not sums_of_broadcasts(lambda values, mask: values.mean(where=mask), values, mask):
        pytest.skip('this jaxlib makes no such sum')
