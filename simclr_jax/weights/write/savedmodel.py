"""An encoder of any make as a TensorFlow SavedModel: its StableHLO program, its weights as tf.Variables.

As jax2tf makes it, but for the version of StableHLO: TensorFlow 2.21 cannot read the one that JAX 0.12 writes
(`unregistered operation 'vhlo.custom_call_v2'`).
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from simclr_jax.models.network import Network
from simclr_jax.weights.tree import named_leaves
from simclr_jax.weights.write.stablehlo import encode_freely, export_program


def write_savedmodel(directory: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
                     image_size: int = 0, size_step: int = 1, layer: int = 0) -> None:
    """Writes the SavedModel `directory`; its `serving_default` maps images to features.

    'images' are float32 [batch, S, S, 3] in [0, 1], the batch free, normalised inside by the network's mean
    and std; 'features' float32 [batch, D]. The loaded object can also be called, with the same result:
    loaded(images)['features']. Its `weights` are tf.Variables under the names that they have here.

    Args:
        network, variables, layer: see `onnx.write_onnx`.
        image_size: S; 0 for any height and width that `size_step` divides, if the encoder can be traced so.

    Raises:
        ValueError: no such layer.
        OSError: the files could not be written.
    """
    tf = _tensorflow()
    from tensorflow.compiler.tf2xla.python import xla

    sizes = f'{image_size}, {image_size}' if image_size else f'{size_step}*height, {size_step}*width'
    encode, variables = encode_freely(network, variables, layer)
    program = export_program(encode, sizes, variables)
    used = set(program.module_kept_var_idx)
    leaves: list[tuple[str, Any]] = named_leaves(variables)
    saved: Any = tf.Module()
    saved.weights = [tf.Variable(leaf, dtype=tf.float32, name=name)
                     for index, (name, leaf) in enumerate(leaves) if index in used]

    @tf.function(input_signature=[tf.TensorSpec([None, image_size or None, image_size or None, 3], tf.float32,
                                                name='images')], autograph=False)
    def serve(images):
        features, = xla.call_module(
            [*saved.weights, images], version=program.calling_convention_version,
            module=program.mlir_module_serialized, Tout=[tf.float32],
            Sout=[[None, program.out_avals[0].shape[1]]],
            platforms=[platform.upper() for platform in program.platforms])
        return {'features': features}

    saved.__call__ = serve
    try:
        tf.saved_model.save(saved, os.fspath(directory), signatures={'serving_default': serve})
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
