"""A program that JAX traced, operation by operation, as nodes of an ONNX graph.

jax2onnx (0.13 and 0.14) is not used: its max-pool loses the padding, and positional arguments end it.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

_END = 2 ** 62       # of an axis, whatever its size


class Tensor(NamedTuple):
    """A value in the graph: axis i of the tensor `name` is axis order[i] of the value in JAX."""

    name: str
    order: tuple[int, ...]


# Operations on each value by itself, as functions of (node, *inputs).
_ELEMENTWISE = {
    **{name: functools.partial(lambda kind, node, *inputs: node(kind, *inputs), kind) for name, kind in {
        'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max', 'min': 'Min',
        'neg': 'Neg', 'abs': 'Abs', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'tanh': 'Tanh', 'erf': 'Erf',
        'logistic': 'Sigmoid', 'sign': 'Sign', 'floor': 'Floor', 'ceil': 'Ceil', 'sin': 'Sin', 'cos': 'Cos',
        'pow': 'Pow', 'eq': 'Equal', 'lt': 'Less', 'le': 'LessOrEqual', 'gt': 'Greater',
        'ge': 'GreaterOrEqual', 'and': 'And', 'or': 'Or', 'not': 'Not'}.items()},
    'rsqrt': lambda node, x: node('Reciprocal', node('Sqrt', x)),
    'square': lambda node, x: node('Mul', x, x),
    'exp2': lambda node, x: node('Exp', node('Mul', x, np.float32(math.log(2)))),
    'expm1': lambda node, x: node('Sub', node('Exp', x), np.float32(1)),
    'log1p': lambda node, x: node('Log', node('Add', x, np.float32(1))),
    'erfc': lambda node, x: node('Sub', np.float32(1), node('Erf', x)),
    'is_finite': lambda node, x: node('Not', node('Or', node('IsNaN', x), node('IsInf', x))),
    'ne': lambda node, x, y: node('Not', node('Equal', x, y)),
    'clamp': lambda node, low, x, high: node('Min', node('Max', x, low), high),
    'select_n': lambda node, which, no, yes: node('Where', which, yes, no)}
_UNCHANGED = ('stop_gradient', 'copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'device_put',
              'name', 'reduce_precision')
_REDUCTIONS = {'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin', 'reduce_prod': 'ReduceProd'}


def _unknown(what):
    return ValueError(f'the encoder {what}, which is not written as ONNX here: export it as a savedmodel '
                      'or as stablehlo')


class Graph:
    """Nodes and constants of an ONNX graph, made from a traced program."""

    def __init__(self, names: Mapping[int, str]):
        self.nodes, self.initializers = [], {}
        self.names = names      # of arrays, by their id
        self.bytes = 0          # of all constants
        self.sizes = {}         # symbolic size -> (tensor, axis) that has it

    def run(self, program: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The results of a program; values are `Tensor`s, or arrays where nothing of an image is in them."""
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
                if isinstance(output, Tensor):
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
            return list(map(np.asarray, results if equation.primitive.multiple_results else [results]))
        if name in _ELEMENTWISE:
            return [self.elementwise(equation, inputs)]
        method = getattr(self, f'op_{name}', None)
        if method is None:
            raise _unknown(f'uses the operation {name} of JAX')
        outputs = method(equation, *inputs)
        return outputs if isinstance(outputs, list) else [outputs]

    # ---- the graph

    def tensor(self, name: str, shape: Sequence[Any], order: tuple[int, ...] | None = None) -> Tensor:
        """The value of that name, whose symbolic sizes are known from now on."""
        order = tuple(range(len(shape))) if order is None else order
        for axis, source in enumerate(order):
            if not isinstance(shape[source], int):
                self.sizes.setdefault(shape[source], (name, axis))
        return Tensor(name, order)

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
        if not isinstance(value, Tensor):
            return value
        return self.ordered(value, tuple(range(len(value.order))))

    def ordered(self, value: Tensor, order: tuple[int, ...]) -> str:
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
        raise _unknown(f'computes with the size {size}')

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

    def elementwise(self, equation: Any, inputs: list[Any]) -> Tensor:
        """In the order of axes that the tensors have, if it is one."""
        name, rank = equation.primitive.name, len(equation.outvars[0].aval.shape)
        orders = {value.order for value in inputs if isinstance(value, Tensor) and value.order}
        order = orders.pop() if len(orders) == 1 else tuple(range(rank))

        def placed(value):
            if isinstance(value, Tensor):
                return self.ordered(value, order) if value.order else value.name
            return value.transpose(order) if value.ndim == rank else value

        values = [placed(value) for value in inputs]
        if name == 'select_n' and equation.invars[0].aval.dtype != bool:
            raise _unknown('chooses between more than two values')
        if name == 'sub' and isinstance(values[1], np.ndarray) and values[1].dtype == np.float32:
            name, values[1] = 'add', -values[1]     # which runtimes join with a convolution
        return Tensor(_ELEMENTWISE[name](self.node, *values), order)

    def op_integer_pow(self, equation, x):
        power = np.asarray(equation.params['y'], equation.invars[0].aval.dtype)
        return Tensor(self.node('Pow', x.name, power), x.order)

    def op_convert_element_type(self, equation, x):
        return Tensor(self.node('Cast', x.name, to=_onnx_type(equation.params['new_dtype'])), x.order)

    def op_dim_as_value(self, equation):
        scalar = self.node('Reshape', self.size(equation.params['dim']), np.zeros(0, np.int64))
        return Tensor(self.node('Cast', scalar, to=_onnx_type(equation.outvars[0].aval.dtype)), ())

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
        return Tensor(result if isinstance(result, str) else self.constant(result), _plain(equation))

    def op_reshape(self, equation, x, *_):
        return Tensor(self.reshape(x, equation.outvars[0].aval.shape), _plain(equation))

    op_squeeze = op_expand_dims = op_reshape

    def op_transpose(self, equation, x):
        return Tensor(self.node('Transpose', self.whole(x), perm=list(equation.params['permutation'])),
                      _plain(equation))

    def op_concatenate(self, equation, *values):
        return Tensor(self.node('Concat', *map(self.whole, values), axis=equation.params['dimension']),
                      _plain(equation))

    def op_slice(self, equation, x):
        params, shape = equation.params, equation.invars[0].aval.shape
        bounds = zip(params['start_indices'], params['limit_indices'], params['strides'] or (1,) * len(shape))
        cut = {axis: [start, _END if limit == size else limit, stride]
               for axis, ((start, limit, stride), size) in enumerate(zip(bounds, shape))
               if (start, limit, stride) != (0, size, 1)}
        starts, ends, steps = np.array(list(cut.values()), np.int64).T
        return Tensor(self.node('Slice', self.whole(x), starts, ends, np.array([*cut], np.int64), steps),
                      _plain(equation))

    def op_tile(self, equation, x):
        return Tensor(self.node('Tile', self.whole(x), self.shape(equation.params['reps'])), _plain(equation))

    def op_split(self, equation, x):
        sizes = np.array(equation.params['sizes'])
        bounds = [np.array([each], np.int64) for each in (0, *np.cumsum(sizes))]
        axis = np.array([equation.params['axis']], np.int64)
        return [Tensor(self.node('Slice', self.whole(x), start, end, axis), _plain(equation))
                for start, end in zip(bounds, bounds[1:])]

    def op_gather(self, equation, x, *indices):
        """Of places that are known: taken by number from the values of each image, laid out in a row."""
        shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        by_image = not isinstance(shape[0], int)
        if not all(isinstance(each, np.ndarray) for each in indices) or by_image and out[:1] != shape[:1]:
            raise _unknown('picks values at places that depend on the images')
        params = dict(equation.params)
        if 'slice_sizes' in params:
            params['slice_sizes'] = _of_one_image(params['slice_sizes'])
        one = _of_one_image(shape)
        numbers = np.arange(math.prod(one), dtype=np.int32).reshape(one)
        with jax.ensure_compile_time_eval():
            places = equation.primitive.bind(numbers, *indices, **params)
        rows = self.reshape(x, [shape[0] if by_image else 1, numbers.size])
        taken = self.node('Gather', rows, np.asarray(places, np.int64).reshape(-1), axis=1)
        return Tensor(self.reshape(Tensor(taken, (0, 1)), out), _plain(equation))

    op_dynamic_slice = op_rev = op_gather

    def op_pad(self, equation, x, value):
        config = equation.params['padding_config']
        if any(interior or low < 0 or high < 0 for low, high, interior in config):
            raise _unknown('pads between pixels or crops by padding')
        pads = np.array([low for low, *_ in config] + [high for _, high, _ in config], np.int64)
        return Tensor(self.node('Pad', self.whole(x), pads, self.whole(value)), _plain(equation))

    def op_reduce_sum(self, equation, x):
        axes = [x.order.index(axis) for axis in equation.params['axes']]
        left = [axis for axis in x.order if axis not in equation.params['axes']]
        kind = _REDUCTIONS.get(equation.primitive.name)
        name = (self.node(kind, x.name, axes=axes, keepdims=0) if kind else
                self.node('ReduceSum', x.name, np.array(axes, np.int64), keepdims=0))
        return Tensor(name, tuple(sorted(left).index(axis) for axis in left))

    op_reduce_max = op_reduce_min = op_reduce_prod = op_reduce_sum

    def op_argmax(self, equation, x):
        axis, = equation.params['axes']
        index = self.node('ArgMax', self.whole(x), axis=axis, keepdims=0)
        index = self.node('Cast', index, to=_onnx_type(equation.params['index_dtype']))
        return Tensor(index, _plain(equation))

    def op_dot_general(self, equation, x, y):
        (x_sum, y_sum), (x_batch, y_batch) = equation.params['dimension_numbers']
        ranks = [len(variable.aval.shape) for variable in equation.invars]
        letters = iter('abcdefghijklmnopqrstuvwxyz')
        x_axes = [next(letters) for _ in range(ranks[0])]
        y_axes = [next(letters) for _ in range(ranks[1])]
        for left, right in (*zip(x_sum, y_sum), *zip(x_batch, y_batch)):
            y_axes[right] = x_axes[left]
        if not x_batch and ranks[1] == 2 and tuple(x_sum) == (ranks[0] - 1,) and tuple(y_sum) == (0,):
            return Tensor(self.node('MatMul', self.whole(x), self.whole(y)), _plain(equation))
        out = [x_axes[axis] for axis in x_batch] + [
            letter for letter in x_axes + y_axes if (letter in x_axes) != (letter in y_axes)]
        product = self.node('Einsum', self.whole(x), self.whole(y),
                            equation=f'{"".join(x_axes)},{"".join(y_axes)}->{"".join(out)}')
        return Tensor(product, _plain(equation))

    def op_conv_general_dilated(self, equation, x, kernel):
        params, numbers = equation.params, equation.params['dimension_numbers']
        if params['batch_group_count'] != 1 or set(params['lhs_dilation']) != {1}:
            raise _unknown('has a transposed convolution')
        x = self.ordered(x, tuple(numbers.lhs_spec))
        sizes = [equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        if isinstance(kernel, np.ndarray):
            kernel = self.constant(kernel.transpose(numbers.rhs_spec), like=kernel)
        else:
            kernel = self.ordered(kernel, tuple(numbers.rhs_spec))
        reach = [dilation * (size - 1) + 1 for size, dilation in zip(sizes, params['rhs_dilation'])]
        result = self.node('Conv', x, kernel, group=params['feature_group_count'], kernel_shape=sizes,
                           strides=list(params['window_strides']), dilations=list(params['rhs_dilation']),
                           **_padding(params['padding'], reach, params['window_strides']))
        return Tensor(result, tuple(numbers.out_spec))

    def op_reduce_window_max(self, equation, x):
        return self.pool('MaxPool', equation, x)

    def op_reduce_window_sum(self, equation, x):
        mean = self.pool('AveragePool', equation, x, count_include_pad=1)
        size = np.float32(math.prod(equation.params['window_dimensions']))
        return Tensor(self.node('Mul', mean.name, size), mean.order)

    def pool(self, kind, equation, x, **attributes):
        params = equation.params
        windows, strides = params['window_dimensions'], params['window_strides']
        padding, dilations = params['padding'], {*params['base_dilation'], *params['window_dilation']}
        spatial = [axis for axis, each in enumerate(zip(windows, strides)) if each != (1, 1)]
        others = [axis for axis in range(len(windows)) if axis not in spatial]
        if len(others) != 2 or dilations != {1} or any(padding[axis] != (0, 0) for axis in others):
            raise _unknown('pools other than over the pixels of maps')
        sizes, steps, pads = ([values[axis] for axis in spatial] for values in (windows, strides, padding))
        attributes |= _padding(pads, sizes, steps if kind == 'MaxPool' else None)
        order = (*others, *spatial)
        x = self.ordered(x, order)
        return Tensor(self.node(kind, x, kernel_shape=sizes, strides=steps, **attributes), order)


def _plain(equation):
    """JAX's own order of axes, of the output."""
    return tuple(range(len(equation.outvars[0].aval.shape)))


def _of_one_image(sizes):
    return tuple(size if isinstance(size, int) else 1 for size in sizes)


def _padding(pads, sizes, strides):
    """Attributes; the padding of SAME by its name, which is right for other sizes of images too."""
    pads = [tuple(map(int, each)) for each in pads]
    if strides and max(strides) > 1:
        totals = [max(size - stride, 0) for size, stride in zip(sizes, strides)]
        if pads == [(total // 2, total - total // 2) for total in totals]:
            return {'auto_pad': 'SAME_UPPER'}
    return {'pads': [low for low, _ in pads] + [high for _, high in pads]}


def _onnx_type(dtype):
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
