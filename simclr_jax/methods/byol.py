"""BYOL (Grill et al. 2020, Algorithm 1): predict the target network's projection of the other view."""

import jax
import jax.numpy as jnp

from simclr_jax.methods import parts
from simclr_jax.methods.base import Method
from simclr_jax.models.network import Network, forward_train, init_variables, norm_groups, regrouped
from simclr_jax.objectives.cosine_regression import cosine_regression
from simclr_jax.training import schedules


def byol(network: Network, *, num_train_steps: int, momentum: float = 0.996, momentum_rises: bool = True,
         stop_gradient: bool = True, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The BYOL method around `network`, as deepmind-research byol/byol_experiment.py.

    Each view is predicted from the other: the loss is the sum of both directions, mean over images.
    BatchNorm sees each view by itself (unless encoder.norm_groups says otherwise), as in the official
    code, which makes one pass a view. Small views predict both targets and are no target; the loss is then twice
    the mean over all directions.

    Args:
        network, mesh: see `Method`. Without a predictor the online projection itself regresses the target: the
            ablation that collapses.
        num_train_steps: over which the target's momentum rises to 1.
        momentum: of the target at step 0, in [0, 1].
        momentum_rises: along a cosine to 1; False keeps it.
        stop_gradient: False lets the gradient flow into the target's parameters as if they were the
            online ones; for the ablation, and only of use with momentum 0.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f'method.momentum is {momentum}: it must be in [0, 1].')
    online = regrouped(network, 2, strided=True) if norm_groups(network) == 1 else network
    target = parts.target_network(online)
    num_devices = mesh.size if mesh else 1

    def init(key, images):
        variables = init_variables(network, key, images)
        # The target starts elsewhere, from weights of its own (byol_experiment.py).
        return variables['params'], variables['batch_stats'], {
            'target': init_variables(target, jax.random.fold_in(key, 1), images)}

    def loss(params, batch_stats, method_state, batch, key):
        images = parts.interleave_views(batch['view1'], batch['view2'])          # [2N, H, W, 3]
        output, batch_stats = forward_train(online, params, batch_stats, images, key=key,
                                            num_devices=num_devices)
        small, batch_stats = parts.predict_small_views(network, params, batch_stats, batch, each_view=True, key=key,
                                                       num_devices=num_devices)
        followed = method_state['target']
        aimed_at = followed['params'] if stop_gradient else parts.target_params(params)
        aim, target_stats = forward_train(target, aimed_at, followed['batch_stats'], images,
                                          key=jax.random.fold_in(key, 1), num_devices=num_devices)
        goal = jax.lax.stop_gradient(aim.projection) if stop_gradient else aim.projection
        goals = parts.split_views(goal)                                          # [N, D] each
        predictions = parts.split_views(output.prediction)
        pairs = [*zip(predictions, goals[::-1]), *((other, each) for other in small for each in goals)]
        with jax.named_scope('loss'):
            regression = 2 / len(pairs) * jnp.mean(sum(cosine_regression(*pair) for pair in pairs))
            return parts.with_probe(regression, {'regression_loss': regression}, output, batch['label'], batch_stats,
                                    carry=target_stats)

    def after_update(method_state, params, aux, step):
        rate = (schedules.rising_momentum(step, base=momentum, total_steps=num_train_steps)
                if momentum_rises else momentum)
        followed = parts.moving_average(method_state['target']['params'], params, rate)
        return {'target': {'params': followed, 'batch_stats': aux.carry}}

    return Method(init, loss, after_update, takes_small_views=True)
