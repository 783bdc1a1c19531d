"""The network of a run: pixel normalisation, encoder, projector, predictor, online probe."""

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
        prediction: q [B, out_dim] float32; z itself without a predictor.
        probe_logits: [B, num_classes] float32, or None without a probe.
    """

    layers: tuple[jax.Array, ...]
    prediction: jax.Array
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
    """Encoder, heads and probe as one module; its parameters are 'encoder', 'head', 'predictor', 'probe'.

    Attributes:
        encoder: called as encoder(images, train) -> features [B, D].
        head: called as head(features, train) -> tuple of layers, features first.
        predictor: called as predictor(projection, train) -> tuple of layers; None for none.
        num_classes: width of the probe; 0 for no probe.
        probe_layer: the layer that the probe reads: 0 = features, k = output of head layer k,
            -1 = projection. No gradient flows through it, so the probe never trains the encoder.
        mean, std: of the pixels in [0, 1], per channel.
        encoder_chunks: how many parts `forward_train` cuts a batch into for the encoder.
    """

    encoder: nn.Module
    head: nn.Module
    predictor: nn.Module | None = None
    num_classes: int = 0
    probe_layer: int = 0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    encoder_chunks: int = 1

    def setup(self):
        if self.num_classes:
            self.probe = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))

    def __call__(self, images: jax.Array, train: bool) -> Output:
        """Applies the network to images [B, H, W, 3], uint8 or float in [0, 1].

        With train=True, batch norm uses the batch's statistics and the collection 'batch_stats'
        must be mutable. Raises ValueError when the head has no layer `probe_layer`.
        """
        return self.project(self.encode(images, train), train)

    def encode(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, 3] -> features h [B, D] float32."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        return self.encoder((images - np.float32(self.mean)) / np.float32(self.std), train)

    def project(self, features: jax.Array, train: bool) -> Output:
        """Features h [B, D] -> everything that is computed from them."""
        layers = self.head(features, train)
        prediction = self.predictor(layers[-1], train)[-1] if self.predictor else layers[-1]
        if not self.num_classes:
            return Output(layers, prediction, None)
        if not -len(layers) <= self.probe_layer < len(layers):
            raise ValueError(f'probe_layer={self.probe_layer} does not exist: the head has layers '
                             f'0 (features) to {len(layers) - 1} (projection)')
        return Output(layers, prediction, self.probe(jax.lax.stop_gradient(layers[self.probe_layer])))


def forward_train(network: Network, params: Any, batch_stats: Any, images: jax.Array, *,
                  num_devices: int = 1) -> tuple[Output, Any]:
    """One pass in training mode over images [B, H, W, 3]: (output, new batch_stats).

    With `network.encoder_chunks` = k > 1 the encoder runs k times over B/k images, one chunk after
    the other, and once more in the backward pass, which then needs the activations of one chunk
    alone. The heads see the whole batch. BatchNorm of the encoder takes its statistics from each
    chunk, over all devices; the running ones are updated once, with the mean over the chunks.

    Args:
        num_devices: over which B is split; each cuts its own rows into k chunks, so none moves.

    Raises:
        ValueError: B is not divisible by num_devices * k.
    """
    variables = {'params': params, 'batch_stats': batch_stats}
    chunks = network.encoder_chunks
    if chunks == 1:
        output, updates = network.apply(variables, images, train=True, mutable=['batch_stats'])
        return output, updates.get('batch_stats', {})
    if images.shape[0] % (num_devices * chunks):
        raise ValueError(f'encoder_chunks is {chunks}: {images.shape[0]} views on {num_devices} devices do '
                         f'not divide into as many; choose a divisor of {images.shape[0] // num_devices}.')

    @jax.checkpoint
    def encode(rows):
        features, updates = network.apply(variables, rows, train=True, method='encode',
                                          mutable=['batch_stats'])
        return features, updates['batch_stats']

    parts = images.reshape(num_devices, chunks, -1, *images.shape[1:]).swapaxes(0, 1)
    parts = parts.reshape(chunks, -1, *images.shape[1:])                         # [k, B/k, H, W, 3]
    features, stats = jax.lax.map(encode, parts)                                 # [k, B/k, D]
    features = features.reshape(chunks, num_devices, -1, features.shape[-1]).swapaxes(0, 1)
    variables |= {'batch_stats': batch_stats | jax.tree.map(lambda stat: stat.mean(0), stats)}
    output, updates = network.apply(variables, features.reshape(images.shape[0], -1), train=True,
                                    method='project', mutable=['batch_stats'])
    return output, updates['batch_stats']


def regrouped(network: Network, groups: int, *, strided: bool) -> Network:
    """The same network, its BatchNorms with other groups of rows in training; see `BatchNorm`."""
    def with_groups(module):
        return module and module.clone(norm_groups=groups, norm_strided=strided)

    return network.clone(encoder=with_groups(network.encoder), head=with_groups(network.head),
                         predictor=with_groups(network.predictor))


def make_network(*, encoder: Mapping[str, Any], head: Mapping[str, Any],
                 predictor: Mapping[str, Any] | None = None, num_classes: int = 0,
                 probe_layer: int = 0, mean: Sequence[float] = (0.0, 0.0, 0.0),
                 std: Sequence[float] = (1.0, 1.0, 1.0), encoder_chunks: int = 1) -> Network:
    """Builds a `Network` from plain values, as they stand in a configuration.

    Args:
        encoder: fields of `ResNet`, with dtype as a string ('float32' or 'bfloat16').
        head: fields of `ProjectionHead`; dtype and norm settings default to the encoder's.
        predictor: as head; None or mode 'none' builds none.
        num_classes, probe_layer, mean, std, encoder_chunks: see `Network`.

    Raises:
        ValueError: for an unknown dtype.
    """
    shared = {key: encoder[key] for key in (*_NORM_SETTINGS, 'dtype') if key in encoder}

    def make_head(fields):
        return ProjectionHead(**_with_dtype({**shared, **fields}))

    has_predictor = predictor and predictor.get('mode') != 'none'
    return Network(encoder=ResNet(**_with_dtype(encoder)), head=make_head(head),
                   predictor=make_head(predictor) if has_predictor else None,
                   num_classes=num_classes, probe_layer=probe_layer,
                   mean=tuple(mean), std=tuple(std), encoder_chunks=encoder_chunks)


def _with_dtype(fields):
    """The fields with their dtype, a string, as a jax dtype."""
    name = fields.get('dtype', 'float32')
    if name not in _DTYPES:
        raise ValueError(f'unknown dtype {name!r}; choose one of {", ".join(_DTYPES)}')
    return {**fields, 'dtype': jnp.dtype(name)}
