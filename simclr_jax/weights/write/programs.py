"""An encoder of any make as a program that JAX traces: StableHLO (`jax.export`), ONNX, a TensorFlow SavedModel.

The SavedModel is as jax2tf makes it, but for the version of StableHLO: TensorFlow 2.21 cannot read the one that
JAX 0.12 writes (`unregistered operation 'vhlo.custom_call_v2'`).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jaxlib.mlir import passmanager

from simclr_jax import storage
from simclr_jax.models.folding import fold, folded
from simclr_jax.models.network import Network
from simclr_jax.training.steps import make_encode
from simclr_jax.weights.tree import named_leaves
from simclr_jax.weights.write.onnx_graph import Graph

PLATFORMS = ('cpu', 'cuda', 'tpu')
_VERSION = '1.0.0'      # of StableHLO: the first, which TensorFlow 2.21 reads whatever JAX writes it
_PASSES = 'builtin.module(func.func(stablehlo-legalize-composite-to-call),inline,strip-debuginfo)'
_MOST_BYTES = 2 ** 31 - 2 ** 24     # a flatbuffer, and a protobuf, holds 2 GiB; the program takes some
_OPSET, _IR_VERSION = 17, 8         # of 2022: what runtimes of the last years all read


def write_stablehlo(path: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
                    image_size: int, layer: int = 0) -> None:
    """Writes `path`: images float32 [b, image_size, image_size, 3] -> features [b, D] float32.

    The batch size is free and the program runs on CPUs, NVIDIA GPUs and TPUs. Images are in [0, 1] and
    normalised inside by the network's mean and std.

    Args:
        network, variables, layer: see `write_onnx`.

    Raises:
        ValueError: no such layer; or more weights than such a file can hold, 2 GiB.
        OSError: the file could not be written.
    """
    check_size(variables, 'a StableHLO file')
    encode, variables = encode_freely(network, variables, layer)
    program = export_program(lambda images: encode(variables, images), f'{image_size}, {image_size}')
    storage.write_atomically(path, bytes(program.serialize()))


def check_size(variables: Mapping[str, Any], what: str) -> None:
    """ValueError for more weights than a file of one message can hold."""
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(variables))
    if size > _MOST_BYTES:
        raise ValueError(f'The encoder has {size / 2**30:.1f} GiB of weights and {what} holds at most 2: '
                         'export it as a savedmodel.')


def encode_freely(network: Network, variables: Mapping[str, Any], layer: int
                  ) -> tuple[Callable[[Any, jax.Array], jax.Array], dict[str, Any]]:
    """((variables, images [b, S, S, 3]) -> features, to be traced with a batch whose size is not known; its variables).

    The norms of a ResNet are folded into its kernels (models/folding.py). An encoder that needs a number for the
    batch, as `len(images)`, is traced for one image, and mapped over them.
    """
    encode = folded(network, make_encode(network, layer=layer))

    def encode_batch(variables, images):
        try:
            return encode(variables, images)
        except Exception as error:      # of many kinds, as the encoder meets a size that is no number
            try:
                return jax.vmap(lambda image: encode(variables, image[None])[0])(images)
            except Exception:
                raise error from None

    return encode_batch, fold(network, variables)


def export_program(encode: Callable[..., jax.Array], sizes: str, *arguments: Any) -> jax.export.Exported:
    """(*arguments, images [b, *sizes, 3]) -> features as a program, its products of full float32 precision.

    The places in source files that it stems from are taken out. Composite operations such as erf are written
    out, whose free sizes TensorFlow's reader does not follow.

    Sizes that are not known rule out the compiled loops of `models.cpu`, and that of the batch is none.
    """
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f'b, {sizes}, 3'), np.float32)
    with jax.default_matmul_precision('highest'):
        program = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(*arguments, images)
    dialect: Any = stablehlo        # whose stub leaves these functions out
    dialect.register_stablehlo_passes()
    with ir.Context() as context:
        module = dialect.deserialize_portable_artifact(context, program.mlir_module_serialized)
        passmanager.PassManager.parse(_PASSES).run(module.operation)
        text = dialect.serialize_portable_artifact(module, _VERSION)
    return dataclasses.replace(program, mlir_module_serialized=text)


def load_stablehlo(path: str | os.PathLike) -> Callable[[jax.Array], jax.Array]:
    """The program of a file as images -> features, to be called as it is or within `jax.jit`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no program, or one that this version of JAX cannot read.
    """
    with open(path, 'rb') as file:
        data = bytearray(file.read())
    try:
        exported = jax.export.deserialize(data)
        encode = jax.jit(exported.call)
        # Only here is the program itself read, and one of a later JAX refused. Nothing is compiled.
        encode.lower(jax.ShapeDtypeStruct((1, *exported.in_avals[0].shape[1:]), np.float32))
    except Exception as error:      # whatever the parser meets in a file that is none
        raise ValueError(f'{os.fspath(path)} holds no StableHLO program that JAX {jax.__version__} reads '
                         f'({type(error).__name__}): export it again, or update JAX.') from error
    return encode


def write_onnx(path: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
               image_size: int = 0, layer: int = 0, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `path`: input 'images' float32 [batch, S, S, 3], output 'features' [batch, D] float32.

    The batch is free. Images are in [0, 1] and normalised inside by the network's mean and std.

    Args:
        network, variables: the encoder with its head, and {'params', 'batch_stats'} of it.
        image_size: S; 0 leaves height and width free, for an encoder that can be traced for all multiples
            of 32. Other sizes are then right too, as long as its paddings are symmetric, or SAME.
        layer: 0 for the features, k for layer k of the head, -1 for the projection.
        metadata: names and values for the file.

    Raises:
        ValueError: no such layer; an operation that ONNX, or this file, has not; or more weights than such a
            file can hold, 2 GiB.
        OSError: the file could not be written.
    """
    import onnx
    from onnx import helper

    check_size(variables, 'an ONNX file')
    sizes = f'{image_size}, {image_size}' if image_size else '32*height, 32*width'
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f'batch, {sizes}, 3'), np.float32)
    encode, variables = encode_freely(network, variables, layer)
    traced = jax.make_jaxpr(encode)(variables, images)
    leaves = named_leaves(variables)
    graph = Graph({id(leaf): name for name, leaf in leaves})
    features, = graph.run(traced, [*(leaf for _, leaf in leaves), 'images'])
    graph.node('Identity', features, name='features')
    graph.prune('features')
    kind = onnx.TensorProto.FLOAT
    shape = ['batch', image_size or 'height', image_size or 'width', 3]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes, 'encoder', [helper.make_tensor_value_info('images', kind, shape)],
            [helper.make_tensor_value_info('features', kind, ['batch', traced.out_avals[0].shape[1]])],
            list(graph.initializers.values())),
        opset_imports=[helper.make_opsetid('', _OPSET)], ir_version=_IR_VERSION, producer_name='simclr_jax')
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    storage.write_atomically(path, model.SerializeToString())


def load_onnx(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder of a file as images -> features, in onnxruntime on the CPU.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])
    return lambda images: session.run(['features'], {'images': np.asarray(images, np.float32)})[0]


def write_savedmodel(directory: str | os.PathLike, network: Network, variables: Mapping[str, Any], *,
                     image_size: int = 0, size_step: int = 1, layer: int = 0) -> None:
    """Writes the SavedModel `directory`; its `serving_default` maps images to features.

    'images' are float32 [batch, S, S, 3] in [0, 1], the batch free, normalised inside by the network's mean
    and std; 'features' float32 [batch, D]. The loaded object can also be called, with the same result:
    loaded(images)['features']. Its `weights` are tf.Variables under the names that they have here.

    Args:
        network, variables, layer: see `write_onnx`.
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
