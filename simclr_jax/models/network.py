"""The network of a run: pixel normalisation, encoder, heads (projector, predictor), online probe."""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from simclr_jax.models import abilities
from simclr_jax.models.norm import BatchNorm

_MODES = ('none', 'linear', 'nonlinear')        # of a head


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
        encoder: any Flax module, called as encoder(images, train=train) -> features [B, D].
        head: called as head(features, train) -> tuple of layers, features first.
        predictor: called as predictor(projection, train) -> tuple of layers; None for none.
        num_classes: width of the probe; 0 for no probe.
        probe_layer: the layer that the probe reads: 0 = features, k = output of head layer k,
            -1 = projection. No gradient flows through it, so the probe never trains the encoder.
            It sees its columns with mean 0 and variance 1 over the batch, whatever the encoder's scale.
        mean, std: of the pixels in [0, 1], per channel.
        encoder_chunks: how many parts `forward_train` cuts a batch into for the encoder.
        norm_groups, norm_strided: of an encoder without such fields of its own, see `forward_train`.
    """

    encoder: nn.Module
    head: nn.Module
    predictor: nn.Module | None = None
    num_classes: int = 0
    probe_layer: int = 0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    encoder_chunks: int = 1
    norm_groups: int = 1
    norm_strided: bool = False

    def setup(self):
        if self.num_classes:
            self.probe = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))

    def __call__(self, images: jax.Array, train: bool) -> Output:
        """Applies the network to images [B, H, W, 3], uint8 or float in [0, 1].

        With train=True, batch norm uses the batch's statistics and the collection 'batch_stats'
        must be mutable. Raises ValueError when the head has no layer `probe_layer`, or the encoder
        returns something else than features [B, D].
        """
        return self.project(self.encode(images, train), train)

    def encode(self, images: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, 3] -> features h [B, D] float32, whatever the encoder; ValueError for another output."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        features = self.encoder((images - mean) / std, train=train)
        if not isinstance(features, jax.Array | np.ndarray) or features.shape[:-1] != images.shape[:1]:
            found = jax.tree.map(lambda leaf: list(np.shape(leaf)), features)
            raise ValueError(f'The encoder {abilities.class_name(self.encoder)} returns {found} for {images.shape[0]} '
                             'images: features [B, D] are needed, one vector an image. Take the mean over the '
                             'pixels of a map, or one of several outputs, in a module around it.')
        if not jnp.issubdtype(features.dtype, jnp.floating):
            raise ValueError(f'The encoder {abilities.class_name(self.encoder)} returns {features.dtype}: features are '
                             'floats, or no gradient passes through them.')
        return jnp.asarray(features, jnp.float32)

    def project(self, features: jax.Array, train: bool) -> Output:
        """Features h [B, D] -> everything that is computed from them."""
        layers = self.head(features, train)
        prediction = self.predictor(layers[-1], train)[-1] if self.predictor else layers[-1]
        if not self.num_classes:
            return Output(layers, prediction, None)
        if not -len(layers) <= self.probe_layer < len(layers):
            raise ValueError(f'eval.layer is {self.probe_layer}: the head has layers 0 (features) to '
                             f'{len(layers) - 1} (projection).')
        seen = jax.lax.stop_gradient(layers[self.probe_layer])
        seen = (seen - seen.mean(0)) * jax.lax.rsqrt(seen.var(0) + 1e-6)       # columns of mean 0 and variance 1
        return Output(layers, prediction, self.probe(seen))


def outputs(network: Network, variables: Any, images: jax.Array) -> Output:
    """What a trained network makes of images [B, H, W, 3]: BatchNorm uses its running statistics."""
    return cast(Output, network.apply(variables, images, train=False))


def init_variables(network: Network, key: jax.Array, images: jax.Array) -> dict[str, Any]:
    """{'params', 'batch_stats'} of the network at its start, the latter {} where nothing is followed.

    Raises:
        ValueError: the encoder keeps variables of another kind, which no run would save.
    """
    variables = nn.meta.unbox(network.init(_streams(key), images, train=False))
    found = {'params': {}, 'batch_stats': {}} | {
        name: tree for name, tree in variables.items() if name not in abilities.MAPS}
    others = sorted(set(found) - {'params', 'batch_stats'})
    if others:
        raise ValueError(f'The encoder {abilities.class_name(network.encoder)} keeps variables in collection '
                         f"{', '.join(map(repr, others))}: a run trains 'params', follows 'batch_stats' "
                         'and saves no other. Keep what changes in these two.')
    return found


def _streams(key: jax.Array) -> dict[str, jax.Array]:
    """The random streams of a pass: whatever a module calls its own (dropout, ...) follows from `key`.

    A stream that is not there falls back to 'params' in linen, and to 'default' in a bridged nnx module.
    """
    return {'params': key, 'default': key}


def forward_train(network: Network, params: Any, batch_stats: Any, images: jax.Array, *,
                  key: jax.Array | None = None, num_devices: int = 1) -> tuple[Output, Any]:
    """One pass in training mode over images [B, H, W, 3]: (output, new batch_stats).

    With `network.encoder_chunks` = k > 1 the encoder runs k times over B/k images, one chunk after
    the other, and once more in the backward pass, which then needs the activations of one chunk
    alone. The heads see the whole batch. BatchNorm of the encoder takes its statistics from each
    chunk, over all devices; the running ones are updated once, with the mean over the chunks.

    An encoder that has batch statistics, but no fields for `network.norm_groups`, is run for each group
    of rows by itself, which groups the rows of its norms, whatever they are.

    Args:
        key: of what the encoder draws, such as dropout; None for one that draws nothing.
        num_devices: over which B is split; each cuts its own rows into k chunks, so none moves.

    Raises:
        ValueError: B is not divisible by num_devices * k, or a chunk not by the number of groups.
    """
    variables = {'params': params, 'batch_stats': batch_stats}
    groups, chunks = network.norm_groups, network.encoder_chunks
    if groups > 1 and (abilities.has_groups(network.encoder) or not batch_stats.get('encoder')):
        groups = 1
    if chunks == groups == 1:
        output, updates = network.apply(variables, images, train=True, mutable=['batch_stats'],
                                        rngs=None if key is None else _streams(key))
        return output, updates.get('batch_stats', {})
    if images.shape[0] % (num_devices * chunks):
        raise ValueError(f'encoder_chunks is {chunks}: {images.shape[0]} views on {num_devices} devices do '
                         f'not divide into as many; choose a divisor of {images.shape[0] // num_devices}.')

    def encode(rows, index):
        features, updates = network.apply(
            variables, rows, train=True, method='encode', mutable=['batch_stats'],
            rngs=None if key is None else _streams(jax.random.fold_in(key, index)))
        return features, updates.get('batch_stats', {})

    if groups > 1:
        encode = _by_groups(encode, groups, strided=network.norm_strided)
    if chunks > 1:
        features, stats = _by_chunks(encode, images, chunks, num_devices)
    else:
        features, stats = encode(images, 0)
    output, updates = network.apply(variables | {'batch_stats': batch_stats | stats}, features, train=True,
                                    method='project', mutable=['batch_stats'])
    return output, updates.get('batch_stats', {})


def _by_chunks(encode, images, chunks, num_devices):
    """Features [B, D], and the mean of the statistics, of one chunk of `images` after the other."""
    parts = images.reshape(num_devices, chunks, -1, *images.shape[1:]).swapaxes(0, 1)
    parts = parts.reshape(chunks, -1, *images.shape[1:])                         # [k, B/k, H, W, 3]
    features, stats = jax.lax.map(jax.checkpoint(lambda part: encode(*part)), (parts, jnp.arange(chunks)))
    features = features.reshape(chunks, num_devices, -1, features.shape[-1]).swapaxes(0, 1)
    return features.reshape(images.shape[0], -1), jax.tree.map(lambda stat: stat.mean(0), stats)


def _by_groups(encode, groups, *, strided):
    """`encode` for each group of rows by itself, all at once, as `BatchNorm` groups them."""

    def encode_groups(rows, index):
        if rows.shape[0] % groups:
            raise ValueError(f'a batch of {rows.shape[0]} rows does not divide into norm_groups={groups}; '
                             'choose a divisor of the batch')
        axis, grid = (1, (-1, groups)) if strided else (0, (groups, -1))
        features, stats = jax.vmap(encode, in_axes=(axis, 0), out_axes=(axis, 0))(
            rows.reshape(*grid, *rows.shape[1:]), index * groups + jnp.arange(groups))
        return features.reshape(rows.shape[0], -1), jax.tree.map(lambda stat: stat.mean(0), stats)

    return encode_groups


def norm_groups(network: Network) -> int:
    """How many groups the rows of a batch fall into for the BatchNorms of the encoder."""
    return (network.encoder if abilities.has_groups(network.encoder) else network).norm_groups


def regrouped(network: Network, groups: int, *, strided: bool) -> Network:
    """The same network, its BatchNorms with other groups of rows in training; see `BatchNorm`."""
    parts: Any = {name: part and abilities.with_groups(part, groups, strided=strided) for name, part in
             (('encoder', network.encoder), ('head', network.head), ('predictor', network.predictor))}
    return network.clone(norm_groups=groups, norm_strided=strided, **parts)
