"""An encoder as an ONNX file, made from its fields and variables: no PyTorch, no tracing."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.weights.write import graph

_OPSET, _IR_VERSION = 17, 8         # of 2022: what runtimes of the last years all read
_MOST_BYTES = 2 ** 31 - 2 ** 20     # a protobuf holds 2 GiB; the nodes take some


def write_onnx(path: str | os.PathLike, variables: Mapping[str, Any], *, encoder: Mapping[str, Any],
               head: Mapping[str, Any], mean: Sequence[float] = (0.0, 0.0, 0.0),
               std: Sequence[float] = (1.0, 1.0, 1.0), layer: int = 0,
               facts: Mapping[str, str] | None = None) -> None:
    """Writes `path`: input 'images' float32 [batch, height, width, 3], output 'features' [batch, D] float32.

    All three sizes are free. Images are in [0, 1] and normalised inside by `mean` and `std`.

    Args:
        variables, encoder, head, layer: see `graph.features`.
        facts: names and values of the file's metadata.

    Raises:
        ValueError: no such layer; or more weights than such a file can hold, 2 GiB.
        OSError: the file could not be written.
    """
    import onnx
    from onnx import helper

    operations = _Onnx()
    x = 'images'
    constants = graph.normalization(mean, std)
    if constants:
        x = operations.node('Sub', x, operations.constant('mean', constants[0]))
        x = operations.node('Div', x, operations.constant('std', constants[1]))
    x = operations.node('Transpose', x, perm=[0, 3, 1, 2])
    output = graph.features(operations, x, variables, encoder=encoder, head=head, layer=layer)
    operations.rename(output, 'features')
    if operations.bytes > _MOST_BYTES:
        raise ValueError(f'The encoder has {operations.bytes / 2**30:.1f} GiB of weights and an ONNX file '
                         'holds at most 2: export it as a savedmodel.')
    kind = onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            operations.nodes, 'encoder',
            [helper.make_tensor_value_info('images', kind, ['batch', 'height', 'width', 3])],
            [helper.make_tensor_value_info('features', kind, ['batch', operations.width])],
            operations.initializers),
        opset_imports=[helper.make_opsetid('', _OPSET)], ir_version=_IR_VERSION, producer_name='simclr_jax')
    helper.set_model_props(model, dict(facts or {}))
    onnx.checker.check_model(model)
    with open(path, 'wb') as file:
        file.write(model.SerializeToString())


def load_onnx(path: str | os.PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder of a file as images -> features, in onnxruntime on the CPU.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])
    return lambda images: session.run(['features'], {'images': np.asarray(images, np.float32)})[0]


class _Onnx:
    """`graph.Operations` as ONNX nodes; a value is its name, maps are [B, C, H, W]."""

    def __init__(self):
        self.nodes, self.initializers = [], []
        self.bytes = 0      # of all constants
        self.width = 0      # channels of the last map or vector

    def node(self, kind: str, *inputs: str, outputs: int = 1, name: str = '', **attributes):
        """Adds a node; returns the name of its output, or a tuple of them."""
        from onnx import helper

        base = name or f'{kind.lower()}_{len(self.nodes)}'
        names = [base if outputs == 1 else f'{base}:{index}' for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=base, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(array, np.float32)
        self.bytes += array.nbytes
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def rename(self, old: str, new: str) -> None:
        """Gives the output of the last node another name."""
        outputs = self.nodes[-1].output
        outputs[list(outputs).index(old)] = new

    def convolve(self, x, kernel, stride, padding, name):
        self.width = kernel.shape[3]
        pads = {'auto_pad': 'SAME_UPPER'} if padding == 'same' else {'pads': 4 * [padding]}
        return self.node('Conv', x, self.constant(f'{name}/kernel', kernel.transpose(3, 2, 0, 1)), name=name,
                         kernel_shape=list(kernel.shape[:2]), strides=[stride, stride], **pads)

    def normalize(self, x, scale, bias, mean, var, epsilon, name):
        arrays = {'scale': scale, 'bias': bias, 'mean': mean, 'var': var}
        return self.node('BatchNormalization', x,
                         *(self.constant(f'{name}/{part}', array) for part, array in arrays.items()),
                         name=name, epsilon=float(epsilon))

    def relu(self, x):
        return self.node('Relu', x)

    def max_pool(self, x, padding):
        pads = {'auto_pad': 'SAME_UPPER'} if padding == 'same' else {'pads': 4 * [padding]}
        return self.node('MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], **pads)

    def average_pool(self, x, stride):
        return self.node('AveragePool', x, kernel_shape=[2, 2], strides=[stride, stride], pads=[0, 0, 1, 1],
                         count_include_pad=int(stride == 2))

    def mean_pixels(self, x):
        return self.node('GlobalAveragePool', x)

    def flatten(self, x):
        return self.node('Flatten', x)

    def multiply_matrix(self, x, kernel, bias, name):
        self.width = kernel.shape[1]
        kernel = self.constant(f'{name}/kernel', kernel)
        if bias is None:
            return self.node('MatMul', x, kernel, name=name)
        return self.node('Gemm', x, kernel, self.constant(f'{name}/bias', bias), name=name)

    def halves(self, x):
        return self.node('Split', x, outputs=2, axis=1)

    def add(self, x, y):
        return self.node('Add', x, y)

    def subtract(self, x, y):
        return self.node('Sub', x, y)

    def blend(self, x, y, logit):
        share = self.node('Sigmoid', logit)
        return self.add(y, self.node('Mul', share, self.subtract(x, y)))
