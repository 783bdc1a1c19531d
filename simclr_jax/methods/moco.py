"""MoCo v2 and v3 (He et al. 2020; Chen et al. 2020b, 2021): a slowly moving key encoder, many negatives."""

import jax
import jax.numpy as jnp

from simclr_jax.methods import parts
from simclr_jax.methods.base import Method
from simclr_jax.methods.queue import enqueue, new_queue
from simclr_jax.models.network import Network, forward_train, init_variables, norm_groups, regrouped
from simclr_jax.objectives.info_nce import info_nce, info_nce_in_batch
from simclr_jax.objectives.parts import l2_normalize
from simclr_jax.training import schedules

KEY_GROUPS = ('strided', 'shuffled', 'same')


def moco(network: Network, *, num_train_steps: int, temperature: float = 0.2, momentum: float = 0.999,
         momentum_rises: bool = False, queue_size: int = 65536, symmetric: bool = False,
         key_groups: str = 'strided', batch_negatives: bool = False, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The MoCo method around `network`, as facebookresearch/moco moco/builder.py.

    A query, view 1 through the online network, has to find its key, view 2 through the target
    network, among the keys of the last `queue_size` images. With `queue_size=0` and a predictor it is
    MoCo v3: the negatives are the other keys of the global batch. Small views are queries for all keys of their
    image, and no keys; the loss is then a multiple of the mean over all pairs.

    With unsynchronised BatchNorm (encoder.norm_groups > 1) a query and its key must not be
    normalised with the same images, or the statistics give the pair away (sec. 3.3). The official
    code shuffles the images between GPUs; here the rows stay and the key branch's groups change.

    Args:
        network: encoder, head and, if it has classes, the online probe, which reads the queries.
        num_train_steps: over which a rising momentum reaches 1.
        temperature: more than 0; v1 0.07, v2 0.2, v3 1.0.
        momentum: of the target, in [0, 1]; v2 0.999, v3 0.99.
        momentum_rises: along a cosine to 1 (v3); v2 keeps it constant.
        queue_size: K keys, any number that is not below the keys of one step; 0 for no queue.
        symmetric: also view 2 as query and view 1 as key, the two losses added. BatchNorm then sees
            each view by itself, unless encoder.norm_groups says otherwise. v3, which is always
            symmetric, multiplies by twice the temperature.
        key_groups: BatchNorm of the keys. 'strided': every G-th row, so that each group of keys
            holds as many of one group of queries as of any other. 'shuffled': contiguous groups
            after a random permutation of the whole batch, the original's way, which moves images
            between devices. 'same': the queries' own groups, which leaks; to see what it does.
        batch_negatives: the other keys of the global batch are negatives too, beside the queue: SimCLRv2's momentum
            memory (Chen et al. 2020b, sec. 2; google-research/simclr issue 115).
        mesh: the devices that share the batch; every one of them holds the whole queue.

    Raises:
        ValueError: values out of range.
    """
    _check(momentum, queue_size, key_groups)
    original, shuffled = network, key_groups == 'shuffled' and norm_groups(network) > 1
    if symmetric and norm_groups(network) == 1:
        network = regrouped(network, 2, strided=True)           # one pass a view in the original
    target = parts.target_network(network)
    if key_groups == 'strided':
        target = regrouped(target, norm_groups(network), strided=True)
    num_devices = mesh.size if mesh else 1

    def init(key, images):
        variables = init_variables(network, key, images)
        params, batch_stats = variables['params'], variables['batch_stats']
        # A copy: each part of the state is donated by itself.
        state = {'target': jax.tree.map(jnp.copy, {
            'params': parts.target_params(params), 'batch_stats': parts.target_params(batch_stats)})}
        if queue_size:
            state |= new_queue(network, variables, images, jax.random.fold_in(key, 1), queue_size)
        return params, batch_stats, state

    def loss(params, batch_stats, method_state, batch, key):
        views = batch['view1'], batch['view2']
        query_images = parts.interleave_views(*views) if symmetric else views[0]     # [M, H, W, 3]
        key_images = parts.interleave_views(*views) if symmetric else views[1]
        output, batch_stats = forward_train(network, params, batch_stats, query_images, key=key,
                                            num_devices=num_devices)
        followed = method_state['target']
        keys, target_stats = _project(target, followed, key_images, key, shuffled, num_devices)
        keys = jax.lax.stop_gradient(keys)                                       # [M, D], unit length
        small, batch_stats = parts.predict_small_views(original, params, batch_stats, batch, each_view=symmetric,
                                                       key=key, num_devices=num_devices)
        pairs = _pairs(l2_normalize(output.prediction), keys, symmetric, [l2_normalize(q) for q in small])
        with jax.named_scope('loss'):
            queue = method_state.get('queue')
            if queue is None or batch_negatives:
                # Every query meets the keys of the global batch.
                terms = [info_nce_in_batch(q, parts.everywhere(k, mesh), queue, temperature=temperature)
                         for q, k in pairs]
            else:
                terms = [info_nce(q, k, queue, temperature=temperature) for q, k in pairs]
            weight = 1 if queue_size else 2 * temperature                        # moco-v3 moco/builder.py
            contrastive, metrics = parts.mean_over_pairs(terms)
            contrastive *= weight * (1 + symmetric)
            carry = {'batch_stats': target_stats} | ({'keys': keys} if queue_size else {})
            return parts.with_probe(contrastive, metrics, output, batch['label'], batch_stats, carry)

    def after_update(method_state, params, aux, step):
        # The original does this at the beginning of the next step, with that step's momentum.
        rate = (schedules.rising_momentum(step + 1, base=momentum, total_steps=num_train_steps)
                if momentum_rises else momentum)
        state = {'target': {
            'params': parts.moving_average(method_state['target']['params'], params, rate),
            'batch_stats': aux.carry['batch_stats']}}
        if queue_size:
            state |= enqueue(method_state['queue'], method_state['pointer'],
                             parts.everywhere(aux.carry['keys'], mesh))
        return state

    return Method(init, loss, after_update, takes_small_views=True)


def _project(target, variables, images, key, shuffled, num_devices):
    """The unit keys [M, D] of images [M, H, W, 3], and the target's new statistics."""
    if shuffled:
        order = jax.random.permutation(key, len(images))
        images = images[order]
    output, stats = forward_train(target, variables['params'], variables['batch_stats'], images,
                                  key=jax.random.fold_in(key, 1), num_devices=num_devices)
    keys = l2_normalize(output.projection)
    return keys[jnp.argsort(order)] if shuffled else keys, stats


def _pairs(queries, keys, symmetric, small):
    """[(queries, their keys)], for a symmetric loss both ways; and those of the small views with all keys."""
    queries, keys = (parts.split_views(rows) if symmetric else (rows,) for rows in (queries, keys))
    return [*zip(queries, keys[::-1]), *((query, key) for query in small for key in keys)]


def _check(momentum, queue_size, key_groups):
    if not 0 <= momentum <= 1:
        raise ValueError(f'method.momentum is {momentum}: it must be in [0, 1].')
    if queue_size < 0:
        raise ValueError(f'method.queue_size is {queue_size}: it must be 0 (no queue) or more.')
    if key_groups not in KEY_GROUPS:
        raise ValueError(f'method.key_groups is {key_groups!r}: choose one of {", ".join(KEY_GROUPS)}.')
