"""An encoder of any make as a TensorFlow SavedModel: its StableHLO program, its weights as tf.Variables.

As jax2tf makes it, but for the version of StableHLO: TensorFlow 2.21 cannot read the one that JAX 0.12 writes
(`unregistered operation 'vhlo.custom_call_v2'`), so the program is written in the first one.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jaxlib.mlir import passmanager

from simclr_jax.models.network import Network
from simclr_jax.weights.tree import flat
from simclr_jax.weights.write.stablehlo import encode_freely, export_program

_STABLEHLO = '1.0.0'


def write_savedmodel(directory: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
                     image_size: int = 0, layer: int = 0) -> None:
    """Writes the SavedModel `directory`; its `serving_default` maps images to features.

    'images' are float32 [batch, S, S, 3] in [0, 1], the batch free, normalised inside by the network's mean
    and std; 'features' float32 [batch, D]. The loaded object can also be called, with the same result:
    loaded(images)['features']. Its `weights` are tf.Variables under the names that they have here.

    Args:
        network, variables, layer: see `onnx.write_onnx`.
        image_size: S; 0 for any height and width that are multiples of 32 pixels, for an encoder that can be
            traced so.

    Raises:
        ValueError: no such layer.
        OSError: the files could not be written.
    """
    tf = _tensorflow()
    from tensorflow.compiler.tf2xla.python import xla

    encode = encode_freely(network, layer)
    named = flat(variables)
    paths = sorted(path for path in named if layer or path.split('/')[1] == 'encoder')
    left_out = {path: array for path, array in named.items() if path not in paths}

    def encode_with(weights, images):
        return encode(traverse_util.unflatten_dict(left_out | dict(zip(paths, weights)), sep='/'), images)

    program = export_program(encode_with, f'{image_size}, {image_size}' if image_size else '32*h, 32*w',
                             [named[path] for path in paths])
    module = _for_tensorflow(program.mlir_module_serialized)
    saved = tf.Module()
    saved.weights = [tf.Variable(named[path], dtype=tf.float32, name=path.split('/', 1)[1]) for path in paths]
    kept = set(program.module_kept_var_idx)

    @tf.function(input_signature=[tf.TensorSpec([None, image_size or None, image_size or None, 3], tf.float32,
                                                name='images')], autograph=False)
    def serve(images):
        arguments = [each for index, each in enumerate((*saved.weights, images)) if index in kept]
        features, = xla.call_module(
            arguments, version=program.calling_convention_version, module=module, Tout=[tf.float32],
            Sout=[[None, program.out_avals[0].shape[1]]],
            platforms=[platform.upper() for platform in program.platforms])
        return {'features': features}

    saved.__call__ = serve
    try:
        tf.saved_model.save(saved, os.fspath(directory), signatures={'serving_default': serve})
    except tf.errors.OpError as error:
        raise OSError(f'TensorFlow could not write {os.fspath(directory)}: {error.message}') from error


def _for_tensorflow(program: bytes) -> bytes:
    """The program in the version `_STABLEHLO`, composite operations such as erf written out.

    Of a composite TensorFlow's reader does not follow the sizes that are free.
    """
    stablehlo.register_stablehlo_passes()
    with ir.Context() as context:
        module = stablehlo.deserialize_portable_artifact(context, program)
        passmanager.PassManager.parse(
            'builtin.module(func.func(stablehlo-legalize-composite-to-call),inline)').run(module.operation)
        return stablehlo.serialize_portable_artifact(module, _STABLEHLO)


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
