"""An encoder as a TensorFlow SavedModel of TensorFlow's own operations.

Not by jax2tf: that stores a StableHLO program, which a TensorFlow older than the JAX that wrote it cannot
read (TensorFlow 2.21 refuses those of JAX 0.12), which is compiled anew for each batch size, and which TFLite
and TensorFlow.js do not take.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.weights.write import graph
from simclr_jax.weights.tree import flat


def write_savedmodel(directory: str | os.PathLike, variables: Mapping[str, Any], *,
                     encoder: Mapping[str, Any], head: Mapping[str, Any],
                     mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0),
                     layer: int = 0) -> None:
    """Writes the SavedModel `directory`; its `serving_default` maps images to features.

    'images' are float32 [batch, height, width, 3] in [0, 1], all three sizes free, normalised inside by
    `mean` and `std`; 'features' float32 [batch, D]. The loaded object can also be called, with the same
    result: loaded(images)['features']. Its `weights` are tf.Variables under the names that they have here.

    Args:
        variables, encoder, head, layer: see `graph.features`.

    Raises:
        ValueError: no such layer.
        OSError: the files could not be written.
    """
    tf = _tensorflow()
    module = tf.Module()
    named = {path.split('/', 1)[1]: array for path, array in flat(variables).items()}
    module.weights = [tf.Variable(array, dtype=tf.float32, name=name) for name, array in named.items()
                      if layer or name.startswith('encoder/')]
    operations = TensorFlowOperations({weight.name.removesuffix(':0'): weight for weight in module.weights})
    constants = graph.normalization(mean, std)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name='images')],
                 autograph=False)
    def encode(images):
        x = (images - constants[0]) / constants[1] if constants else images
        return {'features': graph.features(operations, x, variables, encoder=encoder, head=head, layer=layer)}

    module.__call__ = encode
    try:
        tf.saved_model.save(module, os.fspath(directory), signatures={'serving_default': encode})
    except tf.errors.OpError as error:
        raise OSError(f'TensorFlow could not write {os.fspath(directory)}: {error.message}') from error


def load_savedmodel(directory: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder of a SavedModel as images -> features, in TensorFlow on the CPU."""
    tf = _tensorflow()
    serve = tf.saved_model.load(os.fspath(directory)).signatures['serving_default']
    return lambda images: serve(images=tf.constant(images, tf.float32))['features'].numpy()


def _tensorflow():
    """tensorflow, kept off the accelerators, which are JAX's in this process."""
    import tensorflow as tf

    tf.config.set_visible_devices([], 'GPU')
    return tf


class TensorFlowOperations:
    """`graph.Operations` on tensors [B, H, W, C], symbolic or not.

    weights: {name: tf.Variable} to be used in the place of arrays.
    """

    def __init__(self, weights: Mapping[str, Any] | None = None):
        self.tf = _tensorflow()
        self.weights = weights or {}

    def _weight(self, name, array):
        return self.weights.get(name, array)      # a norm without offset has zeros for it

    def convolve(self, x, kernel, stride, padding, name):
        if padding == 'same' or stride == 1:
            padding = 'SAME'
        else:
            padding = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        return self.tf.nn.conv2d(x, self._weight(f'{name}/kernel', kernel), stride, padding)

    def normalize(self, x, scale, bias, mean, var, epsilon, name):
        arrays = {'scale': scale, 'bias': bias, 'mean': mean, 'var': var}
        scale, bias, mean, var = (self._weight(f'{name}/{part}', array) for part, array in arrays.items())
        if x.shape.rank == 2:
            return self.tf.nn.batch_normalization(x, mean, var, bias, scale, epsilon)
        # Not tf.compat.v1.nn.fused_batch_norm: it raises the epsilon to 1.001e-5.
        return self.tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=bias, mean=mean, variance=var,
                                                epsilon=float(epsilon), is_training=False).y

    def relu(self, x):
        return self.tf.nn.relu(x)

    def max_pool(self, x, padding):
        if padding == 'same':
            return self.tf.nn.max_pool2d(x, 3, 2, 'SAME')
        pad = [padding, padding]
        return self.tf.nn.max_pool2d(self.tf.pad(x, [[0, 0], pad, pad, [0, 0]]), 3, 2, 'VALID')  # x >= 0

    def average_pool(self, x, stride):
        if stride == 1:
            return self.tf.nn.avg_pool2d(x, 2, 1, 'SAME')
        return self.tf.nn.avg_pool2d(self.tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]), 2, stride, 'VALID')

    def mean_pixels(self, x):
        return self.tf.reduce_mean(x, [1, 2], keepdims=True)

    def flatten(self, x):
        return self.tf.squeeze(x, [1, 2])

    def multiply_matrix(self, x, kernel, bias, name):
        x = self.tf.matmul(x, self._weight(f'{name}/kernel', kernel))
        return x if bias is None else x + self._weight(f'{name}/bias', bias)

    def halves(self, x):
        return self.tf.split(x, 2, -1)

    def add(self, x, y):
        return x + y

    def subtract(self, x, y):
        return x - y

    def blend(self, x, y, logit):
        return y + self.tf.sigmoid(logit) * (x - y)
