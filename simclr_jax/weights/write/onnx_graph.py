"""A program that JAX traced, operation by operation, as nodes of an ONNX graph.

No converter is used. jax2onnx 0.17.1 asks for an older orbax-checkpoint than this package does; beside it (JAX 0.10.2
and 0.12.0), positional arguments of max_pool and a ViT with a free batch end it. tf2onnx 1.17 does not know
XlaCallModule, which is all that jax2tf writes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

_END = 2 ** 62       # of an axis, whatever its size


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
    """Nodes and constants of an ONNX graph, made from a traced program.

    A value is the name of a tensor, or an array where nothing of an image is in it.
    """

    def __init__(self, names: Mapping[int, str]):
        self.nodes, self.initializers = [], {}
        self.names = names      # of arrays, by their id
        self.sizes = {}         # symbolic size -> (tensor, axis) that has it
        self.transposed = {}    # tensor -> (the tensor that it is a transpose of, in this order of axes)

    def run(self, program: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The results of a program, as values; so are its inputs."""
        jaxpr = program.jaxpr
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(_known, program.consts), *inputs)))

        def value_of(variable):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype) if isinstance(variable, Literal) else values[variable]

        for variable, value in list(values.items()):
            self.remember_sizes(value, variable.aval.shape)
        for equation in jaxpr.eqns:
            outputs = self.apply(equation, [value_of(variable) for variable in equation.invars])
            for variable, output in zip(equation.outvars, outputs, strict=True):
                values[variable] = output
                self.remember_sizes(output, variable.aval.shape)
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
        if not any(isinstance(value, str) for value in inputs) and all(
                isinstance(size, int) for shape in shapes for size in shape) and name != 'dim_as_value':
            with jax.ensure_compile_time_eval():
                results = equation.primitive.bind(*inputs, **params)
            return list(map(_known, results if equation.primitive.multiple_results else [results]))
        if name in _ELEMENTWISE:
            return [self.elementwise(equation, inputs)]
        method = getattr(self, f'op_{name}', None)
        if method is None:
            raise _unknown(f'uses the operation {name} of JAX')
        outputs = method(equation, *inputs)
        return outputs if isinstance(outputs, list) else [outputs]

    # ---- the graph

    def remember_sizes(self, value: Any, shape: Sequence[Any]) -> None:
        """From now on the symbolic sizes of this value are known."""
        for axis, size in enumerate(shape):
            if isinstance(value, str) and not isinstance(size, int):
                self.sizes.setdefault(size, (value, axis))

    def node(self, kind: str, *inputs: Any, name: str = '', **attributes: Any) -> str:
        """Adds a node; its inputs are names, or arrays, which become constants. Returns the output's name."""
        from onnx import helper

        name = name or f'{kind.lower()}_{len(self.nodes)}'
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray, like: np.ndarray | None = None) -> str:
        """The name of a constant; of a variable, in whatever order of axes (`like` it), its own."""
        from onnx import numpy_helper

        name = self.names.get(id(array if like is None else like), '')
        if name in self.initializers or not name:
            name = f'constant_{len(self.initializers)}'
        self.initializers[name] = numpy_helper.from_array(np.asarray(array, order='C'), name)
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

    def transpose(self, value: str, order: Sequence[int]) -> str:
        """The value with its axes in this order; transposing it back gives the value itself."""
        source, before = self.transposed.get(value, (value, range(len(order))))
        order = [before[axis] for axis in order]
        if order == sorted(order):
            return source
        name = self.node('Transpose', source, perm=order)
        self.transposed[name] = source, tuple(order)
        return name

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
        return self.node('Reshape', value, self.shape(known))

    # ---- operations

    def elementwise(self, equation: Any, values: list[Any]) -> str:
        """Before a transposition that all inputs have behind them, so that the next one undoes it."""
        name, rank = equation.primitive.name, len(equation.outvars[0].aval.shape)
        if name == 'select_n' and equation.invars[0].aval.dtype != bool:
            raise _unknown('chooses between more than two values')
        orders = {self.transposed[value][1] for value in values
                  if isinstance(value, str) and value in self.transposed}
        order = orders.pop() if len(orders) == 1 else ()
        if order:
            back = _inverse(order)
            full = [len(variable.aval.shape) == rank for variable in equation.invars]       # not a scalar
            values = [value if not is_full else self.transpose(value, back) if isinstance(value, str)
                      else value.transpose(back) for value, is_full in zip(values, full)]
        if name == 'sub' and isinstance(values[1], np.ndarray) and values[1].dtype == np.float32:
            name, values = 'add', [values[0], -values[1]]   # which runtimes join with a convolution
        result = _ELEMENTWISE[name](self.node, *values)
        return self.transpose(result, order) if order else result

    def op_integer_pow(self, equation, x):
        power = np.asarray(equation.params['y'], equation.invars[0].aval.dtype)
        return self.node('Pow', x, power)

    def op_convert_element_type(self, equation, x):
        return self.node('Cast', x, to=_onnx_type(equation.params['new_dtype']))

    def op_dim_as_value(self, equation):
        scalar = self.node('Reshape', self.size(equation.params['dim']), np.zeros(0, np.int64))
        return self.node('Cast', scalar, to=_onnx_type(equation.outvars[0].aval.dtype))

    def op_broadcast_in_dim(self, equation, x, *_):
        shape, dimensions = equation.outvars[0].aval.shape, equation.params['broadcast_dimensions']
        sizes = dict(zip(dimensions, equation.invars[0].aval.shape))
        spread = [sizes.get(axis, 1) for axis in range(len(shape))]
        if isinstance(x, np.ndarray):
            result = x.reshape(spread)
        else:
            new = [axis for axis in range(len(shape)) if axis not in sizes]
            result = self.node('Unsqueeze', x, np.array(new, np.int64)) if new else x
        if tuple(spread) != tuple(shape):
            result = self.node('Expand', result, self.shape(shape))
        return result if isinstance(result, str) else self.constant(result)

    def op_reshape(self, equation, x, *_):
        return self.reshape(x, equation.outvars[0].aval.shape)

    op_squeeze = op_expand_dims = op_reshape

    def op_transpose(self, equation, x):
        return self.transpose(x, equation.params['permutation'])

    def op_concatenate(self, equation, *values):
        return self.node('Concat', *values, axis=equation.params['dimension'])

    def op_slice(self, equation, x):
        params, shape = equation.params, equation.invars[0].aval.shape
        bounds = zip(params['start_indices'], params['limit_indices'], params['strides'] or (1,) * len(shape))
        cut = {axis: [start, _END if limit == size else limit, stride]
               for axis, ((start, limit, stride), size) in enumerate(zip(bounds, shape))
               if (start, limit, stride) != (0, size, 1)}
        starts, ends, steps = np.array(list(cut.values()), np.int64).T
        return self.node('Slice', x, starts, ends, np.array([*cut], np.int64), steps)

    def op_tile(self, equation, x):
        return self.node('Tile', x, self.shape(equation.params['reps']))

    def op_split(self, equation, x):
        sizes = np.array(equation.params['sizes'])
        bounds = [np.array([each], np.int64) for each in (0, *np.cumsum(sizes))]
        axis = np.array([equation.params['axis']], np.int64)
        return [self.node('Slice', x, start, end, axis) for start, end in zip(bounds, bounds[1:])]

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
        return self.reshape(taken, out)

    op_dynamic_slice = op_rev = op_gather

    def op_pad(self, equation, x, value):
        config = equation.params['padding_config']
        if any(interior or low < 0 or high < 0 for low, high, interior in config):
            raise _unknown('pads between pixels or crops by padding')
        pads = np.array([low for low, *_ in config] + [high for _, high, _ in config], np.int64)
        return self.node('Pad', x, pads, value)

    def op_reduce_sum(self, equation, x):
        axes, kind = list(equation.params['axes']), _REDUCTIONS.get(equation.primitive.name)
        if kind:
            return self.node(kind, x, axes=axes, keepdims=0)
        return self.node('ReduceSum', x, np.array(axes, np.int64), keepdims=0)

    op_reduce_max = op_reduce_min = op_reduce_prod = op_reduce_sum

    def op_argmax(self, equation, x):
        axis, = equation.params['axes']
        index = self.node('ArgMax', x, axis=axis, keepdims=0)
        return self.node('Cast', index, to=_onnx_type(equation.params['index_dtype']))

    def op_dot_general(self, equation, x, y):
        (x_sum, y_sum), (x_batch, y_batch) = equation.params['dimension_numbers']
        ranks = [len(variable.aval.shape) for variable in equation.invars]
        letters = iter('abcdefghijklmnopqrstuvwxyz')
        x_axes = [next(letters) for _ in range(ranks[0])]
        y_axes = [next(letters) for _ in range(ranks[1])]
        for left, right in (*zip(x_sum, y_sum), *zip(x_batch, y_batch)):
            y_axes[right] = x_axes[left]
        if not x_batch and ranks[1] == 2 and tuple(x_sum) == (ranks[0] - 1,) and tuple(y_sum) == (0,):
            return self.node('MatMul', x, y)
        out = [x_axes[axis] for axis in x_batch] + [
            letter for letter in x_axes + y_axes if (letter in x_axes) != (letter in y_axes)]
        return self.node('Einsum', x, y, equation=f'{"".join(x_axes)},{"".join(y_axes)}->{"".join(out)}')

    def op_conv_general_dilated(self, equation, x, kernel):
        params, numbers = equation.params, equation.params['dimension_numbers']
        if params['batch_group_count'] != 1 or set(params['lhs_dilation']) != {1}:
            raise _unknown('has a transposed convolution')
        sizes = [equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
        if isinstance(kernel, np.ndarray):
            kernel = self.constant(kernel.transpose(numbers.rhs_spec), like=kernel)
        else:
            kernel = self.transpose(kernel, numbers.rhs_spec)
        reach = [dilation * (size - 1) + 1 for size, dilation in zip(sizes, params['rhs_dilation'])]
        result = self.node('Conv', self.transpose(x, numbers.lhs_spec), kernel, kernel_shape=sizes,
                           strides=list(params['window_strides']), dilations=list(params['rhs_dilation']),
                           group=params['feature_group_count'],
                           **_padding(params['padding'], reach, params['window_strides']))
        return self.transpose(result, _inverse(numbers.out_spec))

    def op_reduce_window_max(self, equation, x):
        return self.pool('MaxPool', equation, x)

    def op_reduce_window_sum(self, equation, x):
        size = np.float32(math.prod(equation.params['window_dimensions']))
        return self.pool('AveragePool', equation, x, scale=size, count_include_pad=1)

    def pool(self, kind, equation, x, scale=None, **attributes):
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
        result = self.node(kind, self.transpose(x, order), kernel_shape=sizes, strides=steps, **attributes)
        if scale is not None:
            result = self.node('Mul', result, scale)
        return self.transpose(result, _inverse(order))


def _known(value):
    """An array; a random key, of which a bridged nnx module makes some that it does not use, as it is."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) else np.asarray(value)


def _inverse(order):
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _of_one_image(sizes):
    return tuple(size if isinstance(size, int) else 1 for size in sizes)


def _padding(pads: Sequence[Any], sizes: Sequence[int], strides: Sequence[int] | None) -> dict[str, Any]:
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
