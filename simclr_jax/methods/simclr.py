"""SimCLR (Chen et al. 2020, Algorithm 1), with a linear probe learning alongside on stopped gradients."""

import jax

from simclr_jax.methods.base import Aux, Method
from simclr_jax.methods.probe import online_probe
from simclr_jax.methods.views import interleave_views, split_views
from simclr_jax.models.network import Network, forward_train
from simclr_jax.objectives.nt_xent import nt_xent


def simclr(network: Network, *, num_train_steps: int, temperature: float, normalize: bool = True,
           decoupled: bool = False, loss_weight: float = 1.0,
           mesh: jax.sharding.Mesh | None = None) -> Method:
    """The SimCLR method around `network`.

    Args:
        network: encoder, projection head and, if it has classes, the online probe.
        num_train_steps: not needed here; other methods have schedules of their own.
        temperature: tau of eq. 1, more than 0.
        normalize: l2-normalise the projections first.
        decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2021).
        loss_weight: multiplies NT-Xent; 2.0 gives the scale of the official code (tf2/objective.py
        adds the two directions where the paper averages over 2N anchors).
        mesh: gathers the negatives over all its devices; None for one device.

    Raises:
        ValueError: the network has a predictor.
    """
    del num_train_steps
    if network.predictor:
        raise ValueError("method 'simclr' has no predictor: set predictor.mode to 'none'.")
    num_devices = mesh.size if mesh else 1

    def init(key, images):
        variables = network.init(key, images, train=False)
        return variables['params'], variables.get('batch_stats', {}), ()

    def loss(params, batch_stats, method_state, batch, key):
        del method_state, key  # SimCLR has no state of its own and draws nothing
        # Both views go through the encoder at once, so that BatchNorm sees all 2N images.
        images = interleave_views(batch['view1'], batch['view2'])                # [2N, H, W, 3]
        output, batch_stats = forward_train(network, params, batch_stats, images, num_devices=num_devices)
        z1, z2 = split_views(output.projection)                                  # [N, D] each
        contrastive, metrics = nt_xent(z1, z2, temperature=temperature, normalize=normalize,
                                       decoupled=decoupled, mesh=mesh)
        probe_loss, probe_metrics = online_probe(output.probe_logits, batch['label'])
        total = loss_weight * contrastive + probe_loss
        metrics = {'loss': total, 'contrastive_loss': contrastive, **metrics, **probe_metrics}
        return total, Aux(batch_stats, metrics)

    def after_update(method_state, params, aux, step):
        del params, aux, step
        return method_state

    return Method(init, loss, after_update)
