"""What the training step of a config costs, compiled ahead of time and never run.

    python -m simclr_jax.main --config=configs/imagenet.py --config.task=plan \\
        --config.plan.topology=v4:4x4x2 --workdir=DIR

It compiles the very step that `train.pretrain` runs, for the devices at hand or for a TPU slice or GPUs
that nobody here owns (libtpu and jax's CUDA plugin compile without a device), and says what lies in the
memory of a device, how many FLOPs, bytes and kernels a step takes, what the devices send each other, the
time below which no step can be, and the largest batch that fits. No data set is read and no array made.

Of a GPU that is not there, the compiler knows nothing by timing: cuDNN's workspaces are not in the memory.
"""

import functools
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax

from simclr_jax import storage
from simclr_jax.config import ConfigDict, set_channels
from simclr_jax.inspect import hlo
from simclr_jax.inspect.chips import Chip
from simclr_jax.inspect.devices import chip_of, prepare, slice_devices
from simclr_jax.inspect.largest_batch import Need, confirm, largest_batch
from simclr_jax.runlog.writer import plain_table
from simclr_jax.runtime import sharding
from simclr_jax.train import build, make_inputs
from simclr_jax.training import schedules

_GIB = 1 << 30
_say = functools.partial(print, flush=True)
_PER_DEVICE = 8                 # images: the grain of the search, a tile of TPU memory (8 rows)
# The search asks only what fits. Without the last optimisations a TPU compile of ResNet-50 takes a third of
# the time (77 s against 265 s) and its temporaries differ by 0.2 %. The answer is then compiled in full.
_QUICK = {'tpu': {'exec_time_optimization_effort': -1.0}, 'cpu': {'xla_backend_optimization_level': 0}}

# Triton's default tiles do not fit every matrix product of XLA's (the 197 tokens of a ViT's image in the rows of one
# are a prime number). On a card XLA times several, and takes cuBLAS where none will do (openxla/xla#36792).
_NO_TILES, _CUBLAS = "Couldn't find output tile sizes", {'xla_gpu_enable_triton_gemm': False}


def plan(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints what a training step of `config` costs, and writes it to workdir/plan.json.

    Returns:
        What plan.json holds: 'step' (see `inspect_step`), 'largest_batch' by encoder chunks, the devices.

    Raises:
        ValueError: libtpu is missing, there is no such slice, the batch does not divide, or a value of the
        config will not do.
    """
    prepare(config)
    started = time.monotonic()
    devices = slice_devices(config.plan.topology) if config.plan.topology else jax.devices()
    mesh, chip = sharding.make_mesh(devices), chip_of(devices[0], config.plan.memory_gib)
    sharding.check_batch(config.batch_size, mesh)
    where = f'{mesh.size} x {devices[0].device_kind}'
    _say(f'Compiling the training step of {config.method.name}, global batch {config.batch_size:,}, '
         f'for {where}: minutes for a large network.')
    report = {'device': devices[0].device_kind, 'num_devices': mesh.size, 'topology': config.plan.topology,
              'batch_size': config.batch_size, 'encoder_chunks': config.encoder_chunks,
              'chip': chip._asdict(), 'step': inspect_step(config, mesh, chip)}
    if config.augment.small_views:
        two = ConfigDict(config.to_dict())
        two.augment.small_views = 0
        report['flops_without_small_views'] = trace_step(two, mesh)[2] / mesh.size
    for title, columns, rows in tables(report):
        _say(f'\n{plain_table(title, columns, rows)}')
    if report['step'].get('products') == 'cuBLAS':
        _say("\nXLA found no tiles for one of its own matrix products without timing them: all are cuBLAS's here.")
    if config.plan.search:
        report['largest_batch'] = _search(config, mesh, chip, report['step'])
    report['seconds'] = round(time.monotonic() - started, 1)
    path = os.path.join(workdir, 'plan.json')
    storage.write_atomically(path, json.dumps(report, indent=2).encode())
    _say(f'\nWritten to {path} after {report["seconds"]:.0f} s.')
    return report


def trace_step(config: ConfigDict, mesh):
    """(the training step traced for the mesh, its abstract arguments (state, batch), its FLOPs).

    Built as `train.pretrain` does; nothing is allocated.
    """
    num_examples = config.plan.num_images
    num_steps = schedules.num_train_steps(num_examples, config.num_epochs, config.batch_size)
    set_channels(config, config.data.channels or len(config.augment.mean))
    inputs = make_inputs(config)
    _, init_state, train_step, shardings = build(
        config, mesh, num_examples=num_examples, num_classes=config.plan.num_classes, num_steps=num_steps,
        inputs=inputs)
    batch = inputs.abstract_batch(mesh)
    state = jax.tree.map(lambda array, where: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
                         jax.eval_shape(init_state), shardings)
    traced = train_step.trace(state, batch)
    return traced, (state, batch), hlo.count_flops(traced.jaxpr.jaxpr)


def inspect_step(config: ConfigDict, mesh, chip: Chip, *, keep: Callable[[str], None] = lambda text: None,
                 quick: bool = False) -> dict[str, Any]:
    """Compiles the step of `config` and tells what it costs each device.

    Args:
        keep: is given the compiled program's text.
        quick: leave out optimisations that hardly change the memory.

    Returns:
        'fits' and 'memory' {part: bytes, 'total': bytes} per device; 'flops', 'bytes_accessed',
        'collectives' {kind: {'count', 'bytes', 'certain'}}, 'networks' (the same, for 'within' a slice, or a
        host of GPUs, and 'between' them, where there are several), 'sent' {network: bytes, at least} and
        'floor' {limit: seconds}, each per step and device; 'products' is 'cuBLAS' where all matrix products had to
        be, else ''. A step that the compiler refuses for lack of memory has 'needs' and 'available' instead.
    """
    traced, (state, batch), flops = trace_step(config, mesh)
    lowered = traced.lower()
    report = {'flops': flops / mesh.size, 'seconds_to_compile': -time.monotonic()}
    platform = mesh.devices.flat[0].platform
    options = _QUICK.get(platform) if quick else None
    try:
        compiled, report['products'] = _compile(lowered, options)
    except jax.errors.JaxRuntimeError as error:
        figures = hlo.out_of_memory(str(error))
        if figures is None:
            raise
        report['seconds_to_compile'] += time.monotonic()
        return report | {'fits': False, 'needs': figures[0], 'available': figures[1]}
    report['seconds_to_compile'] += time.monotonic()
    text = compiled.as_text() or ''
    keep(text)
    parts = memory_parts(state, batch, hlo.memory(compiled))
    cost = compiled.cost_analysis() or {}       # a GPU's compiler has none
    kernels = hlo.kernels(text) if platform == 'gpu' else None
    # The slice of each TPU, or the host of each GPU, that a network faster than that between them joins.
    places = [getattr(device, 'slice_index', None) or 0 if platform == 'tpu' else device.process_index
              for device in mesh.devices.flat]
    networks = {network: {kind: value._asdict() for kind, value in found.items()}
                for network, found in hlo.by_network(text, places).items()}
    report |= {
        'fits': chip.memory is None or parts['total'] <= chip.memory, 'memory': parts,
        'bytes_accessed': kernels.bytes if kernels else cost.get('bytes accessed'),
        'xla_flops': cost.get('flops'), 'kernels': kernels and kernels.count,
        'loops_counted_once': kernels is None and hlo.has_loops(text),
        'collectives': {kind: value._asdict() for kind, value in sorted(hlo.collectives(text).items())},
        'networks': networks if len(set(places)) > 1 else {},
        'sent': sent_bytes(networks, mesh.size, len(set(places)), by_slice=platform == 'tpu')}
    return report | {'floor': floor_seconds(report, chip)}


def _compile(lowered, options: dict[str, Any] | None) -> tuple[Any, str]:
    try:
        return lowered.compile(options), ''
    except jax.errors.JaxRuntimeError as error:
        if _NO_TILES not in str(error):
            raise
    return lowered.compile((options or {}) | _CUBLAS), 'cuBLAS'


def sent_bytes(networks: dict[str, dict[str, Any]], num_devices: int, num_places: int, *, by_slice: bool
               ) -> dict[str, float]:
    """What a device must send at least, by network: {'within': bytes, 'between': bytes}.

    By the best algorithm: of an array over n devices (n-1)/n, twice that for an all-reduce, which comes back.
    by_slice: XLA has divided a collective of several slices into one within each and one between, of a
    device's share. Else one joins all: each place does the first part, each device sends on its share.
    """
    each = num_devices // num_places

    def sent(kind: str, size: float, count: int) -> float:
        return (2 if kind == 'all-reduce' else 1) * size * (count - 1) / count

    within = sum(sent(kind, value['bytes'], each) for found in networks.values() for kind, value in found.items()
                 if not by_slice or found is networks['within'])
    gathered = {'all-gather': num_places} if by_slice else {}       # its operand is what the text has
    between = sum(sent(kind, value['bytes'] * gathered.get(kind, 1) / (1 if by_slice else each), num_places)
                  for kind, value in networks['between'].items())
    return {'within': within, 'between': between}


def memory_parts(state, batch, memory: dict[str, int]) -> dict[str, int]:
    """Bytes per device by what they are for; all but 'total' add up to it."""
    parts = {
        'parameters': bytes_on_device(state.params), 'optimizer state': bytes_on_device(state.opt_state),
        'method state': bytes_on_device(state.method_state),
        'batch statistics': bytes_on_device(state.batch_stats),
        'images': bytes_on_device(batch)}
    parts['layout padding'] = memory['arguments'] - sum(parts.values())        # and the step number
    parts |= {'outputs': memory['outputs'], 'temporaries': memory['temporaries'], 'code': memory['code']}
    return parts | {'total': sum(parts.values())}


def bytes_on_device(tree) -> int:
    """Bytes of arrays, or of their shapes with a sharding, on each of their devices."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(tree))


def floor_seconds(step: dict[str, Any], chip: Chip) -> dict[str, float]:
    """{'FLOPs', 'memory', 'interconnect': seconds} below which no step can be, where a rate is known.

    From peak rates alone, and of the interconnect within a slice or a host. XLA's count of bytes, which takes
    the body of a loop once and some bytes that stay on the chip, is near a bound rather than one.
    """
    floors = {'FLOPs': (step['flops'], chip.flops), 'memory': (step['bytes_accessed'], chip.bandwidth),
              'interconnect': (step['sent']['within'], chip.interconnect)}
    return {name: amount / rate for name, (amount, rate) in floors.items() if amount is not None and rate}


def tables(report: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of what `plan` prints about the step."""
    step, chip = report['step'], report['chip']
    limit = f' of {chip["memory"] / _GIB:.2f} GiB' if chip['memory'] else ''
    where = f'global batch {report["batch_size"]:,}, {report["num_devices"]} x {report["device"]}'
    if 'memory' not in step:
        return [(f'Does not fit ({where})', ['per device', 'GiB'],
                 [['needs, at least', _gib(step['needs'])], ['there are', _gib(step['available'])]])]
    rows = [[part, _gib(size)] for part, size in step['memory'].items() if size or part == 'total']
    verdict = '' if chip['memory'] is None else '; it fits' if step['fits'] else '; it does not fit'
    found = [(f'Memory of a device{limit} ({where}){verdict}', ['part', 'GiB'], rows)]
    place = 'slice' if report['device'].startswith('TPU') else 'host'
    names = {'within': f'within a {place}' if step.get('networks') else 'all devices', 'between': f'between {place}s'}
    found.append(('Collectives of a step', ['network', 'kind', 'count', 'MB'], [
        [names[network], kind, f'{value["count"]:,}{" or more" * (not value["certain"])}',
         f'{value["bytes"] / 1e6:,.3f}']
        for network, kinds in (step.get('networks') or {'within': step['collectives']}).items()
        for kind, value in kinds.items()] or [['', 'none', '0', '0']]))
    amounts = {'FLOPs': f'{step["flops"] / 1e12:,.4g} TFLOP', 'memory': 'unknown',
               'interconnect': f'{step["sent"]["within"] / 1e6:,.4g} MB sent, at least'}
    if step.get('networks'):
        amounts[f'network {names["between"]}'] = f'{step["sent"]["between"] / 1e6:,.4g} MB sent, at least'
    if step['bytes_accessed'] is not None:
        amounts['memory'] = f'{step["bytes_accessed"] / 1e9:,.4g} GB{" or more" * step["loops_counted_once"]}'
    if step.get('kernels'):
        found.append(('Kernels of a step', ['kernels', 'number'], [['all', f'{step["kernels"]:,}']]))
    if 'flops_without_small_views' in report:
        without = report['flops_without_small_views']
        found.append(('What small views cost', ['views', 'TFLOP of a step, per device', 'times'], [
            [name, f'{flops / 1e12:,.4g}', f'{flops / without:.2f}']
            for name, flops in (('two', without), ('all', step['flops']))]))
    floor = step['floor']
    slowest = max(floor, key=floor.get, default='')
    title = 'Floor of a step, from peak rates'
    if slowest:
        title += (f': {1e3 * floor[slowest]:,.1f} ms ({slowest}), '
                  f'{report["batch_size"] / floor[slowest]:,.0f} images/s at most')
    found.append((title, ['limit', 'per device', 'ms'], [
        [name, amount, f'{1e3 * floor[name]:,.1f}' if name in floor else 'unknown']
        for name, amount in amounts.items()]))
    return found


def _search(config: ConfigDict, mesh, chip: Chip, step: dict[str, Any]) -> dict[str, Any]:
    """{encoder chunks: largest batch or 0} for those of the config and, unless it has some, plan.chunks."""
    if chip.memory is None and not config.plan.topology:
        _say('\nThe largest batch is not searched for: this device does not report how much memory it has. '
             'Set plan.memory_gib.')
        return {}
    known, found = {config.batch_size: _need(step)}, {}
    all_chunks = [config.encoder_chunks]
    if all_chunks == [1] and config.plan.chunks > 1:
        all_chunks.append(config.plan.chunks)
    start = config.batch_size
    for chunks in all_chunks:
        _say(f'\nThe largest batch with {chunks} encoder chunk{"s" * (chunks > 1)}:')
        unit = mesh.size * math.lcm(_PER_DEVICE, chunks)
        ask = functools.partial(_ask, config, mesh, chip, chunks)
        largest, capped = largest_batch(ask, unit=unit, start=start, capacity=chip.memory,
                                        limit=config.plan.max_batch, known=known)
        if largest:
            largest = confirm(ask, largest, unit, full=known)
        found[str(chunks)] = largest
        _say(f'  {"at least " if capped else ""}{largest:,}, in steps of {unit:,}' if largest else
             f'  none: not even {unit:,} fits')
        start, known = largest or unit, {}
    return found


def _ask(config: ConfigDict, mesh, chip: Chip, chunks: int, batch: int, *, quick: bool = True) -> Need:
    config = ConfigDict(config.to_dict())
    config.batch_size, config.encoder_chunks = batch, chunks
    step = inspect_step(config, mesh, chip, quick=quick)
    need = _need(step)
    _say(f'  {batch:>9,}  {"fits" if need.fits else "does not fit"}: {"" if need.fits else "at least "}'
         f'{_gib(need.bytes)} GiB ({step["seconds_to_compile"]:.0f} s)')
    return need


def _need(step: dict[str, Any]) -> Need:
    return Need(step['memory']['total'] if 'memory' in step else step['needs'], step['fits'])


def _gib(size: int) -> str:
    return f'{size / _GIB:,.3f}'
