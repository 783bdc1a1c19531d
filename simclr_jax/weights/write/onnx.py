"""An encoder of any make as an ONNX file, from what JAX traces."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import numpy as np

from simclr_jax import storage
from simclr_jax.models.network import Network
from simclr_jax.weights.tree import named_leaves
from simclr_jax.weights.write.onnx_graph import Graph
from simclr_jax.weights.write.stablehlo import check_size, encode_freely

_OPSET, _IR_VERSION = 17, 8         # of 2022: what runtimes of the last years all read


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
