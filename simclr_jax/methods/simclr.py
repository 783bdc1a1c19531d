"""SimCLR (Chen et al. 2020, Algorithm 1), with a linear probe learning alongside on stopped gradients."""

import inspect
from collections.abc import Callable

import jax

from simclr_jax.config.names import is_path, resolve
from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import check_no_predictor, mean_over_pairs, one_network, split_views
from simclr_jax.models.network import Network
from simclr_jax.objectives.margin import margin_triplet
from simclr_jax.objectives.nt_logistic import nt_logistic
from simclr_jax.objectives.nt_xent import nt_xent
from simclr_jax.objectives.sup_con import sup_con


def simclr(network: Network, *, num_train_steps: int, temperature: float, normalize: bool = True,
           decoupled: bool = False, loss: str | Callable = 'nt_xent', margin: float = 0.8,
           mining: str = 'none', loss_weight: float = 1.0, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The SimCLR method around `network`.

    With small views the loss is the mean over the pairs of the two views, and of each of them with each small one.

    Args:
        network, num_train_steps: see `Method`.
        temperature: tau of eq. 1, more than 0.
        normalize: l2-normalise the projections first.
        decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2021).
        loss: nt_xent; nt_logistic or margin, which the paper compares it with (Table 4); sup_con, whose
            positives are all views of a class (Khosla et al. 2020); or a function of your own, or its
            'package.module:Name': (z1, z2: [N, D]) -> (scalar, metrics). It is given those of the options
            here, of `mesh`, and of `labels` [N] (-1 = none), that its signature names.
        margin: of the loss of this name, m.
        mining: semi_hard takes one negative of each anchor for nt_logistic and margin; none takes all.
        loss_weight: multiplies the loss; 2.0 gives the scale of the official code (tf2/objective.py
        adds the two directions where the paper averages over 2N anchors).
        mesh: gathers the negatives over all its devices; None for one device.

    Raises:
        ValueError: the network has a predictor; an unknown loss, or an option that it does not have.
    """
    del num_train_steps
    check_no_predictor(network, 'simclr')
    contrast = _choose_loss(loss, temperature=temperature, normalize=normalize, decoupled=decoupled,
                            margin=margin, mining=mining, mesh=mesh)

    def compare(output, labels, method_state, small):
        views = split_views(output.projection)
        pairs = [views, *((view, other) for other in small for view in views)]
        contrastive, metrics = mean_over_pairs([contrast(*pair, labels) for pair in pairs])
        return loss_weight * contrastive, {'contrastive_loss': contrastive, **metrics}, method_state

    # Both views go through the encoder at once, so that BatchNorm sees all 2N images.
    return one_network(network, compare, each_view=False, mesh=mesh, takes_small_views=True)


def _choose_loss(loss: str | Callable, *, mesh: jax.sharding.Mesh | None, **options) -> Callable:
    """(z1, z2, labels) -> (scalar, metrics), of a loss by its name, or of a function."""
    losses = {'nt_xent': nt_xent, 'nt_logistic': nt_logistic, 'margin': margin_triplet, 'sup_con': sup_con}
    if isinstance(loss, str) and loss not in losses and not is_path(loss):
        raise ValueError(f"method.loss is {loss!r}; the losses are {', '.join(losses)}, or "
                         "'package.module:Name'.")
    function = loss if callable(loss) else losses.get(loss) or resolve(loss, 'method.loss')
    if not callable(function):
        raise ValueError(f'method.loss is {loss!r}, which is a {type(function).__name__}: it takes a function.')
    taken = inspect.signature(function).parameters
    if options['decoupled'] and 'decoupled' not in taken:
        raise ValueError(f'method.decoupled applies to nt_xent alone: {loss} has no denominator.')
    if options['mining'] != 'none' and 'mining' not in taken:
        raise ValueError(f'method.mining applies to nt_logistic and margin alone: {loss} weights all negatives.')
    given = {name: value for name, value in {**options, 'mesh': mesh}.items() if name in taken}
    if 'labels' in taken:
        return lambda z1, z2, labels: function(z1, z2, labels=labels, **given)
    return lambda z1, z2, labels: function(z1, z2, **given)
