"""The plan of a training step: parts of its memory, FLOPs, collectives, the search, messages."""

import json
import runpy
import sys

import jax
import pytest

from simclr_jax.inspect import devices as targets, hlo, plan as planning
from simclr_jax.inspect.chips import CHIPS, Chip
from simclr_jax.inspect.largest_batch import Need, confirm, largest_batch
from simclr_jax.runtime import sharding
from simclr_jax.train import build
from simclr_jax.training import steps

GIB = 1 << 30


def load(name='configs/smoke.py', argument='smoke', **overrides):
    config = runpy.run_path(name)['get_config'](argument)
    config.plan.num_classes = 10
    config.batch_size = 1536                # more than one tile of the loss; no other axis has 2N = 3072
    config.encoder.name = 'tests.encoders:OneBlock'
    config.plan.update(overrides)
    return config


@pytest.fixture(scope='module')
def step():
    """The report of one small step on eight simulated devices, and the text of its program."""
    texts = []
    report = planning.inspect_step(load(), sharding.make_mesh(), Chip(memory=GIB), keep=texts.append)
    return report, texts[0]


def test_the_parts_of_the_memory_add_up(step):
    parts = step[0]['memory']
    assert parts['total'] == sum(size for part, size in parts.items() if part != 'total')
    assert all(size >= 0 for size in parts.values())
    assert parts['temporaries'] > 0 and step[0]['fits']


def test_the_parts_are_those_of_the_real_state(step):
    config, mesh = load(), sharding.make_mesh()
    _, init_state, _, shardings = build(config, mesh, num_examples=15_360, num_classes=10, num_steps=12)
    state = steps.jit_seldom(init_state, out_shardings=shardings)()
    sizes = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(getattr(state, name)))
             for name in ('params', 'opt_state', 'batch_stats', 'method_state')}
    parts = step[0]['memory']
    assert sizes == {'params': parts['parameters'], 'opt_state': parts['optimizer state'],
                     'batch_stats': parts['batch statistics'], 'method_state': parts['method state']}
    per_device = 1536 // 8
    assert parts['images'] == per_device * (2 * 32 * 32 * 3 + 3 * 4)      # uint8 crops, label, epoch, index
    assert parts['layout padding'] == 4                         # the step number alone: no tiles on a CPU


def test_a_split_state_takes_its_share_of_each_device(step):
    config, mesh = load(), sharding.make_mesh()
    config.shard_state = True
    _, (state, _), _ = planning.trace_step(config, mesh)
    assert planning.bytes_on_device(state.params) < step[0]['memory']['parameters'] / 4


def test_flops_are_those_of_the_network_three_times_over(step):
    config, mesh = load(), sharding.make_mesh()
    network, init_state, _, _ = build(config, mesh, num_examples=15_360, num_classes=10, num_steps=12)
    state = jax.eval_shape(init_state)
    images = jax.ShapeDtypeStruct((2 * 1536, 32, 32, 3), 'float32')
    forward = jax.make_jaxpr(lambda variables, images: network.apply(variables, images, train=False))(
        state.variables(), images)
    analytic = 3 * hlo.count_flops(forward.jaxpr) / 8      # forward, and twice backward
    # The loss multiplies too, and the images have no gradient.
    assert step[0]['flops'] == pytest.approx(analytic, rel=0.25)
    assert step[0]['xla_flops'] == pytest.approx(analytic, rel=0.5)


def test_the_plan_says_what_small_views_cost():
    """Two of a quarter of the pixels beside two views."""
    config, flops = load(), []
    config.batch_size = 64          # the loss is small beside the network
    config.augment.small_size = config.augment.image_size // 2
    for config.augment.small_views in (2, 0):
        flops.append(planning.trace_step(config, sharding.make_mesh())[2])
    flops, without = flops
    assert flops / without == pytest.approx(1.25, rel=0.03)
    report = {'step': {'memory': {'total': 0}, 'collectives': {}, 'flops': flops, 'sent': {'within': 0.0}, 'floor': {},
                       'bytes_accessed': None, 'fits': True},
              'chip': Chip()._asdict(), 'batch_size': 8, 'num_devices': 1, 'device': 'cpu',
              'flops_without_small_views': without}
    rows = {title: rows for title, _, rows in planning.tables(report)}['What small views cost']
    assert [row[0] for row in rows] == ['two', 'all'] and [row[2] for row in rows] == ['1.00', '1.25']


def test_collectives_carry_the_gradients_and_the_projections(step):
    collectives = step[0]['collectives']
    assert collectives['all-reduce']['bytes'] >= step[0]['memory']['parameters']
    assert collectives['all-gather']['bytes'] >= 2 * 1536 * 32 * 4    # [2N, D], the smoke head's D


def norm_channels(config, mesh):
    """(channels of all batch norms together, number of batch norms, features that the online probe sees)."""
    _, init_state, _, _ = build(config, mesh, num_examples=15_360, num_classes=10, num_steps=12)
    state = jax.eval_shape(init_state)
    stats = jax.tree.leaves(state.batch_stats)                             # a mean and a variance each
    return sum(leaf.size for leaf in stats) // 2, len(stats) // 2, state.params['probe']['kernel'].shape[0]


def test_batch_norm_sends_two_sums_a_channel_and_its_running_statistics_nothing(step):
    channels, num_norms, features = norm_channels(load(), sharding.make_mesh())
    carried = hlo.carried(step[1])
    assert carried['batch norm forward'].bytes == 8 * channels
    assert carried['batch norm forward'].count <= num_norms         # both sums in one
    backward = carried['batch norm backward'].bytes         # XLA sends what two norms share once
    assert 4 * channels < backward <= 8 * channels
    # The gradients of scales and offsets are these sums too; the last norm has no offset, yet needs the sum.
    everything, last_norm, numbers_to_show = step[0]['collectives']['all-reduce']['bytes'], 4 * 32, 64
    standardised = 12 * features                # the online probe's inputs: jnp.mean, and jnp.var with a mean
    assert everything <= (step[0]['memory']['parameters'] + 8 * channels + last_norm + standardised
                          + numbers_to_show)


def test_no_device_holds_its_anchors_against_all_projections(step):
    assert not hlo.arrays_between(step[1], {192, 384}, {3072})


def test_the_floor_is_the_slowest_of_what_is_known():
    one = {'flops': 2e12, 'bytes_accessed': 4e9, 'sent': {'within': 3e9, 'between': 1e9}}
    assert planning.floor_seconds(one, Chip(None, 1e12, 1e9, 1e9)) == {
        'FLOPs': 2.0, 'memory': 4.0, 'interconnect': 3.0}
    assert planning.floor_seconds(one, Chip()) == {}


def test_what_a_device_sends_at_least_is_that_of_the_best_algorithm():
    def of(all_reduce, all_gather):
        return {'all-reduce': {'bytes': all_reduce}, 'all-gather': {'bytes': all_gather}}

    alone = planning.sent_bytes({'within': of(1e9, 2e9), 'between': {}}, 4, 1, by_slice=True)
    assert alone == {'within': pytest.approx(0.75 * (2 * 1e9 + 2e9)), 'between': 0}
    # Two hosts of 8 GPUs: the sum of a host is shared out over its GPUs, and each sends an eighth.
    hosts = planning.sent_bytes({'within': {}, 'between': of(16e9, 32e9)}, 16, 2, by_slice=False)
    assert hosts == {'within': pytest.approx(7 / 8 * (2 * 16e9 + 32e9)),
                     'between': pytest.approx(0.5 * (2 * 16e9 + 32e9) / 8)}
    # XLA's text of two slices has that eighth, and what a device contributes to a gathered array.
    slices = planning.sent_bytes({'within': of(16e9, 32e9), 'between': of(2e9, 2e9)}, 16, 2, by_slice=True)
    assert slices == pytest.approx(hosts)


def simulate(memory, capacity, **options):
    """(answer, questions) of the search against a memory model batch -> bytes."""
    asked = []

    def ask(batch):
        asked.append(batch)
        return Need(memory(batch), memory(batch) <= capacity)

    return largest_batch(ask, capacity=capacity, **options), asked


def affine(batch):
    return 1000 + 10 * batch


def ragged(batch):
    return 1000 + 10 * batch + 37 * (batch // 8 % 3) if batch % 256 else 900 + 10 * batch


def flat_then_steep(batch):
    """A compiler that recomputes activations as soon as memory is short."""
    return min(1000 + 10 * batch, 20_000) if batch <= 5000 else 4 * batch + 20_000


@pytest.mark.parametrize('memory', [affine, flat_then_steep])
@pytest.mark.parametrize('start', [8, 64, 100, 1000, 100_000])
@pytest.mark.parametrize('unit', [8, 64])
def test_the_search_finds_the_largest_batch(memory, start, unit):
    (largest, capped), asked = simulate(memory, 20_500, unit=unit, start=start, limit=1 << 20)
    assert not capped
    assert largest % unit == 0
    assert memory(largest) <= 20_500 < memory(largest + unit)
    assert len(asked) == len(set(asked)) <= 24
    assert all(batch % unit == 0 and batch > 0 for batch in asked)


def test_the_search_ends_at_a_batch_that_fits_when_memory_is_ragged():
    (largest, _), _ = simulate(ragged, 20_500, unit=8, start=64)
    assert ragged(largest) <= 20_500 < ragged(largest + 8)


def test_nothing_fits():
    (largest, capped), asked = simulate(affine, 900, unit=8, start=64)
    assert (largest, capped) == (0, False) and min(asked) == 8


def test_everything_fits():
    assert simulate(affine, 1 << 40, unit=8, start=64, limit=1000)[0] == (1000, True)
    assert simulate(affine, 1 << 40, unit=8, start=64)[0] == (64 * 64, True)
    assert simulate(affine, 1 << 40, unit=256, start=64, limit=100)[0] == (256, True)


def test_no_batch_beyond_the_limit_is_asked_for():
    known = {4096: Need(affine(4096), False)}
    (largest, capped), asked = simulate(affine, 20_500, unit=8, start=4096, limit=1000, known=known)
    assert (largest, capped) == (1000, True) and max(asked) <= 1000


def test_the_answer_of_the_search_is_compiled_in_full():
    asked = []

    def ask(batch, quick=True):
        asked.append((batch, quick))
        return Need(0, batch <= 16)

    assert confirm(ask, 32, 8, full={}) == 16
    assert asked == [(32, False), (24, False), (16, False)]
    assert confirm(ask, 64, 8, full={64: Need(0, True)}) == 64


@pytest.fixture
def affine_steps(monkeypatch, step):
    """Reports of the small step whose memory grows by 1 MiB an image of a device."""
    def inspect(config, mesh, chip, *, quick=False, keep=None):
        total = config.batch_size // mesh.size * (1 << 20) // config.encoder_chunks
        return {**step[0], 'memory': {**step[0]['memory'], 'total': total}, 'fits': total <= chip.memory,
                'seconds_to_compile': 1.0}

    monkeypatch.setattr(planning, 'inspect_step', inspect)


def test_a_plan_prints_tables_and_writes_json(affine_steps, tmp_path, capsys):
    report = planning.plan(load(memory_gib=0.25, chunks=2), str(tmp_path / 'new'))
    assert json.loads((tmp_path / 'new/plan.json').read_text()) == report
    assert report['largest_batch'] == {'1': 8 * 256, '2': 8 * 512}
    assert report['num_devices'] == 8 and report['batch_size'] == 1536
    printed = capsys.readouterr().out
    for word in ('parameters', 'temporaries', 'total', 'all-reduce', 'of 0.25 GiB', 'it fits', '2,048',
                 '4,096'):
        assert word in printed


def test_without_a_known_memory_there_is_no_search(affine_steps, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planning, 'chip_of', lambda *_: Chip())
    monkeypatch.setattr(planning, 'inspect_step', lambda *_, **__: {
        'fits': True, 'memory': {'total': 1}, 'flops': 1.0, 'bytes_accessed': None, 'collectives': {},
        'sent': {'within': 0.0, 'between': 0.0}, 'floor': {}})
    assert planning.plan(load(), str(tmp_path))['largest_batch'] == {}
    assert 'plan.memory_gib' in capsys.readouterr().out


def test_a_step_that_does_not_fit_says_what_it_needs():
    report = {'chip': Chip(GIB)._asdict(), 'batch_size': 64, 'num_devices': 8, 'device': 'TPU v9',
              'step': {'fits': False, 'needs': 3 * GIB, 'available': GIB}}
    (title, _, rows), = planning.tables(report)
    assert 'Does not fit' in title and rows == [['needs, at least', '3.000'], ['there are', '1.000']]


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    config = load()
    config.batch_size = 1540
    with pytest.raises(ValueError, match='batch_size 1540 is not divisible by the 8 devices'):
        planning.plan(config, str(tmp_path))


def test_a_slice_without_libtpu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'libtpu', None)        # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'simclr_jax\[tpu\]'"):
        targets.slice_devices('v4:2x2x1')


def test_every_chip_of_the_table_has_sane_figures():
    for chip in CHIPS.values():
        assert 50e12 < chip.flops < 2e15 and 2e11 < chip.bandwidth < 1e13
        assert 50 < chip.flops / chip.bandwidth < 700           # FLOPs a byte
        assert chip.memory is None or chip.memory > 14 * GIB


@pytest.mark.parametrize('topology, count, memory', [
    ('v4:2x2x1', 4, 32), ('v3:2x2', 8, 16), ('v5e:2x2', 4, 16), ('v5p:2x2x1', 4, 95), ('v6e:2x2', 4, 32)])
def test_slices_have_the_devices_that_cloud_tpu_has(topology, count, memory):
    pytest.importorskip('libtpu')       # of the extra [tpu], which the tests do not install
    targets.prepare(load(topology=topology))
    devices = targets.slice_devices(topology)
    assert len(devices) == count and targets.chip_of(devices[0]).memory == memory * GIB


def test_gpus_without_their_plugin_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'jax_plugins', None)       # as where it is not installed
    with pytest.raises(ValueError, match=r"pip install 'simclr_jax\[plan-gpu\]'"):
        targets.slice_devices('h100:8')


@pytest.mark.parametrize('topology', ['h100', 'h100:', 'h100:0', 'h100:2x', 'h100:2x2x2', 'h100:eight'])
def test_gpus_are_counted_in_hosts_and_gpus(topology):
    with pytest.raises(ValueError, match='h100:2x8'):
        targets.slice_devices(topology)


@pytest.mark.parametrize('topology', ['v4:3x5x7', 'v9:2x2', 'v4', 'nonsense', '0xv4:2x2x1', '2xh100:8'])
def test_an_unknown_slice_is_refused_with_examples(topology):
    pytest.importorskip('libtpu')       # of the extra [tpu], which the tests do not install
    targets.prepare(load(topology='v4:2x2x1'))
    with pytest.raises(ValueError, match='such names are v4:4x4x2'):
        targets.slice_devices(topology)


def test_a_step_compiles_for_a_slice_that_nobody_here_owns(monkeypatch):
    monkeypatch.delenv('XLA_FLAGS')     # libtpu ends the process at those of XLA's CPU compiler
    pytest.importorskip('libtpu')       # of the extra [tpu], which the tests do not install
    config = load(topology='v4:2x2x1', num_classes=10)
    targets.prepare(config)
    mesh, texts = sharding.make_mesh(targets.slice_devices('v4:2x2x1')), []
    report = planning.inspect_step(config, mesh, targets.chip_of(mesh.devices.flat[0]), keep=texts.append,
                                   quick=True)
    assert report['fits'] and report['floor']['FLOPs'] > 0
    assert report['collectives']['all-reduce']['bytes'] >= report['memory']['parameters']
    assert not hlo.arrays_between(texts[0], {384, 768}, {3072})
    channels, num_norms, _ = norm_channels(config, mesh)
    forward = hlo.carried(texts[0])['batch norm forward']
    assert forward.bytes == 8 * channels and forward.count <= num_norms     # both sums in one


def test_two_slices_sum_within_each_first_and_send_a_share_between_them(monkeypatch):
    monkeypatch.delenv('XLA_FLAGS')     # libtpu ends the process at those of XLA's CPU compiler
    pytest.importorskip('libtpu')       # of the extra [tpu], which the tests do not install
    config = load(topology='2xv5e:2x2', num_classes=10)
    targets.prepare(config)
    devices = targets.slice_devices('2xv5e:2x2')
    assert [device.slice_index for device in devices] == [0] * 4 + [1] * 4
    mesh = sharding.make_mesh(devices)
    report = planning.inspect_step(config, mesh, targets.chip_of(devices[0]), quick=True)
    within, between = (report['networks'][network] for network in ('within', 'between'))
    projections, parameters = 2 * 1536 * 32 * 4, report['memory']['parameters']
    assert within['all-gather']['bytes'] >= projections
    assert between['all-gather']['bytes'] >= projections / 8
    assert 'all-reduce' in between and report['sent']['between'] >= parameters / 4
    assert report['sent']['between'] < report['sent']['within']
