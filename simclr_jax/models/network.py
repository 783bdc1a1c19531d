"""The network of a run: pixel normalisation, encoder, projection head, online probe."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet

_DTYPES = ('float32', 'bfloat16')
_NORM_SETTINGS = ('norm_groups', 'norm_momentum', 'norm_epsilon')


class Output(NamedTuple):
    """What `Network` computes from B images; a pytree.

    Attributes:
        layers: (h, layer 1 of the head, ..., z), each [B, width] float32.
        probe_logits: [B, num_classes] float32, or None without a probe.
    """

    layers: tuple[jax.Array, ...]
    probe_logits: jax.Array | None

    @property
    def features(self) -> jax.Array:
        """The encoder's output h [B, D]."""
        return self.layers[0]

    @property
    def projection(self) -> jax.Array:
        """The head's output z [B, out_dim]; h itself under head mode 'none'."""
        return self.layers[-1]


class Network(nn.Module):
    """Encoder, head and probe as one module; its parameters are 'encoder', 'head', 'probe'.

    Attributes:
        encoder: called as encoder(images, train) -> features [B, D].
        head: called as head(features, train) -> tuple of layers, features first.
        num_classes: width of the probe; 0 for no probe.
        probe_layer: the layer that the probe reads: 0 = features, k = output of head layer k,
            -1 = projection. No gradient flows through it, so the probe never trains the encoder.
        mean, std: of the pixels in [0, 1], per channel.
    """

    encoder: nn.Module
    head: nn.Module
    num_classes: int = 0
    probe_layer: int = 0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Output:
        """Applies the network to images [B, H, W, 3], uint8 or float in [0, 1].

        With train=True, batch norm uses the batch's statistics and the collection 'batch_stats'
        must be mutable. Raises ValueError when the head has no layer `probe_layer`.
        """
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        images = (images - np.float32(self.mean)) / np.float32(self.std)
        layers = self.head(self.encoder(images, train), train)
        if self.num_classes == 0:
            return Output(layers, None)
        if not -len(layers) <= self.probe_layer < len(layers):
            raise ValueError(f'probe_layer={self.probe_layer} does not exist: the head has layers '
                             f'0 (features) to {len(layers) - 1} (projection)')
        probe = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name='probe')
        return Output(layers, probe(jax.lax.stop_gradient(layers[self.probe_layer])))


def make_network(*, encoder: Mapping[str, Any], head: Mapping[str, Any], num_classes: int = 0,
                 probe_layer: int = 0, mean: Sequence[float] = (0.0, 0.0, 0.0),
                 std: Sequence[float] = (1.0, 1.0, 1.0)) -> Network:
    """Builds a `Network` from plain values, as they stand in a configuration.

    Args:
        encoder: fields of `ResNet`, with dtype as a string ('float32' or 'bfloat16').
        head: fields of `ProjectionHead`; dtype and norm settings default to the encoder's.
        num_classes, probe_layer, mean, std: see `Network`.

    Raises:
        ValueError: for an unknown dtype.
    """
    shared = {key: encoder[key] for key in (*_NORM_SETTINGS, 'dtype') if key in encoder}
    return Network(encoder=ResNet(**_with_dtype(encoder)),
                   head=ProjectionHead(**_with_dtype({**shared, **head})),
                   num_classes=num_classes, probe_layer=probe_layer,
                   mean=tuple(mean), std=tuple(std))


def _with_dtype(fields):
    """The fields with their dtype, a string, as a jax dtype."""
    name = fields.get('dtype', 'float32')
    if name not in _DTYPES:
        raise ValueError(f'unknown dtype {name!r}; choose one of {", ".join(_DTYPES)}')
    return {**fields, 'dtype': jnp.dtype(name)}
