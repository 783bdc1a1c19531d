"""What a method is: three pure functions of arrays. The trainer knows nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Tree = Any


class Aux(NamedTuple):
    """What `loss` returns beside the scalar."""

    batch_stats: Tree                     # running BatchNorm statistics after this batch
    metrics: dict[str, jax.Array]         # float32 scalars for the log; 'loss' among them stands there for the scalar
    carry: Tree = ()                      # handed to after_update: whatever the method must remember


class Method(NamedTuple):
    """A self-supervised method.

    A function (network, *, num_train_steps, mesh, ...) makes it: of encoder, projector, predictor where the method
    has one and, if there are classes, the online probe; of the length of the run, for what follows a schedule; and
    of the devices that share the batch, None for one. Its other arguments are fields of the config's block `method`.

    init(key, images [1, H, W, 3]) -> (params, batch_stats, method_state)
    loss(params, batch_stats, method_state, batch, key) -> (scalar float32, Aux)
      batch: {'view1', 'view2': [N, H, W, 3], 'label': [N] int32, -1 = none, 'index': [N] int32, the images'
      numbers in the training split}, sharded along N; with k small views of side s also 'small': [N, k, s, s, 3].
      key: of this step, for whatever the method draws.
    after_update(method_state, params, aux, step) -> method_state
      called with the new params and the number of updates before this one; `method_state` (a target
      network, a queue) is donated, checkpointed and resumed with the rest of the state, and never
      read by the trainer. See TrainState.variables for its one convention.
    """

    init: Callable[..., tuple[Tree, Tree, Tree]]
    loss: Callable[..., tuple[jax.Array, Aux]]
    after_update: Callable[..., Tree]
    takes_small_views: bool = False     # whether `loss` reads 'small'
