"""What is read from a trace: every instant counts once, and every operation with the part it stems from."""

from types import SimpleNamespace

import numpy as np
import pytest

from simclr_jax.inspect.step_breakdown import own_times, part_of, parts_of, step_breakdown, table

# A step as XLA writes it: copies and rewritten operations have lost their names.
PROGRAM = '''HloModule jit_train_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%body.1 (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %flip.1 = f32[8]{0} negate(%p.1), metadata={op_name="jit(train_step)/views/while/body/neg"}
  %copy.9 = f32[8]{0} copy(%flip.1)
  ROOT %tuple.1 = (s32[], f32[8]{0}) tuple(%copy.9)
}

%condition.1 (p.2: (s32[], f32[8])) -> pred[] {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %wrapped_compare = pred[] constant(true)
}

ENTRY %main.1 (state.1: f32[8]) -> f32[8] {
  %state.1 = f32[8]{0} parameter(0), metadata={op_name="state.params[\\'encoder\\']"}
  %while.1 = (s32[], f32[8]{0}) while(%state.1), condition=%condition.1, body=%body.1
  %conv.1 = bf16[8,2]{1,0:T(8,128)(2,1)} convolution(%while.1), metadata={op_name="jit(train_step)/jvp(Network)/encoder/conv"}
  %copy.1 = f32[8]{0} copy(%conv.1)
  %lse.1 = f32[8]{0} log(%conv.1), metadata={op_name="jit(train_step)/jvp(loss)/log"}
  %dlse.1 = f32[8]{0} exponential(%lse.1), metadata={op_name="jit(train_step)/transpose(jvp(loss))/exp"}
  %dconv.1 = f32[8]{0} convolution(%dlse.1, %copy.1), metadata={op_name="jit(train_step)/transpose(jvp(Network))/encoder/conv"}
  %reduce-window.1 = f32[8]{0} reduce-window(%dconv.1), window={size=32}, to_apply=%add.1
  %momentum.1 = f32[8]{0} multiply(%dconv.1), metadata={op_name="mul;jit(train_step)/optimizer/mul"}
  ROOT %copy.2 = f32[8]{0} copy(%momentum.1), control-predecessors={%reduce-window.1}
}
'''     # noqa: E501
PARTS = {'flip.1': 'views', 'copy.9': 'views', 'wrapped_compare': 'forward', 'while.1': 'forward',
         'conv.1': 'forward', 'copy.1': 'backward', 'lse.1': 'loss', 'dlse.1': 'loss', 'dconv.1': 'backward',
         'reduce-window.1': 'backward', 'momentum.1': 'optimizer', 'copy.2': 'optimizer'}


@pytest.mark.parametrize('name, part', [
    ('jit(train_step)/views/while/body/closed_call/mul', 'views'),
    ('jit(train_step)/jvp(Network)/Network.encode/encoder/stem_conv/conv_general_dilated', 'forward'),
    ('jit(train_step)/Network/Network.encode/target', 'forward'),
    ('jit(train_step)/jvp(loss)/while/body/dot_general', 'loss'),
    ('jit(train_step)/transpose(jvp(loss))/mul', 'loss'),
    ('jit(train_step)/transpose(jvp(Network))/Network.encode/encoder/relu', 'backward'),
    ('jit(train_step)/transpose(jvp())/while/body/checkpoint/rematted_computation/Network/conv', 'backward'),
    ('jit(train_step)/optimizer/add', 'optimizer'), ('sub;jit(train_step)/optimizer/sub', 'optimizer'),
    ('state.opt_state[0]', None), ('reduce_sum', None), ('', None)])
def test_an_operation_counts_with_the_scope_that_its_name_tells(name, part):
    assert part_of(name) == part


def test_what_has_no_name_counts_with_what_uses_it_or_made_it_or_called_it():
    told = parts_of(PROGRAM)
    assert {name: told[name] for name in PARTS} == PARTS


def test_own_times_equal_a_count_of_every_instant():
    generator = np.random.default_rng(0)
    starts = generator.permutation(400)[:60]            # distinct: no ties
    spans = sorted((int(start), int(start + length), str(number)) for number, (start, length) in enumerate(
        zip(starts, generator.integers(0, 60, 60))))
    counted = {}
    for instant in range(500):
        running = [span for span in spans if span[0] <= instant < span[1]]
        if running:
            counted[max(running)[2]] = counted.get(max(running)[2], 0) + 1
    assert own_times(spans) == counted


def trace_of(planes):
    """{plane: {line: [(name, start ms, end ms, stats)]}} as jax.profiler.ProfileData."""
    return SimpleNamespace(planes=[SimpleNamespace(name=plane, lines=[SimpleNamespace(name=line, events=[
        SimpleNamespace(name=name, start_ns=start * 1e6, end_ns=end * 1e6, stats=stats.items())
        for name, start, end, stats in events]) for line, events in lines.items()])
        for plane, lines in planes.items()])


def op(name, start, end, kernel=None, **stats):
    return kernel or name, start, end, {'hlo_op': name, 'hlo_module': 'jit_train_step', **stats}


def breakdown(planes, **options):
    return step_breakdown(trace_of(planes), PROGRAM, num_steps=2,
                          **{'seconds': 0.1, 'waited': 0.0, **options})


EXPECTED = {'views': 5.0, 'forward': 10.0, 'loss': 1.0, 'backward': 20.0, 'optimizer': 4.0, 'unnamed': 0.0,
            'input_wait': 3.0, 'idle': 7.0}
TIMES = [('flip.1', 0, 10), ('conv.1', 10, 30), ('dlse.1', 30, 32), ('dconv.1', 32, 72),
         ('momentum.1', 72, 80)]


def test_a_cpus_operations_last_until_the_thread_that_they_were_given_to_ends_them():
    ops = [op(name, start, end, _p=number) for number, (name, start, end) in enumerate(TIMES)]
    ops[1] = op('conv.1', 10, 12, _p=1)
    other = [op('conv.1', 80, 90, hlo_module='jit_health'), op('conv.1', 0, 70, device_ordinal=1)]
    lines = {'one': [*ops, *other, ('PjitFunction', 0, 100, {})], 'two': [('end: conv.1', 30, 30, {'_c': 1})]}
    assert breakdown({'/host:CPU': lines}, waited=0.006) == pytest.approx(EXPECTED)


def test_a_gpus_kernels_are_known_by_the_operation_that_launched_them():
    ops = [op(name, start, end, kernel=f'sm90_kernel_{name}') for name, start, end in TIMES]
    host = [op(name, start, start + 1) for name, start, _ in TIMES]             # launching
    planes = {'/host:CPU': {'python': host}, '/device:GPU:0': {'Stream #1': ops[:3], 'Stream #2': ops[3:]},
              '/device:GPU:1': {'Stream #1': ops}}
    assert breakdown(planes, waited=0.006) == pytest.approx(EXPECTED)


def test_a_gpus_kernels_that_nothing_names_are_no_idle_time():
    ops = [op(name, start, end) for name, start, end in TIMES]
    ops[3] = ('cudaGraph kernel', 32, 72, {'correlation_id': 3})
    ops.append(op('conv.9', 80, 90, hlo_module='jit_health'))           # of another program
    parts = breakdown({'/device:GPU:0': {'Stream #1': ops}}, waited=0.006)
    assert parts == pytest.approx(EXPECTED | {'backward': 0.0, 'unnamed': 20.0})


def test_a_tpus_events_are_named_by_their_instruction():
    ops = [(f'%{name} = f32[8]{{0}} fusion(f32[8]{{0}} %x)', start, end, {}) for name, start, end in TIMES]
    lines = {'XLA Ops': ops, 'XLA Modules': [('jit_train_step(7)', 0, 80, {})],
             'Async XLA Ops': [('%copy.2 = f32[8] copy(%x)', 5, 70, {})]}
    assert breakdown({'/device:TPU:0': lines}, waited=0.006) == pytest.approx(EXPECTED)


def test_a_wait_that_the_device_worked_through_costs_nothing():
    ops = {'/device:TPU:0': {'XLA Ops': [op(*times) for times in TIMES]}}
    parts = breakdown(ops, seconds=0.082, waited=0.05)
    assert (parts['input_wait'], parts['idle']) == (pytest.approx(1.0), 0.0)
    assert sum(parts.values()) == pytest.approx(41.0)           # the step


def test_a_trace_without_the_program_gives_nothing():
    assert breakdown({'/host:CPU': {'python': [('PjitFunction', 0, 9, {})]}}) == {}
    assert breakdown({}) == {}


def test_the_table_adds_up_and_leaves_out_what_took_nothing():
    assert table(EXPECTED) == [
        ['views', '5.00', '10.0'], ['forward', '10.00', '20.0'], ['loss', '1.00', '2.0'],
        ['backward', '20.00', '40.0'], ['optimiser', '4.00', '8.0'], ['input wait', '3.00', '6.0'],
        ['idle, launching', '7.00', '14.0'], ['step', '50.00', '100.0']]
