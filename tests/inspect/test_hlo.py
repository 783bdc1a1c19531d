"""What is read from compiled text: collectives, loops, arrays, memory messages; and FLOPs of a jaxpr."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from simclr_jax.inspect import hlo
from simclr_jax.inspect.hlo import Collective
from simclr_jax.runtime import sharding

# As XLA:TPU and XLA:GPU write them: layouts with parentheses, tuples, asynchronous pairs, a loop.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %gather = bf16[16,8]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%index, %limit), direction=LT
}

%body (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(256)}) parameter(0)
  %rows = f32[8]{0:T(256)} get-tuple-element(%state.1), index=1
  %permuted = f32[8]{0:T(256)} collective-permute(%rows), source_target_pairs={{0,1},{1,0}}
  %index.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %next = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%index.1, %permuted)
}

ENTRY %main (x: f32[8], y: bf16[4,8]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %y = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(1)
  %pair = (f32[8]{0:T(256)S(1)}, bf16[4,8]{1,0:T(8,128)(2,1)}) all-reduce(%x, %y), channel_id=1, to_apply=%add
  %start = f32[8]{0:T(256)} all-reduce-start(%x), channel_id=2, to_apply=%add
  %done = f32[8]{0:T(256)} all-reduce-done(%start)
  %start.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%y), channel_id=3, dimensions={0}
  %done.1 = bf16[16,8]{1,0} all-gather-done(%start.1)
  %start.2 = ((bf16[4,8]{1,0}), bf16[16,8]{1,0}, u32[]) async-start(%y), calls=%wrapped
  %done.2 = bf16[16,8]{1,0} async-done(%start.2), calls=%wrapped
  %part = f32[2]{0} reduce-scatter(%x), channel_id=4, dimensions={0}, to_apply=%add
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, f32[8]{0:T(256)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(256)}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[8]{0:T(256)} get-tuple-element(%loop), index=1
}
"""


def test_collectives_of_a_text():
    assert hlo.collectives(TEXT) == {
        'all-reduce': Collective(2, (32 + 64) + 32),
        'all-gather': Collective(2, 256 + 256),
        'reduce-scatter': Collective(1, 32),
        'collective-permute': Collective(5, 5 * 32),
    }


def test_a_loop_says_itself_how_long_it_is():
    told = TEXT.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert hlo.collectives(told)['collective-permute'] == Collective(7, 7 * 32)


def test_a_loop_of_unknown_length_counts_once_and_is_uncertain():
    unknown = TEXT.replace('%limit = s32[]{:T(128)} constant(5)', '%limit = s32[]{:T(128)} negate(%index)')
    assert hlo.collectives(unknown)['collective-permute'] == Collective(1, 32, certain=False)


STEP = """\
ENTRY %main (x: f32[64], y: bf16[3,3,8,64], z: f32[]) -> f32[] {
  %x = f32[64]{0} parameter(0)
  %y = bf16[3,3,8,64]{3,2,1,0} parameter(1)
  %z = f32[] parameter(2)
  %a = (f32[64], f32[64]) all-reduce(%x, %x), metadata={op_name="jit(s)/jvp(Network)/stem_norm/reduce_sum"}
  %b = (f32[], f32[]) all-reduce(%z, %z), metadata={op_name="jit(s)/jvp()/reduce_sum"}
  %c = f32[] all-reduce(%z), metadata={op_name="jit(s)/jit(norm)/reduce_sum"}
  %d = f32[64,64] all-gather(%x), metadata={op_name="jit(s)/jvp()/shard_map/all_gather"}
  %e = f32[64] all-reduce(%x), metadata={op_name="jit(s)/jvp()/all_gather"}
  %f = (f32[1,64], f32[64]) all-reduce(%x, %x), metadata={op_name="jit(s)/transpose(jvp(N))/norm1/mul"}
  %g = (f32[64], bf16[3,3,8,64]) all-reduce(%x, %y), metadata={op_name="jit(s)/transpose(jvp(N))/norm1/mul"}
  %h = bf16[3,3,8,64] all-reduce(%y), metadata={op_name="jit(s)/transpose(jvp(N))/conv1/conv_general"}
  ROOT %i = (NINE SHAPES) all-reduce(NINE), metadata={op_name="jit(s)/transpose(jvp(N))/norm1/reduce_sum"}
}
""".replace('NINE SHAPES', ', '.join(['f32[64]'] * 9)).replace('NINE', ', '.join(['%x'] * 9))


def test_what_the_collectives_of_a_step_carry():
    row, kernel = 4 * 64, 2 * 3 * 3 * 8 * 64
    found = hlo.carried(STEP)
    assert found == {
        'batch norm forward': Collective(1, 2 * row), 'batch norm backward': Collective(1, 2 * row),
        'metrics': Collective(2, 3 * 4), 'loss': Collective(2, 64 * row + row),
        'gradients': Collective(3, row + 2 * kernel + 9 * row)}
    for amount in ('count', 'bytes'):
        whole = sum(getattr(value, amount) for value in hlo.collectives(STEP).values())
        assert sum(getattr(value, amount) for value in found.values()) == whole


def test_a_text_without_collectives_has_none():
    assert hlo.collectives(jax.jit(jnp.sin).lower(jnp.zeros(4)).compile().as_text()) == {}


@pytest.fixture(scope='module')
def program():
    """(jaxpr, compiled) of a small program on eight devices with known FLOPs and collectives."""
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    axis = mesh.axis_names[0]

    def local(x, w):                                            # [2, 16], [16, 16]
        def layer(x, _):
            y = x @ w
            return jnp.sin(y - jax.lax.pmean(y, axis)), ()

        x, _ = jax.lax.scan(layer, x, length=5)
        return jax.lax.psum((x @ jax.lax.all_gather(x, axis, tiled=True).T).sum(0), axis)

    function = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(P(axis), P()), out_specs=P()))
    traced = function.trace(jax.ShapeDtypeStruct((16, 16), jnp.float32),
                            jax.ShapeDtypeStruct((16, 16), jnp.float32))
    return traced.jaxpr.jaxpr, traced.lower().compile()


def test_collectives_of_a_program(program):
    assert hlo.collectives(program[1].as_text()) == {
        'all-reduce': Collective(5 + 1, 5 * (2 * 16 * 4) + 16 * 4),
        'all-gather': Collective(1, 16 * 16 * 4),
    }


def test_flops_of_a_program(program):
    jaxpr, executable = program
    assert hlo.has_loops(executable.as_text())
    assert hlo.count_flops(jaxpr) == 8 * (5 * 2 * (2 * 16 * 16) + 2 * (2 * 16 * 16))


@pytest.mark.parametrize('stride, groups', [(1, 1), (2, 1), (2, 4)])
def test_flops_of_convolutions_and_of_their_gradients(stride, groups):
    def loss(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups).sum()

    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 12))
    forward = 2 * 2 * (8 // stride) ** 2 * 12 * 9 * (4 // groups)
    assert hlo.count_flops(jax.make_jaxpr(loss)(x, kernel).jaxpr) == forward
    square = jax.grad(lambda x, kernel: loss(jnp.sin(x), kernel) ** 2, argnums=(0, 1))
    both = jax.make_jaxpr(square)(x, kernel)
    assert hlo.count_flops(both.jaxpr) == pytest.approx(3 * forward)


def test_flops_of_what_is_computed_again():
    def loss(x, w):
        return jnp.sin(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ w) @ w))(x)).sum()

    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    product = 2 * 4 * 8 * 8
    assert hlo.count_flops(jax.make_jaxpr(loss)(x, w).jaxpr) == 2 * product
    # Both forward, both again, and one for the gradient of the input of each.
    assert hlo.count_flops(jax.make_jaxpr(jax.grad(loss))(x, w).jaxpr) == 6 * product


def test_arrays_between_anchors_and_candidates():
    text = '%s = f32[32,512]{1,0:T(8,128)} dot(%a), %t = (bf16[512,4,16], f32[512,24], f32[16,24]) tuple()'
    assert hlo.arrays_between(text, {16, 32}, {512}) == ['bf16[512,4,16]', 'f32[32,512]']
    assert hlo.arrays_between(text, {48}, {512}) == []


@pytest.mark.parametrize('message, figures', [
    ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.76G) '
     'exceeds available HBM (15.75G).', (16.76, 15.75)),
    ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
     'Used 18.20G of 15.75G hbm. Exceeded hbm capacity by 2.45G.', (18.20, 15.75)),
])
def test_messages_of_a_program_that_does_not_fit(message, figures):
    assert hlo.out_of_memory(message) == tuple(round(figure * 1024 ** 3) for figure in figures)


@pytest.mark.parametrize('message', [
    'INTERNAL: something else', 'RESOURCE_EXHAUSTED: too many threads',
    'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17.0M of 16.0M vmem.'])
def test_other_errors_are_not_about_memory(message):
    assert hlo.out_of_memory(message) is None


@pytest.mark.parametrize('shape, size', [
    ('f32[2,3]{1,0:T(8,128)}', 24), ('pred[]', 1), ('(bf16[5], u32[])', 14), ('s4[3]', 2),
    ('f8e4m3fn[7]', 7), ('token[]', 0), ('f32[<=4,2]', 32)])
def test_bytes_of_shapes(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_kernels_are_what_a_gpu_launches_loops_as_often_as_they_run():
    text = '''HloModule jit_f
%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%p)
}
%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %i = s32[] get-tuple-element(%t), index=0
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8]{0}) tuple(%i, %y)
}
%condition (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %z = s32[] constant(0)
  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
  %s = (s32[], f32[8]{0}) tuple(%z, %b)
  %w = (s32[], f32[8]{0}) while(%s), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %o = f32[8]{0} get-tuple-element(%w), index=1
  %g = f32[8]{0} all-reduce(%o), to_apply=%fused
  ROOT %q = f32[8]{0} copy(%g)
}
'''
    assert hlo.kernels(text) == hlo.Kernels(1 + 5 + 1, 7 * 2 * 32)


def test_collectives_are_told_apart_by_the_network_that_they_need():
    def gather(groups):
        return ('HloModule m, num_partitions=4\n\nENTRY %main (x: f32[8]) -> f32[32] {\n'
                '  %x = f32[8]{0} parameter(0)\n'
                f'  ROOT %all = f32[32]{{0}} all-gather(%x), {groups}, dimensions={{0}}\n}}\n')

    hosts, one = [0, 0, 1, 1], {'all-gather': Collective(1, 128)}
    for groups in ('replica_groups={{0,1},{2,3}}', 'replica_groups=[2,2]<=[4]',
                   "replica_groups=mesh['a'=2,'b'=2] {'b'}", 'source_target_pairs={{0,1},{3,2}}'):
        assert hlo.by_network(gather(groups), hosts) == {'within': one, 'between': {}}, groups
    for groups in ('replica_groups={{0,1,2,3}}', 'replica_groups={}', 'replica_groups=[2,2]<=[2,2]T(1,0)',
                   "replica_groups=mesh['a'=2,'b'=2] {'a'}", "replica_groups=mesh['a'=2,'b'=2] {'a','b'}",
                   'source_target_pairs={{0,1},{1,2}}'):
        assert hlo.by_network(gather(groups), hosts) == {'within': {}, 'between': one}, groups


def test_what_goes_to_another_tpu_slice_is_a_send():
    # Of two slices of two devices, as libtpu writes it: the sum of a slice's share goes to the other.
    text = '''HloModule m, is_scheduled=true, num_partitions=2

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %after = token[] after-all()
  %part = f32[4]{0:T(128)} reduce-scatter(%x), channel_id=1, replica_groups={{0,1}}, dimensions={0}, to_apply=%add
  %send = (f32[4]{0:T(128)}, u32[], token[]) send(%part, %after), channel_id=3, is_host_transfer=true, ''' \
        '''frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",''' \
        '''_xla_megascale_target="{1,2}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=3, is_host_transfer=true
  ROOT %all = f32[8]{0:T(256)} all-gather(%part), channel_id=2, replica_groups={{0,1}}, dimensions={0}
}
'''
    within = {'all-gather': Collective(1, 32), 'reduce-scatter': Collective(1, 32)}
    assert hlo.by_network(text, [0, 0, 1, 1]) == {'within': within, 'between': {'all-reduce': Collective(1, 16)}}
    assert hlo.collectives(text) == within
