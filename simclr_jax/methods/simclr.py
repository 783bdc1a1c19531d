"""SimCLR (Chen et al. 2020, Algorithm 1), with a linear probe learning alongside on stopped gradients."""

import jax
import jax.numpy as jnp
import optax

from simclr_jax.methods.base import Aux, Method
from simclr_jax.methods.views import interleave_views, split_views
from simclr_jax.models.network import Network
from simclr_jax.objectives.nt_xent import nt_xent


def simclr(network: Network, *, temperature: float, normalize: bool = True, loss_weight: float = 1.0,
           mesh: jax.sharding.Mesh | None = None) -> Method:
    """The SimCLR method around `network`.

    Args:
        network: encoder, projection head and, if it has classes, the online probe.
        temperature: tau of eq. 1, more than 0.
        normalize: l2-normalise the projections first.
        loss_weight: multiplies NT-Xent; 2.0 gives the scale of the official code (tf2/objective.py
        adds the two directions where the paper averages over 2N anchors).
        mesh: gathers the negatives over all its devices; None for one device.
    """

    def init(key, images):
        variables = network.init(key, images, train=False)
        return variables['params'], variables.get('batch_stats', {}), ()

    def loss(params, batch_stats, method_state, batch):
        del method_state  # SimCLR has none
        # Both views go through the encoder at once, so that BatchNorm sees all 2N images.
        images = interleave_views(batch['view1'], batch['view2'])                # [2N, H, W, 3]
        output, updates = network.apply({'params': params, 'batch_stats': batch_stats}, images,
                                        train=True, mutable=['batch_stats'])
        z1, z2 = split_views(output.projection)                                  # [N, D] each
        contrastive, metrics = nt_xent(z1, z2, temperature=temperature, normalize=normalize, mesh=mesh)
        total = loss_weight * contrastive
        metrics = {'contrastive_loss': contrastive, **metrics}
        if output.probe_logits is not None:
            probe_loss, probe_accuracy = online_probe(output.probe_logits, jnp.repeat(batch['label'], 2))
            total += probe_loss
            metrics |= {'probe_loss': probe_loss, 'probe_accuracy': probe_accuracy}
        return total, Aux(updates.get('batch_stats', {}), {'loss': total, **metrics})

    def after_update(method_state, params, aux, step):
        del params, aux, step
        return method_state

    return Method(init, loss, after_update)


def online_probe(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy and accuracy over the labelled rows; labels of -1 do not count.

    logits: [M, C] float32; labels: [M] int32. Without any labelled row both are 0.
    """
    known = labels >= 0
    count = jnp.maximum(known.sum(), 1)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    hits = logits.argmax(-1) == labels
    return (losses * known).sum() / count, (hits & known).sum() / count
