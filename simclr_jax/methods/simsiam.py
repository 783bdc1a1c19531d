"""SimSiam (Chen & He 2021, Algorithm 1): BYOL without the second network."""

import jax

from simclr_jax.methods.base import Method
from simclr_jax.methods.parts import one_network, split_views
from simclr_jax.models.network import Network
from simclr_jax.objectives.cosine_regression import cosine_regression


def simsiam(network: Network, *, num_train_steps: int, mesh: jax.sharding.Mesh | None = None) -> Method:
    """The SimSiam method around `network`, as facebookresearch/simsiam simsiam/builder.py.

    Each view's prediction regresses the projection of the other, through which no gradient flows. The loss
    is the paper's, the mean of -cos over both directions, in [-1, 1]. BatchNorm sees each view by itself.

    Its arguments are those of every `Method`. ValueError: the network has no predictor, without which it collapses
    (sec. 4.2).
    """
    del num_train_steps
    if not network.predictor:
        raise ValueError("method 'simsiam' needs a predictor: set predictor.mode to 'nonlinear'.")

    def compare(output, labels, method_state):
        del labels
        prediction1, prediction2 = split_views(output.prediction)                # [N, D] each
        goal1, goal2 = split_views(jax.lax.stop_gradient(output.projection))
        distance = cosine_regression(prediction1, goal2) + cosine_regression(prediction2, goal1)
        return distance.mean() / 4 - 1, {}, method_state        # 2 - 2 cos, twice

    return one_network(network, compare, each_view=True, mesh=mesh)
