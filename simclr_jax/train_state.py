"""Everything that a training run must remember between two steps."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """The whole state of training: with the seed, it decides every step to come.

    It holds no key, iterator or epoch counter: these are functions of the seed and of `step`.

    Attributes:
        step: int32 scalar array, the number of optimizer steps done.
        params: trainable variables, a nested dict of float32 arrays.
        batch_stats: running BatchNorm statistics, a nested dict of float32 arrays.
        opt_state: the state of the optax optimizer.
        method_state: what the method keeps besides (target network, queue); () when nothing.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    method_state: Any
