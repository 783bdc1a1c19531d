"""Projection heads: from features to the space where the loss is computed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from simclr_jax.models.norm import BatchNorm

_MODES = ('none', 'linear', 'nonlinear')


class ProjectionHead(nn.Module):
    """A small MLP, by default SimCLR's g (google-research/simclr tf2/model.py).

    Hidden layers are Dense, BatchNorm, ReLU; the last is Dense and a BatchNorm without offset.
    Other methods' heads are settings of the same: MoCo v2's has biases and no norms, BYOL's
    projector and predictor have hidden biases and end in a bare Dense.

    Attributes:
        mode: 'none' (z = h), 'linear' (the last layer alone) or 'nonlinear'.
        num_layers: Dense layers of a nonlinear head, the last included.
        hidden_width: of the hidden layers; 0 takes the width of the features.
        out_dim: width of the last layer.
        norm, final_norm: a BatchNorm after the hidden, and after the last, Dense layers.
        bias, final_bias: a bias in the hidden, and in the last, Dense layers.
        init_stddev: of the kernels at the start; 0 takes 1 / sqrt(input width), as Haiku's BYOL.
        norm_groups, norm_strided, norm_momentum, norm_epsilon: see `BatchNorm`.
        dtype: of the matrix products. Parameters, norms and outputs are float32.

    >>> import jax, jax.numpy as jnp, simclr_jax
    >>> head, features = simclr_jax.ProjectionHead(num_layers=2, out_dim=8), jnp.zeros((4, 16))
    >>> variables = head.init(jax.random.key(0), features, True)
    >>> layers, updates = head.apply(variables, features, True, mutable=['batch_stats'])
    >>> [layer.shape for layer in layers]               # h, the hidden layer, z
    [(4, 16), (4, 16), (4, 8)]
    """

    mode: str = 'nonlinear'
    num_layers: int = 3
    hidden_width: int = 0
    out_dim: int = 128
    norm: bool = True
    final_norm: bool = True
    bias: bool = False
    final_bias: bool = False
    init_stddev: float = 0.01
    norm_groups: int = 1
    norm_strided: bool = False
    norm_momentum: float = 0.9
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Maps features [B, D] to (h, layer 1, ..., z), all float32; z is [B, out_dim].

        Raises ValueError for another number of axes, an unknown mode or a nonlinear head of no layers.
        """
        if features.ndim != 2:
            raise ValueError(f'ProjectionHead takes features [B, D], not {list(features.shape)}.')
        kernel_init = (nn.initializers.normal(self.init_stddev) if self.init_stddev
                       else nn.initializers.lecun_normal())
        if self.mode not in _MODES:
            raise ValueError(f'The mode of a head is {self.mode!r}: it takes {", ".join(_MODES)}.')
        if self.mode == 'nonlinear' and self.num_layers < 1:
            raise ValueError(f'The num_layers of a nonlinear head is {self.num_layers}: it takes 1 or more; '
                             "mode 'none' is no head.")
        layers, num_layers = [features], {'none': 0, 'linear': 1, 'nonlinear': self.num_layers}[self.mode]
        for index in range(1, num_layers + 1):
            last = index == num_layers
            x = nn.Dense(self.out_dim if last else self.hidden_width or features.shape[-1],
                         use_bias=self.final_bias if last else self.bias,
                         kernel_init=kernel_init, dtype=self.dtype,
                         name=f'dense{index}')(layers[-1]).astype(jnp.float32)
            if self.final_norm if last else self.norm:
                x = BatchNorm(use_running_average=not train, groups=self.norm_groups,
                              strided=self.norm_strided, momentum=self.norm_momentum,
                              epsilon=self.norm_epsilon, use_bias=not last, name=f'norm{index}')(x)
            layers.append(x if last else nn.relu(x))
        return tuple(layers)
