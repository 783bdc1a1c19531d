"""SimCLR (Chen et al. 2020, Algorithm 1), with a linear probe learning alongside on stopped gradients."""

import functools
import inspect
from collections.abc import Callable

import jax

from simclr_jax.config.names import is_path, resolve
from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import interleave_views, split_views, with_probe
from simclr_jax.models.network import Network, forward_train, init_variables
from simclr_jax.objectives.margin import margin_triplet
from simclr_jax.objectives.nt_logistic import nt_logistic
from simclr_jax.objectives.nt_xent import nt_xent


def simclr(network: Network, *, num_train_steps: int, temperature: float, normalize: bool = True,
           decoupled: bool = False, loss: str | Callable = 'nt_xent', margin: float = 0.8,
           mining: str = 'none', loss_weight: float = 1.0, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The SimCLR method around `network`.

    Args:
        network: encoder, projection head and, if it has classes, the online probe.
        num_train_steps: not needed here; other methods have schedules of their own.
        temperature: tau of eq. 1, more than 0.
        normalize: l2-normalise the projections first.
        decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2021).
        loss: nt_xent; nt_logistic or margin, which the paper compares it with (Table 4); or a function of
            your own, or its 'package.module:Name': (z1, z2: [N, D]) -> (scalar, metrics). It is given
            those of the options here, and of `mesh`, that its signature names.
        margin: of the loss of this name, m.
        mining: semi_hard takes one negative of each anchor for nt_logistic and margin; none takes all.
        loss_weight: multiplies the loss; 2.0 gives the scale of the official code (tf2/objective.py
        adds the two directions where the paper averages over 2N anchors).
        mesh: gathers the negatives over all its devices; None for one device.

    Raises:
        ValueError: the network has a predictor; an unknown loss, or an option that it does not have.
    """
    del num_train_steps
    if network.predictor:
        raise ValueError("method 'simclr' has no predictor: set predictor.mode to 'none'.")
    num_devices = mesh.size if mesh else 1
    contrast = _choose_loss(loss, temperature=temperature, normalize=normalize, decoupled=decoupled,
                            margin=margin, mining=mining, mesh=mesh)

    def init(key, images):
        variables = init_variables(network, key, images)
        return variables['params'], variables['batch_stats'], ()

    def total_loss(params, batch_stats, method_state, batch, key):
        del method_state  # SimCLR has none
        # Both views go through the encoder at once, so that BatchNorm sees all 2N images.
        images = interleave_views(batch['view1'], batch['view2'])                # [2N, H, W, 3]
        output, batch_stats = forward_train(network, params, batch_stats, images, key=key,
                                            num_devices=num_devices)
        z1, z2 = split_views(output.projection)                                  # [N, D] each
        with jax.named_scope('loss'):
            contrastive, metrics = contrast(z1, z2)
            return with_probe(loss_weight * contrastive, {'contrastive_loss': contrastive, **metrics}, output,
                              batch['label'], batch_stats)

    def after_update(method_state, params, aux, step):
        del params, aux, step
        return method_state

    return Method(init, total_loss, after_update)


def _choose_loss(loss: str | Callable, *, mesh: jax.sharding.Mesh | None, **options) -> Callable:
    """(z1, z2) -> (scalar, metrics), of a loss by its name, or of a function."""
    losses = {'nt_xent': nt_xent, 'nt_logistic': nt_logistic, 'margin': margin_triplet}
    if isinstance(loss, str) and loss not in losses and not is_path(loss):
        raise ValueError(f"method.loss is {loss!r}; the losses are {', '.join(losses)}, or "
                         "'package.module:Name'.")
    function = loss if callable(loss) else losses.get(loss) or resolve(loss, 'method.loss')
    taken = inspect.signature(function).parameters
    if options['decoupled'] and 'decoupled' not in taken:
        raise ValueError(f'method.decoupled applies to nt_xent alone: {loss} has no denominator.')
    if options['mining'] != 'none' and 'mining' not in taken:
        raise ValueError(f'method.mining applies to nt_logistic and margin alone: {loss} weights all negatives.')
    return functools.partial(function, **{name: value for name, value in {**options, 'mesh': mesh}.items()
                                          if name in taken})
