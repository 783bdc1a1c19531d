"""Where the time of a training step goes, read from a profiler's trace of the very program that trains.

Nothing is compiled or run for it. Each operation of the trace is looked up in the program's text, where
its name says which part of the step it stems from: the scopes 'views', 'loss' and 'optimizer' of steps.py
and the methods, and jax's own 'jvp' and 'transpose' of differentiation. Limits: an operation that XLA fused
from two parts counts with the part of its last one; the loss counts with its own backward pass; what is
computed again to save memory (remat, encoder_chunks) is backward; of several devices the first one is told.
"""

import collections
import heapq
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from simclr_jax.inspect import hlo

# The parts of a step, in the order of the data flow.
PARTS = ('views', 'forward', 'loss', 'backward', 'optimizer')

_SCOPE = re.compile(r'[/(](views|loss|optimizer)[/)]')


def step_breakdown(trace, program: str, *, num_steps: int, seconds: float, waited: float) -> dict[str, float]:
    """Milliseconds of one step by part, which add up to the step.

    Args:
        trace: jax.profiler.ProfileData of steps that began with idle devices and were waited for.
        program: text of the compiled step, `compiled.as_text()`.
        num_steps: that were traced.
        seconds: that they took, by the clock.
        waited: seconds in which the loop waited for batches.

    Returns:
        {part: ms} for PARTS; 'unnamed', operations that stem from no part or, as those of a GPU's command
        buffers, from no operation that the trace names; 'input_wait' and 'idle', the time
        in which the device had nothing to do, because its batch was not there or for another reason
        (launching, logging). {} where the trace has no operation of the program.
    """
    parts = parts_of(program)
    times = own_times(operations(trace, parts, hlo.module_name(program)))
    if not any(times):
        return {}
    per_part: dict[str, float] = collections.defaultdict(float)
    for name, nanoseconds in times.items():
        per_part[parts.get(name) or 'unnamed'] += nanoseconds / 1e9
    idle = max(0.0, seconds - sum(per_part.values()))
    per_part |= {'input_wait': min(waited, idle), 'idle': idle - min(waited, idle)}
    return {name: 1000 * per_part[name] / num_steps for name in (*PARTS, 'unnamed', 'input_wait', 'idle')}


def part_of(op_name: str) -> str | None:
    """The part of an operation whose metadata has this name; None if it says nothing.

    Such as 'jit(train_step)/transpose(jvp(Network))/encoder/dot_general', which is backward.
    """
    name = next((name for name in op_name.split(';') if name.startswith('jit(')), '')
    if scope := _SCOPE.search(name):
        return scope[1]
    return 'backward' if 'transpose(' in name else 'forward' if name else None


def parts_of(program: str) -> dict[str, str | None]:
    """{instruction: part} of a compiled program's text; None where nothing tells.

    XLA's own copies and rewritten operations have no name: they count with the first part that uses their
    result, else with the last one that made their operands, else with what calls their computation.
    """
    computations, _ = hlo.parse(program)
    home = {name: computation for computation, instructions in computations.items() for name in instructions}
    instructions = {name: computations[home[name]][name] for name in home}
    parts = {name: part_of(instruction.op_name) for name, instruction in instructions.items()}
    operands = {name: instruction.operands for name, instruction in instructions.items()}
    caller = {called: name for name, instruction in instructions.items() for called in instruction.called}
    first_use = {}
    for name in reversed(parts):                # operands stand before their users
        parts[name] = parts[name] or first_use.get(name)
        for operand in operands[name]:
            uses = filter(None, (parts[name], first_use.get(operand)))
            first_use[operand] = min(uses, key=PARTS.index, default=None)
    for name in parts:
        made_by = filter(None, map(parts.get, operands[name]))
        parts[name] = parts[name] or max(made_by, key=PARTS.index, default=None)
    for name in reversed(parts):                # callers stand after what they call
        parts[name] = parts[name] or parts.get(caller.get(home[name], ''))
    return parts


def operations(trace, names: Iterable[str], module: str) -> list[tuple[float, float, str]]:
    """[(start, end, instruction)] in nanoseconds, by start: the operations of one device in a trace.

    The instruction is '' of a GPU's kernel that the trace has no operation for.

    Args:
        names: of the instructions of the program.
        module: name of the program; operations of others are left out.
    """
    with warnings.catch_warnings():
        # Of jaxlib's own type, on Python 3.12; where it is an error, it ends the process.
        warnings.filterwarnings('ignore', 'builtin type event_stats', DeprecationWarning)
        spans, ends = _read_events(trace, names, module)
    if not spans:
        return []
    first = spans[min(spans)]                           # '/device:...' before '/host:CPU'
    return sorted((start, max(end, ends.get(link, end)), name) for start, end, name, link in first)


def _read_events(trace, names, module):
    """{(plane, device): [(start, end, instruction, link)]} and {link: end on another thread}."""
    spans, ends = collections.defaultdict(list), {}
    for plane in trace.planes:
        on_device = plane.name.startswith('/device:')
        for line in plane.lines:
            if line.name.startswith('Async'):           # a TPU's copies beside its operations
                continue
            of_kernels = on_device and line.name.startswith('Stream')           # of a GPU
            for event in line.events:
                name = event.name.partition(' ')[0].lstrip('%')
                if name == 'end:':                      # of an operation that a CPU began on another thread
                    ends[dict(event.stats).get('_c')] = event.start_ns
                elif name in names or on_device:        # a GPU's events have the names of kernels
                    told = dict(event.stats)
                    name = told.get('hlo_op', name)
                    if name in names and told.get('hlo_module', module).partition('(')[0] == module:
                        spans[plane.name, told.get('device_ordinal', 0)].append(
                            (event.start_ns, event.end_ns, name, told.get('_p')))
                    elif of_kernels and 'hlo_module' not in told:
                        spans[plane.name, told.get('device_ordinal', 0)].append(
                            (event.start_ns, event.end_ns, '', None))
    return spans, ends


def own_times(spans: Sequence[tuple[float, float, str]]) -> dict[str, float]:
    """{name: time} of spans (start, end, name), sorted: each instant belongs to the one that began last.

    So a loop is left what its body does not take, nothing counts twice, and the sum is the time in which
    something ran.
    """
    times: dict[str, float] = collections.defaultdict(float)
    instants = sorted({instant for start, end, _ in spans for instant in (start, end)})
    running, begun = [], 0                              # a heap, the latest start first
    for now, until in zip(instants, instants[1:]):
        while begun < len(spans) and spans[begun][0] <= now:
            heapq.heappush(running, -begun)
            begun += 1
        while running and spans[-running[0]][1] <= now:
            heapq.heappop(running)
        if running:
            times[spans[-running[0]][2]] += until - now
    return dict(times)


def table(parts: dict[str, float]) -> list[list[Any]]:
    """Rows [part, ms, %] of `step_breakdown`, without the parts that took nothing, and their sum."""
    labels = {'optimizer': 'optimiser', 'input_wait': 'input wait', 'idle': 'idle, launching'}
    total = sum(parts.values())
    rows = [[labels.get(name, name), f'{ms:.2f}', f'{100 * ms / total:.1f}']
            for name, ms in parts.items() if ms]
    return [*rows, ['step', f'{total:.2f}', '100.0']]
