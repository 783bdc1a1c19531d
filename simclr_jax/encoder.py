"""A trained encoder as a function of images, its preprocessing bound to it."""

import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.evaluate.features import resize_of
from simclr_jax.evaluate.pretrained import Pretrained, load_pretrained
from simclr_jax.models import abilities
from simclr_jax.models.folding import fold, folded
from simclr_jax.models.network import Network
from simclr_jax.runtime import sharding
from simclr_jax.training.checkpoint import quiet_orbax_logs
from simclr_jax.training.steps import make_encode
from simclr_jax.views import device as device_augment
from simclr_jax.views.checks import checked_images
from simclr_jax.views.resize import Resize


class Preprocessing(NamedTuple):
    """What happens to an image before the network, as where the encoder was trained.

    The central `crop_proportion` of the shorter side is resized to `image_size` pixels, bicubic and without
    antialiasing unless `resize` says otherwise, and each channel of the pixels in [0, 1] becomes
    (x - mean) / std.
    """

    image_size: int
    crop_proportion: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = Resize()


def load_encoder(path: str | os.PathLike, *, checkpoint: str = 'last', network: str = '',
                 encoder: nn.Module | None = None, dtype: str = '', batch_size: int = 64) -> 'Encoder':
    """The encoder of a workdir, or of a file of weights (see `weights.read.files.read_weights`).

    Args:
        path: a workdir, an exported directory, a file of weights, or 'hf:OWNER/NAME', a repository of the
            Hugging Face Hub that an export was pushed to; 'hf:OWNER/NAME@REVISION', 'hf:OWNER/NAME/FILE'.
        checkpoint: 'last', 'best' (by kNN) or the number of a step. Of a workdir.
        network: 'online', 'target', or '' for the one that the run itself measured. Of a workdir.
        encoder: the module itself, where the run's config cannot name it.
        dtype: of the activations, 'float32' or 'bfloat16'; '' = as it was trained, but float32 on a CPU,
            for which bfloat16 is no gain. Features are float32 all the same.
        batch_size: images at a time, over all devices of this process.

    Raises:
        FileNotFoundError, ValueError: as `evaluate.pretrained.load_pretrained`; or a dtype for an encoder
            that takes none.

    >>> import numpy as np, simclr_jax
    >>> encoder = simclr_jax.load_encoder('runs/mine')
    >>> features = encoder(np.zeros((2, 20, 30, 3), np.uint8))
    >>> features.shape == (2, encoder.width), features.dtype.name
    (True, 'float32')
    """
    quiet_orbax_logs()
    pretrained = load_pretrained(path, checkpoint, network, encoder=encoder)
    return Encoder(pretrained, dtype=dtype, batch_size=batch_size)


class Encoder:
    """Images to features; made by `load_encoder`, called as encoder(images).

    Attributes:
        preprocessing: what it does to images first.
        width: D, of the features. channels: C, of the images.
        layers: the names that `layer` takes, beside the numbers of the head's layers.
        source: what it is, in words; `card`: what its file says of itself; `config`: its recipe.
        variables: {'params', 'batch_stats'} as numpy arrays; `network`: the Flax module they belong to.

    >>> import numpy as np, simclr_jax
    >>> encoder = simclr_jax.load_encoder('runs/mine')
    >>> encoder.layers[0], encoder.layers[-1], encoder.preprocessing.mean
    ('features', 'projection', (0.0, 0.0, 0.0))
    >>> encoder(np.zeros((2, 8, 8, 3), np.uint8), layer='projection').shape[0]
    2
    """

    def __init__(self, pretrained: Pretrained, *, dtype: str = '', batch_size: int = 64):
        config = pretrained.config
        self.config, self.source, self.card = config, pretrained.source, pretrained.card
        self.variables = pretrained.variables
        self.preprocessing = Preprocessing(config.augment.image_size, config.eval.crop_proportion,
                                           tuple(config.augment.mean), tuple(config.augment.std),
                                           resize_of(config))
        self.network = _with_dtype(pretrained.network, dtype)
        self.batch_size = batch_size
        self._mesh = sharding.make_mesh(jax.local_devices())
        self._variables = jax.device_put(fold(self.network, pretrained.variables), sharding.replicated(self._mesh))
        size, self.channels = self.preprocessing.image_size, len(self.preprocessing.mean)
        self._maps = []

        def look(variables, images):
            features, maps = _features_and_maps(self.network, variables, images)
            self._maps += maps      # from within: outside they would be in the order of the alphabet
            return features

        self.width = jax.eval_shape(look, self.variables,
                                    jax.ShapeDtypeStruct((1, size, size, self.channels), jnp.float32)).shape[-1]
        self.layers = ('features', *self._maps, 'projection')
        self._apply = jax.jit(
            folded(self.network, functools.partial(_apply, self.network, self.preprocessing)), static_argnums=2)

    def __call__(self, images: np.ndarray | jax.Array | Sequence[np.ndarray], *,
                 layer: int | str = 0) -> np.ndarray:
        """Preprocesses and encodes images; the batches are cut over all devices of this process.

        Args:
            images: [N, H, W, C], uint8 or floats in [0, 1], of any size; or a sequence of N images
                [h, w, C], each of its own size.
            layer: 0 or 'features' for h, k for the output of head layer k, -1 or 'projection' for z;
                'stem', 'stage1' ... 'stage4' for the maps of a ResNet; of another encoder what it sows
                into 'maps' or 'intermediates'. `layers` has their names.

        Returns:
            [N, D] float32, or maps [N, h, w, C] (whatever the encoder sows) float32.

        Raises:
            ValueError: other shapes or dtypes, floats outside [0, 1] or not finite, or no such layer.
        """
        if isinstance(layer, str):
            layer = {'features': 0, 'projection': -1}.get(layer, layer)
        if isinstance(layer, str) and layer not in self._maps:
            raise ValueError(f'layer is {layer!r}: it takes {", ".join(self.layers)}, '
                             'or the number of a layer of the head.')
        if isinstance(images, (list, tuple)):
            return self._encode_one_by_one(images, layer)
        images = checked_images(images if isinstance(images, jax.Array) else np.asarray(images),
                                channels=self.channels)
        rows = [self._encode_batch(images[start:start + self.batch_size], layer)
                for start in range(0, max(len(images), 1), self.batch_size)]
        return np.concatenate(rows)

    def _encode_one_by_one(self, images, layer) -> np.ndarray:
        """Images of one shape at a time; the results in the order of the images."""
        images = [checked_images(np.asarray(image), lone=True, channels=self.channels) for image in images]
        if not images:
            return self(np.zeros((0, 32, 32, self.channels), np.uint8), layer=layer)
        groups = {}
        for index, image in enumerate(images):
            groups.setdefault((image.shape, image.dtype), []).append(index)
        order = np.concatenate([*groups.values()])
        found = np.concatenate([self(np.stack([images[index] for index in group]), layer=layer)
                                for group in groups.values()])
        return found[np.argsort(order)]

    def _encode_batch(self, images, layer) -> np.ndarray:
        """At most batch_size rows, filled up to the next power of two: few shapes, so few compilations."""
        count = len(images)
        size = min(1 << max(count - 1, 0).bit_length(), self.batch_size)
        size = -(-size // self._mesh.size) * self._mesh.size
        images = np.concatenate([images, np.zeros((size - count, *images.shape[1:]), images.dtype)])
        images = jax.device_put(images, sharding.batch_sharding(self._mesh))
        return np.asarray(self._apply(self._variables, images, layer), np.float32)[:count]

    def __repr__(self) -> str:
        made = self.preprocessing
        crop = f'central {made.crop_proportion:g}' if made.resize == Resize() else str(made.resize)
        return (f'Encoder({self.source}: images -> [N, {self.width}]; {made.image_size} px, {crop}, '
                f'mean {made.mean})')


def _apply(network: Network, preprocessing: Preprocessing, variables: dict, images: jax.Array,
           layer: int | str) -> jax.Array:
    images = device_augment.over_batch(functools.partial(
        device_augment.eval_crop, image_size=preprocessing.image_size,
        proportion=preprocessing.crop_proportion, resize=preprocessing.resize))(images)
    if not isinstance(layer, str):
        return make_encode(network, layer=layer)(variables, images)
    return _features_and_maps(network, variables, images)[1][layer].astype(jnp.float32)


def _features_and_maps(network: Network, variables: dict, images: jax.Array) -> tuple[jax.Array, dict]:
    """The features [N, D], and {name: map} of what the encoder leaves on its way."""
    features, sown = network.apply(variables, images, train=False, method='encode', mutable=abilities.MAPS)
    return features, abilities.maps_of(sown)


def _with_dtype(network: Network, dtype: str) -> Network:
    """The network with these activations; '' leaves them as they are, but float32 on a CPU."""
    if dtype and not abilities.has_dtype(network.encoder):
        raise ValueError(f'dtype is {dtype!r}: the encoder {abilities.class_name(network.encoder)} has no field '
                         'dtype, so its activations cannot be changed.')
    if not dtype and jax.default_backend() != 'cpu':
        return network
    chosen = jnp.dtype(dtype or 'float32')
    return network.clone(encoder=abilities.with_dtype(network.encoder, chosen),
                         head=abilities.with_dtype(network.head, chosen))
