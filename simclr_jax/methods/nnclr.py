"""NNCLR (Dwibedi et al. 2021): the positive of a view is the nearest neighbour of the other in a queue."""

import jax
import jax.numpy as jnp

from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import everywhere, mean_over_pairs, one_network, split_views
from simclr_jax.methods.queue import enqueue, new_queue
from simclr_jax.models.network import Network
from simclr_jax.objectives.info_nce import info_nce_in_batch
from simclr_jax.objectives.parts import l2_normalize


def nnclr(network: Network, *, num_train_steps: int, temperature: float = 0.1, queue_size: int = 98304,
          mesh: jax.sharding.Mesh | None = None) -> Method:
    """The NNCLR method around `network` (the paper's Algorithm 1).

    The projection of each view is replaced by the most similar one of the last `queue_size` images, and
    has to find the prediction of the other view among those of the global batch; the mean of both
    directions. No gradient flows through the neighbours. BatchNorm sees each view by itself.

    Args:
        network, num_train_steps: see `Method`; without the paper's predictor the projection is found.
        temperature: tau, more than 0.
        queue_size: Q, projections of the first views, the oldest leaving; not below the batch.
        mesh: the devices that share the batch; every one of them holds the whole queue.

    Raises:
        ValueError: no queue.
    """
    del num_train_steps
    if queue_size < 1:
        raise ValueError(f'method.queue_size is {queue_size}: nnclr takes its positives from the queue, and '
                         'needs at least one place for each image of a batch.')

    def compare(output, labels, method_state):
        del labels
        projections = [l2_normalize(z) for z in split_views(output.projection)]                         # [N, D]
        predictions = [everywhere(l2_normalize(q), mesh) for q in split_views(output.prediction)]
        neighbours = [_nearest(jax.lax.stop_gradient(z), method_state['queue']) for z in projections]
        terms = [info_nce_in_batch(neighbour, q, temperature=temperature)
                 for neighbour, q in zip(neighbours, predictions[::-1])]
        return *mean_over_pairs(terms), jax.lax.stop_gradient(projections[0])

    method = one_network(network, compare, each_view=True, mesh=mesh)

    def init(key, images):
        params, batch_stats, _ = method.init(key, images)
        variables = {'params': params, 'batch_stats': batch_stats}
        return params, batch_stats, new_queue(network, variables, images, jax.random.fold_in(key, 1), queue_size)

    def after_update(method_state, params, aux, step):
        del params, step
        return enqueue(method_state['queue'], method_state['pointer'], everywhere(aux.carry, mesh))

    return method._replace(init=init, after_update=after_update)


def _nearest(rows, queue):
    """The row of the queue [Q, D] that is the most similar to each of `rows` [N, D]; all of unit length."""
    return queue[jnp.matmul(rows, queue.T, precision='highest').argmax(axis=1)]
