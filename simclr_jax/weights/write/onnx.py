"""An encoder of any make as an ONNX file: the operations that JAX traces, one by one.

jax2onnx (0.13 and 0.14) is not used: its max-pool loses the padding, and positional arguments end it.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from simclr_jax.models.network import Network
from simclr_jax.training.steps import make_encode
from simclr_jax.weights.tree import flat

_OPSET, _IR_VERSION = 17, 8         # of 2022: what runtimes of the last years all read
_MOST_BYTES = 2 ** 31 - 2 ** 20     # a protobuf holds 2 GiB; the nodes take some


def write_onnx(path: str | os.PathLike, network: Network, variables: Mapping[str, Any], *, image_size: int = 0,
               layer: int = 0, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `path`: input 'images' float32 [batch, S, S, 3], output 'features' [batch, D] float32.

    The batch is free. Images are in [0, 1] and normalised inside by the network's mean and std.

    Args:
        network, variables: the encoder with its head, and {'params', 'batch_stats'} of it.
        image_size: S; 0 leaves height and width free, for an encoder that can be traced with sizes of 32 h and
            32 w pixels for any h and w. Then other sizes than multiples of 32 are right too, as long as its
            paddings are symmetric, or SAME.
        layer: 0 for the features, k for layer k of the head, -1 for the projection.
        metadata: names and values for the file.

    Raises:
        ValueError: no such layer; an operation that ONNX, or this file, has not; or more weights than such a
            file can hold, 2 GiB.
        OSError: the file could not be written.
    """
    import onnx
    from onnx import helper

    sizes = f'{image_size}, {image_size}' if image_size else '32*height, 32*width'
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f'batch, {sizes}, 3'), np.float32)
    traced = jax.make_jaxpr(make_encode(network, layer=layer))(variables, images)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]
    names = {id(leaf): name.split('/', 1)[1] for leaf, name in zip(leaves, _paths(variables), strict=True)}
    graph = _Graph(names)
    features, = graph.run(traced, [*leaves, graph.tensor('images', images.shape)])
    graph.node('Identity', graph.whole(features), name='features')
    graph.prune('features')
    if graph.bytes > _MOST_BYTES:
        raise ValueError(f'The encoder has {graph.bytes / 2**30:.1f} GiB of weights and an ONNX file '
                         'holds at most 2: export it as a savedmodel.')
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


def _paths(variables):
    """'params/encoder/stem_conv/kernel' for each leaf, in jax's order."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return ['/'.join(str(key.key) for key in path) for path, _ in leaves]


class _Tensor(NamedTuple):
    """A value in the graph: axis i of the tensor `name` is axis order[i] of the value in JAX."""

    name: str
    order: tuple[int, ...]


_SAME_NAME = {'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max',
              'min': 'Min', 'neg': 'Neg', 'abs': 'Abs', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt',
              'tanh': 'Tanh', 'erf': 'Erf', 'logistic': 'Sigmoid', 'sign': 'Sign', 'floor': 'Floor',
              'ceil': 'Ceil', 'sin': 'Sin', 'cos': 'Cos', 'pow': 'Pow', 'eq': 'Equal', 'lt': 'Less',
              'le': 'LessOrEqual', 'gt': 'Greater', 'ge': 'GreaterOrEqual', 'and': 'And', 'or': 'Or',
              'not': 'Not', 'is_finite': 'IsInf'}
_UNCHANGED = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'device_put',
              'name', 'reduce_precision')
_REDUCTIONS = {'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin', 'reduce_prod': 'ReduceProd'}


class _Graph:
    """Nodes and constants of an ONNX graph, made from a traced program."""

    def __init__(self, names: Mapping[int, str]):
        self.nodes, self.initializers = [], {}
        self.names = names      # of arrays, by their id
        self.bytes = 0          # of all constants
        self.sizes = {}         # symbolic size -> (tensor, axis) that has it

    def run(self, program: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The results of a program; values are `_Tensor`s, or arrays where nothing of an image is in them."""
        jaxpr = program.jaxpr
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(np.asarray, program.consts), *inputs)))

        def value_of(variable):
            if isinstance(variable, Literal):
                return np.asarray(variable.val, variable.aval.dtype)
            return values[variable]

        for equation in jaxpr.eqns:
            outputs = self.apply(equation, [value_of(variable) for variable in equation.invars])
            for variable, output in zip(equation.outvars, outputs, strict=True):
                values[variable] = output
                if isinstance(output, _Tensor):
                    self.tensor(*output[:1], variable.aval.shape, output.order)
        return [value_of(variable) for variable in jaxpr.outvars]

    def apply(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """The outputs of one operation."""
        name, params = equation.primitive.name, equation.params
        inner = next((params[key] for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if key in params), None)
        if inner is not None and name not in ('scan', 'while'):
            return self.run(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs)
        if name in _UNCHANGED or name == 'convert_element_type' and params['new_dtype'] == equation.invars[
                0].aval.dtype:
            return inputs
        shapes = [variable.aval.shape for variable in equation.outvars]
        if all(isinstance(value, np.ndarray) for value in inputs) and all(
                isinstance(size, int) for shape in shapes for size in shape) and name != 'dim_as_value':
            with jax.ensure_compile_time_eval():
                results = equation.primitive.bind(*inputs, **params)
            return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]
        if name in _SAME_NAME or name in ('select_n', 'clamp'):
            return [self.elementwise(equation, inputs)]
        method = getattr(self, f'op_{name}', None)
        if name in _REDUCTIONS:
            method = self.op_reduce_sum
        if method is None:
            raise ValueError(f'the encoder uses the operation {name} of JAX, which is not written as ONNX here: '
                             'export it as a savedmodel or as stablehlo')
        outputs = method(equation, *inputs)
        return outputs if isinstance(outputs, list) else [outputs]

    # ---- the graph

    def tensor(self, name: str, shape: Sequence[Any], order: tuple[int, ...] | None = None) -> _Tensor:
        """The value of that name, whose symbolic sizes are known from now on."""
        order = tuple(range(len(shape))) if order is None else order
        for axis, source in enumerate(order):
            if not isinstance(shape[source], int):
                self.sizes.setdefault(shape[source], (name, axis))
        return _Tensor(name, order)

    def node(self, kind: str, *inputs: Any, name: str = '', **attributes: Any) -> str:
        """Adds a node; its inputs are names, or arrays, which become constants. Returns the output's name."""
        from onnx import helper

        name = name or f'{kind.lower()}_{len(self.nodes)}'
        inputs = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray, like: np.ndarray | None = None) -> str:
        """The name of a constant; of a variable, in whatever order of axes (`like` it), its own."""
        from onnx import numpy_helper

        name = self.names.get(id(array if like is None else like), '')
        if name in self.initializers or not name:
            name = f'constant_{len(self.initializers)}'
        array = np.asarray(array, order='C')
        self.bytes += array.nbytes
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def prune(self, output: str) -> None:
        """Leaves what `output` needs."""
        needed, kept = {output}, []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                needed |= set(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {name: value for name, value in self.initializers.items() if name in needed}

    def whole(self, value: Any) -> Any:
        """A value with JAX's own order of axes: a name, or an array."""
        if not isinstance(value, _Tensor):
            return value
        return self.ordered(value, tuple(range(len(value.order))))

    def ordered(self, value: _Tensor, order: tuple[int, ...]) -> str:
        """The name of the tensor with this order of axes."""
        if value.order == order:
            return value.name
        return self.node('Transpose', value.name, perm=[value.order.index(axis) for axis in order])

    def size(self, size: Any) -> Any:
        """A size as an int64 [1]: an array, or the name of what it is in the images at hand."""
        if isinstance(size, int):
            return np.array([size], np.int64)
        if size in self.sizes:
            name, axis = self.sizes[size]
            return self.node('Gather', self.node('Shape', name), np.array([axis], np.int64), axis=0)
        for left in self.sizes:
            right = next((right for right in (*self.sizes, *range(2, 4096)) if left * right == size), None)
            if right is not None:
                return self.node('Mul', self.size(left), self.size(right))
        raise ValueError(f'the encoder computes with the size {size}, which is not written as ONNX here: export '
                         'it as a savedmodel or as stablehlo')

    def shape(self, sizes: Sequence[Any]) -> Any:
        """Sizes as one int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return np.array(sizes, np.int64)
        return self.node('Concat', *map(self.size, sizes), axis=0)

    def reshape(self, value: Any, sizes: Sequence[Any]) -> str:
        free = [size for size in sizes if not isinstance(size, int)]
        known = [-1 if size in free else size for size in sizes] if len(free) == 1 else sizes
        return self.node('Reshape', self.whole(value), self.shape(known))

    # ---- operations

    def elementwise(self, equation: Any, inputs: list[Any]) -> _Tensor:
        """In the order of axes that the tensors have, if it is one."""
        name, rank = equation.primitive.name, len(equation.outvars[0].aval.shape)
        orders = {value.order for value in inputs if isinstance(value, _Tensor) and value.order}
        order = orders.pop() if len(orders) == 1 else tuple(range(rank))

        def placed(value):
            if isinstance(value, _Tensor):
                return self.ordered(value, order) if value.order else value.name
            return value.transpose(order) if value.ndim == rank else value

        values = [placed(value) for value in inputs]
        if name == 'select_n':
            if len(values) != 3 or equation.invars[0].aval.dtype != bool:
                raise ValueError('the encoder chooses between more than two values, which is not written as ONNX '
                                 'here: export it as a savedmodel or as stablehlo')
            result = self.node('Where', values[0], values[2], values[1])
        elif name == 'clamp':
            result = self.node('Min', self.node('Max', values[1], values[0]), values[2])
        elif name == 'is_finite':
            unknown = self.node('Or', self.node('IsNaN', values[0]), self.node('IsInf', values[0]))
            result = self.node('Not', unknown)
        elif name == 'sub' and isinstance(values[1], np.ndarray) and values[1].dtype == np.float32:
            result = self.node('Add', values[0], -values[1])        # which runtimes join with a convolution
        else:
            result = self.node(_SAME_NAME[name], *values)
        return _Tensor(result, order)

    def op_ne(self, equation, x, y):
        return _Tensor(self.node('Not', self.node('Equal', self.whole(x), self.whole(y))), _plain(equation))

    def op_rsqrt(self, equation, x):
        return _Tensor(self.node('Reciprocal', self.node('Sqrt', x.name)), x.order)

    def op_square(self, equation, x):
        return _Tensor(self.node('Mul', x.name, x.name), x.order)

    def op_integer_pow(self, equation, x):
        power = np.asarray(equation.params['y'], equation.invars[0].aval.dtype)
        return _Tensor(self.node('Pow', x.name, power), x.order)

    def op_exp2(self, equation, x):
        return _Tensor(self.node('Exp', self.node('Mul', x.name, np.float32(math.log(2)))), x.order)

    def op_log1p(self, equation, x):
        return _Tensor(self.node('Log', self.node('Add', x.name, np.float32(1))), x.order)

    def op_expm1(self, equation, x):
        return _Tensor(self.node('Sub', self.node('Exp', x.name), np.float32(1)), x.order)

    def op_erfc(self, equation, x):
        return _Tensor(self.node('Sub', np.float32(1), self.node('Erf', x.name)), x.order)

    def op_convert_element_type(self, equation, x):
        return _Tensor(self.node('Cast', x.name, to=_onnx_type(equation.params['new_dtype'])), x.order)

    def op_dim_as_value(self, equation):
        scalar = self.node('Reshape', self.size(equation.params['dim']), np.zeros(0, np.int64))
        return _Tensor(self.node('Cast', scalar, to=_onnx_type(equation.outvars[0].aval.dtype)), ())

    def op_broadcast_in_dim(self, equation, x, *_):
        shape, dimensions = equation.outvars[0].aval.shape, equation.params['broadcast_dimensions']
        sizes = dict(zip(dimensions, equation.invars[0].aval.shape))
        spread = [sizes.get(axis, 1) for axis in range(len(shape))]
        if isinstance(x, np.ndarray):
            result = x.reshape(spread)
        else:
            new = [axis for axis in range(len(shape)) if axis not in sizes]
            result = self.node('Unsqueeze', self.whole(x), np.array(new, np.int64)) if new else self.whole(x)
        if tuple(spread) != tuple(shape):
            result = self.node('Expand', result, self.shape(shape))
        return _Tensor(result if isinstance(result, str) else self.constant(result), _plain(equation))

    def op_reshape(self, equation, x, *_):
        return _Tensor(self.reshape(x, equation.outvars[0].aval.shape), _plain(equation))

    op_squeeze = op_expand_dims = op_reshape

    def op_transpose(self, equation, x):
        return _Tensor(self.node('Transpose', self.whole(x), perm=list(equation.params['permutation'])),
                       _plain(equation))

    def op_concatenate(self, equation, *values):
        return _Tensor(self.node('Concat', *map(self.whole, values), axis=equation.params['dimension']),
                       _plain(equation))

    def op_slice(self, equation, x):
        params, shape = equation.params, equation.invars[0].aval.shape
        strides = params['strides'] or (1,) * len(shape)
        cut = [axis for axis, size in enumerate(shape) if (params['start_indices'][axis], params['limit_indices'][
            axis], strides[axis]) != (0, size, 1)]
        starts, ends, steps = (np.array([values[axis] for axis in cut], np.int64) for values in (
            params['start_indices'], params['limit_indices'], strides))
        return _Tensor(self.node('Slice', self.whole(x), starts, ends, np.array(cut, np.int64), steps),
                       _plain(equation))

    def op_split(self, equation, x):
        axis, start, parts = equation.params['axis'], 0, []
        for size in equation.params['sizes']:
            part = self.node('Slice', self.whole(x), *(np.array([each], np.int64) for each in (
                start, start + size, axis)))
            parts.append(_Tensor(part, _plain(equation)))
            start += size
        return parts

    def op_gather(self, equation, x, *indices):
        """Of places that are known: taken by number from the values of each image, laid out in a row."""
        shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        by_image = not isinstance(shape[0], int)
        one = [1 if not isinstance(size, int) else size for size in shape]
        params = {name: tuple(1 if not isinstance(size, int) else size for size in value)
                  if name == 'slice_sizes' else value for name, value in equation.params.items()}
        if not isinstance(x, _Tensor) or not all(isinstance(each, np.ndarray) for each in indices) or (
                by_image and out[:1] != shape[:1]):
            raise ValueError('the encoder picks values at places that depend on the images, which is not written '
                             'as ONNX here: export it as a savedmodel or as stablehlo')
        with jax.ensure_compile_time_eval():
            places = equation.primitive.bind(np.arange(math.prod(one), dtype=np.int32).reshape(one), *indices,
                                             **params)
        rows = self.reshape(x, [shape[0] if by_image else 1, math.prod(one)])
        taken = self.node('Gather', rows, np.asarray(places, np.int64).reshape(-1), axis=1)
        return _Tensor(self.reshape(_Tensor(taken, (0, 1)), out), _plain(equation))

    op_dynamic_slice = op_rev = op_gather

    def op_pad(self, equation, x, value):
        config = equation.params['padding_config']
        if any(interior or low < 0 or high < 0 for low, high, interior in config):
            raise ValueError('the encoder pads between pixels or crops by padding, which is not written as ONNX '
                             'here: export it as a savedmodel or as stablehlo')
        pads = np.array([low for low, *_ in config] + [high for _, high, _ in config], np.int64)
        return _Tensor(self.node('Pad', self.whole(x), pads, self.whole(value)), _plain(equation))

    def op_reduce_sum(self, equation, x):
        axes = [x.order.index(axis) for axis in equation.params['axes']]
        left = [axis for axis in x.order if axis not in equation.params['axes']]
        kind = _REDUCTIONS.get(equation.primitive.name)
        name = (self.node(kind, x.name, axes=axes, keepdims=0) if kind else
                self.node('ReduceSum', x.name, np.array(axes, np.int64), keepdims=0))
        return _Tensor(name, tuple(sorted(left).index(axis) for axis in left))

    def op_argmax(self, equation, x):
        axis, = equation.params['axes']
        index = self.node('ArgMax', self.whole(x), axis=axis, keepdims=0)
        return _Tensor(self.node('Cast', index, to=_onnx_type(equation.params['index_dtype'])), _plain(equation))

    def op_dot_general(self, equation, x, y):
        (x_sum, y_sum), (x_batch, y_batch) = equation.params['dimension_numbers']
        ranks = [len(variable.aval.shape) for variable in equation.invars]
        letters = iter('abcdefghijklmnopqrstuvwxyz')
        x_axes = [next(letters) for _ in range(ranks[0])]
        y_axes = [next(letters) for _ in range(ranks[1])]
        for left, right in (*zip(x_sum, y_sum), *zip(x_batch, y_batch)):
            y_axes[right] = x_axes[left]
        if not x_batch and ranks[1] == 2 and tuple(x_sum) == (ranks[0] - 1,) and tuple(y_sum) == (0,):
            return _Tensor(self.node('MatMul', self.whole(x), self.whole(y)), _plain(equation))
        out = [x_axes[axis] for axis in x_batch] + [
            letter for letter in x_axes + y_axes if (letter in x_axes) != (letter in y_axes)]
        equation_text = f'{"".join(x_axes)},{"".join(y_axes)}->{"".join(out)}'
        return _Tensor(self.node('Einsum', self.whole(x), self.whole(y), equation=equation_text), _plain(equation))

    def op_conv_general_dilated(self, equation, x, kernel):
        params, numbers = equation.params, equation.params['dimension_numbers']
        if params['batch_group_count'] != 1 or set(params['lhs_dilation']) != {1}:
            raise ValueError('the encoder has a transposed convolution, which is not written as ONNX here: export '
                             'it as a savedmodel or as stablehlo')
        x = self.ordered(x, tuple(numbers.lhs_spec)) if isinstance(x, _Tensor) else x.transpose(numbers.lhs_spec)
        sizes = [equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        if isinstance(kernel, np.ndarray):
            kernel = self.constant(kernel.transpose(numbers.rhs_spec), like=kernel)
        else:
            kernel = self.ordered(kernel, tuple(numbers.rhs_spec))
        reach = [dilation * (size - 1) + 1 for size, dilation in zip(sizes, params['rhs_dilation'])]
        result = self.node('Conv', x, kernel, group=params['feature_group_count'], kernel_shape=sizes,
                           strides=list(params['window_strides']), dilations=list(params['rhs_dilation']),
                           **_padding(params['padding'], reach, params['window_strides']))
        return _Tensor(result, tuple(numbers.out_spec))

    def op_reduce_window_max(self, equation, x):
        return self.pool('MaxPool', equation, x)

    def op_reduce_window_sum(self, equation, x):
        mean = self.pool('AveragePool', equation, x, count_include_pad=1)
        size = np.float32(math.prod(equation.params['window_dimensions']))
        return _Tensor(self.node('Mul', mean.name, size), mean.order)

    def pool(self, kind, equation, x, **attributes):
        params = equation.params
        windows, strides, padding = (params[name] for name in ('window_dimensions', 'window_strides', 'padding'))
        spatial = [axis for axis, each in enumerate(zip(windows, strides)) if each != (1, 1)]
        others = [axis for axis in range(len(windows)) if axis not in spatial]
        if len(others) != 2 or any(each != 1 for name in ('base_dilation', 'window_dilation')
                                   for each in params[name]) or any(padding[axis] != (0, 0) for axis in others):
            raise ValueError('the encoder pools other than over the pixels of maps, which is not written as ONNX '
                             'here: export it as a savedmodel or as stablehlo')
        sizes, steps, pads = ([values[axis] for axis in spatial] for values in (windows, strides, padding))
        attributes |= _padding(pads, sizes, steps if kind == 'MaxPool' else None)
        order = (*others, *spatial)
        return _Tensor(self.node(kind, self.ordered(x, order), kernel_shape=sizes, strides=steps, **attributes),
                       order)


def _plain(equation):
    """JAX's own order of axes, of the output."""
    return tuple(range(len(equation.outvars[0].aval.shape)))


def _padding(pads, sizes, strides):
    """Attributes; where the padding is that of SAME, it is said so, which holds for other sizes of images too."""
    pads = [tuple(map(int, each)) for each in pads]
    if strides:
        totals = [max(size - stride, 0) for size, stride in zip(sizes, strides)]
        if any(stride > 1 for stride in strides) and pads == [(total // 2, total - total // 2) for total in totals]:
            return {'auto_pad': 'SAME_UPPER'}
    return {'pads': [low for low, _ in pads] + [high for _, high in pads]}


def _onnx_type(dtype):
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
