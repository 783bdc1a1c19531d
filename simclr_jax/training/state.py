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
        method_state: what the method keeps besides (target network, queue); () when nothing. A
            second network, which learns by following this one, is its entry 'target', with 'params'
            and 'batch_stats' of its own.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    method_state: Any

    def variables(self, network: str = 'online') -> dict[str, Any]:
        """{'params', 'batch_stats'} of the 'online' network or of the 'target'; ValueError without one."""
        if network == 'online':
            return {'params': self.params, 'batch_stats': self.batch_stats}
        if network == 'target' and 'target' in self.method_state:
            return self.method_state['target']
        raise ValueError(f'eval.encoder is {network!r}: ' + (
            'this method has no target network, only an online one.' if network == 'target'
            else "it takes 'online' or 'target'."))
