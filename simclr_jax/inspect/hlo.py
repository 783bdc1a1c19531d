"""What a traced and a compiled program say of themselves: FLOPs, collectives, arrays, memory.

Everything here reads text and numbers; nothing is compiled or run. A compiled program is that of one
device (SPMD), so all counts and bytes of it are per device.
"""

import collections
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
         'collective-broadcast', 'ragged-all-to-all')

_BITS = {'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 'f16': 16,
         'bf16': 16, 's32': 32, 'u32': 32, 'f32': 32, 's64': 64, 'u64': 64, 'f64': 64, 'c64': 64, 'c128': 128}
_SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,<=]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{')
# %name = SHAPE op(OPERANDS), ATTRIBUTES: the layouts in SHAPE hold parentheses, but none after a space.
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_CALLED = re.compile(
    r'\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_WHILE = re.compile(r'\b(condition|body)=%?([\w.\-]+)')
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_NORM = re.compile(r'norm\d*/')        # models/resnet.py and network.py: stem_norm, norm1; not jit(norm)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What runs other instructions, and what a GPU launches nothing for.
_CONTROL = ('while', 'call', 'conditional', 'async-start')
_NO_KERNEL = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id',
              'replica-id', 'opt-barrier', 'async-update', *_CONTROL)
# Of a program for several TPU slices: what goes to the others, by libtpu's runtime.
_TO_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_GROUPS = re.compile(r'(?:replica_groups|source_target_pairs)=(?:\{((?:\{[\d,]*\},?)+)\}'
                     r"|\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?|mesh\[([^\]]*)\] \{([^}]*)\}(?!, ?device_ids))")
_SIZE = r'([\d.]+)([KMGT]?)(?:iB|B)?'
_DOES_NOT_FIT = (re.compile(rf'Used {_SIZE} of {_SIZE} hbm', re.IGNORECASE),
                 re.compile(rf'temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)', re.IGNORECASE))


class Collective(NamedTuple):
    """The collectives of one kind in one run of a program, on one device.

    Attributes:
        count: how many run, those in a loop as often as the loop.
        bytes: what they carry: the whole array of an all-reduce, the gathered result of an
            all-gather, the operands of the others.
        certain: False if one of them lies in a loop whose length the text does not tell; it is
            then counted once.
    """

    count: int
    bytes: int
    certain: bool = True


class Kernels(NamedTuple):
    """What a GPU runs in one run of a program: kernels, and the bytes that they read and write in all."""

    count: int
    bytes: int


class Instruction(NamedTuple):
    """A line of a program's text, such as '%name = SHAPE op(OPERANDS), ATTRIBUTES'."""

    shape: str
    op: str
    rest: str                           # operands and attributes

    @property
    def operands(self) -> list[str]:
        """Names of instructions of the same computation."""
        return re.findall(r'%([\w.\-]+)', self.rest.split('), ')[0])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, those of a loop too."""
        branches = ','.join(_BRANCHES.findall(self.rest))
        return _CALLED.findall(self.rest) + re.findall(r'[\w.\-]+', branches)

    @property
    def op_name(self) -> str:
        """Where in the traced function it stems from: 'jit(step)/jvp(loss)/log', or ''."""
        match = _OP_NAME.search(self.rest)
        return match[1] if match else ''


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """({computation: {instruction name: instruction}}, the entry computation's name), in the text's order."""
    program, entry, current = {}, '', {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = program[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            current[match[1]] = Instruction(*match.groups()[1:])
    return program, entry


def module_name(text: str) -> str:
    """The name of a program, such as 'jit_train_step'."""
    return text.removeprefix('HloModule ').split(',')[0].split()[0]


def shape_bytes(text: str) -> int:
    """Bytes of all array shapes in `text`, such as '(f32[8,2]{1,0:T(8,128)}, u32[])', without padding."""
    total = 0
    for dtype, axes in _SHAPE.findall(text):
        bits = 8 if dtype.startswith('f8') else _BITS.get(dtype, 0)          # 0: token[], opaque[]
        total += math.ceil(math.prod(_axes(axes)) * bits / 8)
    return total


def collectives(text: str) -> dict[str, Collective]:
    """{kind: Collective} of a compiled program's text (`compiled.as_text()`).

    An asynchronous pair (-start, -done) is one collective, a collective of a tuple carries the sum.
    """
    return _tally(text, lambda instruction, kind: None if instruction.op == 'send' else kind)


def by_network(text: str, places: Sequence[int]) -> dict[str, dict[str, Collective]]:
    """{'within', 'between': {kind: Collective}}: those of devices of one place, and those of several.

    Args:
        text: of a compiled program. That of several TPU slices is the program of one: what goes to the
            others is a send, and counts as its collective with the operand's bytes.
        places: the slice or host of each device, in the order of the mesh.
    """
    partitions = re.search(r'num_partitions=(\d+)', text.partition('\n')[0])
    of_one_slice = len(places) > int(partitions[1] if partitions else 1)
    found = _tally(text, lambda instruction, kind: (
        'between' if instruction.op == 'send' or not of_one_slice and any(
            len({places[device] for device in group}) > 1 for group in _groups(instruction.rest, len(places)))
        else 'within', kind))
    return {network: {kind: value for (where, kind), value in sorted(found.items()) if where == network}
            for network in ('within', 'between')}


def carried(text: str) -> dict[str, Collective]:
    """What the collectives of a compiled training step carry, as the names of its operations tell.

    It is for a state that every device holds whole; a split one sends parameters, too.

    Returns:
        {what: Collective} for 'batch norm forward', 'batch norm backward', 'gradients', 'loss' (projections
        and what belongs to them) and 'metrics' (numbers), where there are some.
    """
    return _tally(text, _purpose)


def has_loops(text: str) -> bool:
    """Whether the program has a loop, whose body XLA's own cost analysis counts once."""
    return any(instruction.op == 'while' for instructions in parse(text)[0].values()
               for instruction in instructions.values())


def kernels(text: str) -> Kernels:
    """Of a GPU's program: what it launches, but for collectives, loops as often as they run.

    Every operand and result counts whole, once for each kernel, cache or not.
    """
    program, entry = parse(text)
    calls, count, size = _calls(program), 0, 0
    inside = {name for instructions in program.values() for instruction in instructions.values()
              if instruction.op not in _CONTROL for name in instruction.called}       # of fusions and reductions
    for name, instructions in program.items():
        times = 0 if name in inside else _executions(name, entry, calls)[0]
        for instruction in instructions.values() if times else ():
            kind = instruction.op.removesuffix('-start')
            if kind in KINDS or kind in _NO_KERNEL or instruction.op.endswith('-done'):
                continue
            count += times
            size += times * (shape_bytes(instruction.shape) + sum(
                shape_bytes(instructions[operand].shape) for operand in instruction.operands
                if operand in instructions))
    return Kernels(count, size)


def arrays_between(text: str, rows: set[int], columns: set[int]) -> list[str]:
    """The shapes in `text` that have an axis in `rows` and another one in `columns`, sorted.

    With rows = {n, 2n} and columns = {2N} it finds a dense similarity matrix of n images on this
    device against all N. It compares sizes alone: choose them so that no other axis has them.
    """
    found = set()
    for dtype, text_axes in _SHAPE.findall(text):
        axes = _axes(text_axes)
        pairs = ((a, b) for i, a in enumerate(axes) for j, b in enumerate(axes) if i != j)
        if any(a in rows and b in columns for a, b in pairs):
            found.add(f'{dtype}[{text_axes}]')
    return sorted(found)


def count_flops(jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, over all devices together.

    Two for each multiplication with its addition; loops count as often as they run, so that this
    stays right where XLA's cost analysis, which counts the body of a loop once, does not. The
    zeros that a padded convolution multiplies count too. Branches count as their most expensive.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == 'dot_general':
            (lhs_contracted, _), _ = params['dimension_numbers']
            contracted = math.prod(equation.invars[0].aval.shape[axis] for axis in lhs_contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * contracted
        elif name == 'conv_general_dilated':
            kernel = equation.invars[1].aval.shape
            per_output = math.prod(kernel) / kernel[params['dimension_numbers'].rhs_spec[0]]
            # A dilated input is mostly zeros that no device multiplies (gradients of strided layers).
            total += (2.0 * math.prod(equation.outvars[0].aval.shape) * per_output
                      / math.prod(params['lhs_dilation']))
        elif name == 'cond':
            total += max(count_flops(branch.jaxpr) for branch in params['branches'])
        else:
            times = params['length'] if name == 'scan' else 1
            if name == 'shard_map':                          # its jaxpr is that of one device
                times = params['mesh'].size
            total += times * sum(count_flops(inner) for inner in _inner_jaxprs(params))
    return total


def memory(compiled) -> dict[str, int]:
    """Bytes per device of a compiled program: arguments, outputs (new ones alone), temporaries, code."""
    analysis = compiled.memory_analysis()
    return {'arguments': analysis.argument_size_in_bytes,
            'outputs': analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
            'temporaries': analysis.temp_size_in_bytes,
            'code': analysis.generated_code_size_in_bytes}


def out_of_memory(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes there are) if a compiler's error says that a program does not fit, else None.

    The TPU compiler tells either the whole or the temporaries alone: more than the second, anyway.
    """
    if 'RESOURCE_EXHAUSTED' not in message:
        return None
    for pattern in _DOES_NOT_FIT:
        if match := pattern.search(message):
            value1, unit1, value2, unit2 = match.groups()
            return _to_bytes(value1, unit1), _to_bytes(value2, unit2)
    return None


def _tally(text: str, name_of: Callable[[Instruction, str], Any]) -> dict[Any, Collective]:
    """{name_of(instruction, kind): Collective} over the collectives of a program's text, without those named None."""
    program, entry = parse(text)
    calls = _calls(program)
    found = {}
    for name, instructions in program.items():
        times, certain = _executions(name, entry, calls)
        for instruction in instructions.values() if times else ():
            kind = _kind(instruction)
            what = name_of(instruction, kind) if kind else None
            if what is not None:
                before = found.get(what, Collective(0, 0))
                found[what] = Collective(
                    before.count + times, before.bytes + times * _payload(instruction, kind, instructions),
                    before.certain and certain)
    return found


def _kind(instruction: Instruction) -> str:
    """The kind of a collective, or of what it is among TPU slices; '' of all else."""
    if instruction.op == 'send':
        sent = _TO_SLICES.search(instruction.rest)
        return sent[1].lower().replace('_', '-') if sent else ''
    kind = instruction.op.removesuffix('-start')
    return kind if kind in KINDS else ''


def _groups(attributes: str, count: int) -> list[list[int]]:
    """The devices that a collective joins; all `count`, where it does not name them."""
    match = _GROUPS.search(attributes)
    if not match:
        return [list(range(count))]
    listed, shape, dims, order, axes, joined = match.groups()
    if listed:
        return [[int(device) for device in group.split(',') if device] for group in listed[1:-1].split('},{')]
    if shape:
        devices = np.arange(math.prod(_axes(dims))).reshape(_axes(dims))
        return devices.transpose(_axes(order) if order else None).reshape(_axes(shape)).tolist()
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
    names = [name for name in sizes if f"'{name}'" in joined]
    devices = np.arange(math.prod(map(int, sizes.values()))).reshape([int(size) for size in sizes.values()])
    places = [list(sizes).index(name) for name in names]
    return np.moveaxis(devices, places, range(-len(names), 0)).reshape(
        -1, math.prod(int(sizes[name]) for name in names)).tolist()


def _to_bytes(value: str, unit: str) -> int:
    return round(float(value) * 1024 ** ' KMGT'.index(unit.upper() or ' '))


def _axes(text: str) -> list[int]:
    return [int(axis.lstrip('<=')) for axis in text.split(',') if axis]


def _inner_jaxprs(params) -> list:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def _calls(program) -> dict[str, list[tuple[str, int, bool]]]:
    """{computation: [(its caller, how often one run of the caller runs it, is that certain)]}."""
    callers = collections.defaultdict(list)
    for caller, instructions in program.items():
        for instruction in instructions.values():
            if instruction.op == 'while':
                parts = dict(_WHILE.findall(instruction.rest))
                times = _trip_count(instruction.rest, program.get(parts['condition'], {}))
                callers[parts['body']].append((caller, times or 1, times is not None))
            elif not instruction.op.endswith(('-done', '-update')):
                for called in instruction.called:
                    callers[called].append((caller, 1, True))
    return callers


def _trip_count(attributes: str, condition: dict[str, Instruction]) -> int | None:
    """How often a loop runs: as XLA says, or the one integer that its condition compares with."""
    if match := _TRIP_COUNT.search(attributes):
        return int(match[1])
    constants = [instruction.rest.split(')')[0] for instruction in condition.values()
                 if instruction.op == 'constant' and instruction.shape.startswith(('s32[]', 'u32[]'))]
    return int(constants[0]) if len(constants) == 1 else None


def _executions(name: str, entry: str, callers) -> tuple[int, bool]:
    """(how often one run of the program runs the computation `name`, is that certain)."""
    if name == entry:
        return 1, True
    times, certain = 0, True
    for caller, repeats, sure in callers.get(name, []):
        outer, outer_sure = _executions(caller, entry, callers)
        times += outer * repeats
        certain = certain and sure and outer_sure
    return times, certain


def _purpose(instruction: Instruction, kind: str) -> str | None:
    if instruction.op == 'send':
        return None
    name = instruction.op_name
    axes = [_axes(text) for _, text in _SHAPE.findall(instruction.shape)]
    if kind != 'all-reduce' or 'shard_map' in name:
        return 'loss'
    is_of_norm = bool(_NORM.search(name))
    if 'transpose(' not in name:
        return 'batch norm forward' if is_of_norm else 'loss' if any(axes) else 'metrics'
    # XLA sends gradients together, those of scales and biases with those of kernels; two sums of a batch norm
    # travel alone or with those of the one or two others that are ready.
    are_sums = len(axes) <= 8 and all(math.prod(sizes) == max(sizes, default=1) for sizes in axes)
    return 'batch norm backward' if is_of_norm and are_sums else 'gradients'


def _payload(instruction: Instruction, kind: str, others: dict[str, Instruction]) -> int:
    result = shape_bytes(instruction.shape)
    operands = sum(shape_bytes(others[name].shape) for name in instruction.operands if name in others)
    if kind != 'all-gather':
        return operands or result
    return result - operands if instruction.op.endswith('-start') else result
