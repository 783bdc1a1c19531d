"""What the methods share: two views as one batch, the second network that follows, and the online probe."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from simclr_jax.methods.base import Aux, Method
from simclr_jax.models.network import Network, Output, forward_train, init_variables, norm_groups, regrouped


def interleave_views(view1: jax.Array, view2: jax.Array) -> jax.Array:
    """[N, ...] and [N, ...] -> [2N, ...], the views of image i in rows 2i and 2i + 1.

    The encoder and its BatchNorm then see all 2N images at once. Concatenation would put the views of one
    image N rows apart and so, on a batch split over devices, move half of the images between them.
    Interleaved, every row stays where it is.
    """
    return jnp.stack([view1, view2], axis=1).reshape(-1, *view1.shape[1:])


def split_views(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[2N, ...] -> the [N, ...] views that `interleave_views` joined."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])  # [N, 2, ...]
    return pairs[:, 0], pairs[:, 1]


def everywhere(rows, mesh):
    """The rows of all devices on each of them: one all-gather."""
    if mesh is None:
        return rows
    return jax.lax.with_sharding_constraint(
        rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def predict_small_views(network: Network, params: Any, batch_stats: Any, batch: dict[str, jax.Array], *,
                        each_view: bool, key: jax.Array, num_devices: int) -> tuple[list[jax.Array], Any]:
    """(prediction [N, D] of each small view, batch_stats after them); ([], batch_stats) where there are none.

    A second pass, as the encoder takes one size at a time (facebookresearch/swav src/resnet50.py): BatchNorm sees the
    small views alone. each_view: each by itself, see `one_network`. A prediction without a predictor is a projection.
    """
    if 'small' not in batch:
        return [], batch_stats
    count = batch['small'].shape[1]
    if each_view and norm_groups(network) == 1:
        network = regrouped(network, count, strided=True)
    images = batch['small'].reshape(-1, *batch['small'].shape[2:])               # [N k, s, s, 3]
    output, batch_stats = forward_train(network.clone(num_classes=0), params, batch_stats, images,
                                        key=jax.random.fold_in(key, 2), num_devices=num_devices)
    predictions = output.prediction.reshape(-1, count, output.prediction.shape[-1])
    return [predictions[:, place] for place in range(count)], batch_stats


def one_network(network: Network, compare: Callable, *, each_view: bool, mesh: jax.sharding.Mesh | None,
                takes_small_views: bool = False) -> Method:
    """A method that trains one network, and keeps no state beside it unless two functions are replaced.

    Args:
        compare: (Output of the 2N interleaved views, labels [N], method_state) -> (scalar, metrics, carry).
        each_view: BatchNorm sees each view by itself, as where the original makes one pass a view (unless
            encoder.norm_groups says otherwise); False: all 2N images at once.
        mesh: the devices that share the batch.
        takes_small_views: `compare` has a fourth argument, a list of their projections [N, D].
    """
    each = network
    if each_view and norm_groups(network) == 1:
        network = regrouped(network, 2, strided=True)
    num_devices = mesh.size if mesh else 1

    def init(key, images):
        variables = init_variables(network, key, images)
        return variables['params'], variables['batch_stats'], ()

    def loss(params, batch_stats, method_state, batch, key):
        images = interleave_views(batch['view1'], batch['view2'])                # [2N, H, W, 3]
        output, batch_stats = forward_train(network, params, batch_stats, images, key=key,
                                            num_devices=num_devices)
        arguments = output, batch['label'], method_state
        if takes_small_views:
            small, batch_stats = predict_small_views(each, params, batch_stats, batch, each_view=each_view, key=key,
                                                     num_devices=num_devices)
            arguments = *arguments, small
        with jax.named_scope('loss'):
            value, metrics, carry = compare(*arguments)
            return with_probe(value, metrics, output, batch['label'], batch_stats, carry)

    def after_update(method_state, params, aux, step):
        del params, aux, step
        return method_state

    return Method(init, loss, after_update, takes_small_views)


def check_no_predictor(network: Network, name: str) -> None:
    """ValueError for a network that has a predictor, which the method of this name does not use."""
    if network.predictor:
        raise ValueError(f"method '{name}' has no predictor: set predictor.mode to 'none'.")


def mean_over_pairs(terms: list[tuple[jax.Array, dict[str, jax.Array]]]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of the losses of pairs of views and their metrics: the mean of each."""
    return jax.tree.map(lambda *values: sum(values) / len(values), *terms)


def target_network(network: Network) -> Network:
    """`network` without predictor and probe: what a target computes, a projection of images."""
    return network.clone(predictor=None, num_classes=0)


def target_params(params: dict[str, Any]) -> dict[str, Any]:
    """The part of the online parameters that the target has too."""
    return {name: params[name] for name in ('encoder', 'head') if name in params}


def moving_average(target: Any, online: dict[str, Any], momentum: jax.Array | float) -> Any:
    """momentum * target + (1 - momentum) * online, leaf by leaf; BatchNorm statistics are no part of it."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, target, target_params(online))


def with_probe(loss: Any, metrics: dict[str, jax.Array], output: Output, labels: jax.Array, batch_stats: Any,
               carry: Any = ()) -> tuple[jax.Array, Aux]:
    """What `Method.loss` returns: the loss of the method and the probe's, and metrics whose `loss` is the method's."""
    probe_loss, probe_metrics = online_probe(output.probe_logits, labels)
    return loss + probe_loss, Aux(batch_stats, {'loss': loss, **metrics, **probe_metrics}, carry)


def online_probe(logits: jax.Array | None, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy over the labelled rows, and the metrics 'probe_loss' and 'probe_accuracy'.

    Args:
        logits: [M, C] float32, or None without a probe: the loss is then 0, without metrics.
        labels: [N] int32, -1 for none, each that of M / N neighbouring rows. Without any label
            loss and accuracy are 0.
    """
    if logits is None:
        return jnp.zeros(()), {}
    labels = jnp.repeat(labels, logits.shape[0] // labels.shape[0])              # [M]
    known = labels >= 0
    count = jnp.maximum(known.sum(), 1)
    # Not by integer labels, whose gradient is a scatter.
    losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(jnp.where(known, labels, 0), logits.shape[-1]))
    hits = logits.argmax(-1) == labels
    loss = (losses * known).sum() / count
    return loss, {'probe_loss': loss, 'probe_accuracy': (hits & known).sum() / count}
