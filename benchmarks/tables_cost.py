"""The published tables of memory, time and traffic, planned and measured, and of exported weights; see tables.py."""

import functools
import math
import statistics

from ratios import lines as ratio_lines
from table_cells import only, read, sent, small, table, table_of
from tables_learning import METHODS


def method_costs():
    costs, times = only('method_costs', 'per device'), only('method_costs', 'configs/smoke.py')
    per_step = {row['method']: row['seconds'] for row in times}
    memory = {'parameters, MB': 'parameters', 'optimiser state, MB': 'optimizer state',
              'target network, queue (method state), MB': 'method state',
              'activations and other temporaries, MB': 'temporaries', 'total, MB': 'total'}
    rows = [['TFLOP', *(f'{row["flops"] / 1e12:.2f}' for row in costs)],
            *([name, *(f'{row["memory"][key] / 1e6:,.0f}' for row in costs)] for name, key in memory.items()),
            ['collectives', *(sent(row['collectives']) for row in costs)],
            ['time on a CPU, `configs/smoke.py`, SimCLR = 1',
             *(f'{per_step[row["method"]] / per_step["simclr"]:.2f}' for row in costs)]]
    return table(['', *(METHODS[row['method']] for row in costs)], rows)


# Plans


def plans():
    order = ('v5e:4x8', 'v4:4x4x2', 'v3:4x8', 'v5p:4x4x2', 'v6e:4x8', 'v4:4x4x8', 'v5e:8x16', 'v3:8x16')
    rows = []
    for topology in order:
        case = read('plan')['cases'][f'resnet50 {topology}']
        slowest = max(case['floor'], key=case['floor'].get)
        rows.append(case | {'topology': topology, 'slowest': slowest, 'seconds': case['floor'][slowest]})
    return table_of(rows, ('slice', '{topology}'), ('devices', '{num_devices} {device}'),
                    ('memory, GiB', '{memory[total]:.2f GiB} of {memory_of_device:.0f GiB}'),
                    ('TFLOP', '{flops:.2f T}'), ('collectives', '{collectives:sent}'),
                    ('floor', '{seconds:.0f ms} ms ({slowest})'))


def plan_chunks():
    cases = read('plan')['cases']
    rows = [cases[f'resnet50 v5e:4x8{f" chunks {chunks}" if chunks > 1 else ""}'] | {'chunks': chunks}
            for chunks in (1, 2, 4, 8)]
    return table_of(rows, ('v5e:4x8', 'encoder_chunks={chunks}'), ('memory, GiB', '{memory[total]:.2f GiB}'),
                    ('temporaries', '{memory[temporaries]:.2f GiB}'), ('TFLOP', '{flops:.2f T}'),
                    ('all-reduces', '{collectives[all-reduce][count]}: {collectives[all-reduce][bytes]:.0f M} MB'))


def tpu_step():
    cells = read('tpu_step')
    rows = []
    for key, after in cells.items():
        if after['label'] != 'after' or after['full']:
            continue
        before = cells.get(key.replace('after', 'before', 1))
        pairs = [[f'{value:{form}}' if value is not None else '-' for value in values] for form, values in (
            ('.2f', [cell and cell['xla_flops'] / 1e12 for cell in (before, after)]),
            ('.1f', [cell and cell['bytes_accessed'] / 1e9 for cell in (before, after)]),
            ('.2f', [cell and cell['memory']['temporaries'] / (1 << 30) for cell in (before, after)]))]
        rows.append([after['topology'], after['num_devices'], after['batch_size'], *map(', '.join, pairs)])
    rows.sort(key=lambda row: (row[1], row[0], row[2]))
    return table(['slice', 'devices', 'batch', 'TFLOP before, after', 'GB accessed', 'temporaries, GiB'],
                 rows)


def gpu_plan():
    rows = []
    for name, row in only('gpu_plan').items():
        if 'needs GiB' in row:
            rows.append([name, row['topology'], f'does not fit: needs {row["needs GiB"]} GiB', *[''] * 6])
            continue
        temporaries = row['temporaries GiB'] if 'temporaries GiB' in row else row['temporaries MiB'] / 1024
        exchanged = ', '.join(f'{count} {kind}: {size} MB'
                              for kind, (count, size) in row.get('collectives', {}).items())
        rows.append([name, row['topology'], f'{row["kernels"]:,}' if row['kernels'] else '', row['GB moved'],
                     f'{temporaries:.2f}',
                     row.get('TFLOP', ''), row.get('floor ms', ''), row.get('compile s', ''), exchanged])
    head = ['', 'devices', 'kernels', 'GB moved', 'temporaries, GiB', 'TFLOP', 'floor, ms', 'compile, s', 'collectives']
    return table(head, rows)


def networks():
    head = ['devices, batch', 'devices of a collective', 'collectives', 'a device sends at least, MB']
    return table(head, [
        [f'{case["topology"]}, {case["batch_size"]:,}', what.format('slice' if 'TPU' in case['device'] else 'host'),
         sent(case['networks'][network]) or 'none', f'{case["sent"][network] / 1e6:.1f}']
        for case in only('networks') for network, what in (('within', 'within a {}'), ('between', 'between {}s'))])


# Speed


def nt_xent():
    names = {'ours': '**tiles**', 'dense': 'our dense form', 'optax': 'optax.losses.ntxent',
             'lightly': "Lightly's NTXentLoss (torch 2.13)"}
    rows, everything = [], read('nt_xent')['rows']
    for row in everything:
        ours = next(other for other in everything if (other['n'], other['contender']) == (row['n'], 'ours'))
        if 'skipped' in row:
            cells = ['not run', '', '', '', f'asks for {row["asked"] / (1 << 20):,.0f}', '']
        else:
            cells = [f'{row[name] * unit:,.0f}' if part == 0 else f'{row[name] / ours[name]:{form}}'
                     for name, unit, form in (
                         ('median_seconds', 1e3, '.2f'), ('median_cpu_seconds', 1e3, '.2f'),
                         ('peak', 1 / (1 << 20), '.1f')) for part in (0, 1)]
        rows.append([f'{row["n"]:,}', names[row['contender']], *cells])
    return table(['N', '', 'wall ms', 'x ours', 'CPU ms', 'x ours', 'peak MiB', 'x ours'], rows)


INPUT_NAMES = {
    'official': 'official steps in tf.image', 'PIL': 'PIL, as torchvision', 'OpenCV': 'OpenCV and numpy',
    'albumentations': 'albumentations', 'kornia': 'kornia, on the CPU',
    'ours views': 'ours, all on the host (`augment_on=host`)', 'before views': 'the same before',
    'OpenCV crops': 'OpenCV, decode and crop alone', 'ours crops': 'ours, decode and crop (`device`)',
    'before crops': 'the same before', 'ours padded': 'ours, decode and pad (`device`, `pad_to=512`)',
    'before padded': 'the same before', 'decode alone': 'our files read and decoded as far as crops need it, no more',
    'ours device': 'ours, on the device (here the CPU): rows, crop and colour in one program',
    'before device': 'the same before'}


def _rates():
    found = {(row['setting'], row['contender']): row['images_per_cpu_second']
             for row in read('input_path')['rows']}
    for name in ('ours crops', 'ours padded'):          # they decode and crop; the blur is the device's
        if ('224', name) in found:
            found.setdefault(('blur', name), found['224', name])
    return found


def _input(head, *settings):
    rates = _rates()

    def pair(setting, name):
        rate = rates.get((setting, name))
        return ['', ''] if rate is None else [f'{rate:,.0f}', f'{rate / rates[setting, "official"]:.2f}']

    return table(head, [[what, *(cell for setting in settings for cell in pair(setting, name))]
                        for name, what in INPUT_NAMES.items() if (settings[0], name) in rates])


def input_photographs():
    return _input(['to 224 px', 'no blur', 'x official', 'with blur', 'x official'], '224', 'blur')


def input_small():
    return _input(['32 px, in memory', 'images/s/core', 'x official'], '32')


def decoders():
    report = read('decoders')
    ours = report['rows'][0]['ms']
    return table_of([row | {'ratio': row['ms'] / ours} for row in report['rows']],
                    ('', '{decoder}'), ('ms', '{ms:.2f}'), ('x ours', '{ratio:.2f}'), ('greatest difference', '{most}'),
                    ('on average', '{mean:.2f}'), ('values that differ', '{share:.1f %} %'))


def _train_step(cell):
    rows = only('train_step', f'{cell}:')
    ours = rows[0]['views_per_second']
    return table_of(
        [row | {'least': min(row['turns']), 'most': max(row['turns']), 'ratio': ours / row['views_per_second']}
         for row in rows],
        ('', '{contender}'), ('views/s', '{views_per_second:.1f}'), ('least to most', '{least:.1f} to {most:.1f}'),
        ('ours / it', '{ratio:.2f}'), ('CPU ms a view', '{cpu_seconds_per_view:.2f ms}'),
        ('peak MiB', '{peak_bytes:,.0f MiB}'), ('of matmul peak', '{share_of_matmul:.0f %} %'),
        ('first step, cold s, CPU s', '{cold_seconds:.1f}, {cold_cpu_seconds:.1f}'),
        ('warm s, CPU s', '{warm_seconds:.1f}, {warm_cpu_seconds:.1f}'))


train_step_16 = functools.partial(_train_step, 'resnet18-16')
train_step_64 = functools.partial(_train_step, 'resnet18-64')
train_step_kept_16 = functools.partial(_train_step, 'kept resnet18-16')
train_step_kept_64 = functools.partial(_train_step, 'kept resnet18-64')
train_step_50 = functools.partial(_train_step, 'resnet50')
train_step_avx2_16 = functools.partial(_train_step, 'AVX2 resnet18-16')
train_step_avx2_64 = functools.partial(_train_step, 'AVX2 resnet18-64')
train_step_avx2_50 = functools.partial(_train_step, 'AVX2 resnet50')
train_step_vit = functools.partial(_train_step, 'vit-small')


def train_step_layers():
    kinds, contenders = ('forward', 'kernel gradient', 'input gradient'), ('ours', 'plain', 'channels-last')
    cells = {name: [] for name in (*kinds, 'convolutions together', 'the step', 'the rest of it')}
    for cell in ('resnet18-16', 'resnet18-64'):
        layers = only('train_step', f'layers of {cell}:')
        steps = {row['contender']: 128 / row['views_per_second'] for row in only('train_step', f'{cell}:')}
        for contender in contenders:
            times = [sum(layer['count'] * layer['seconds'][contender] for layer in layers
                         if layer['kind'] == kind) for kind in kinds]
            step = steps[contender]
            for name, seconds in zip(cells, (*times, sum(times), step, step - sum(times))):
                cells[name].append(f'{1e3 * seconds:,.0f}')
    head = ['', '16 channels: ours', 'XLA', 'PyTorch, channels-last', '64 channels: ours', 'XLA',
            'PyTorch, channels-last']
    return table(head, [[name, *values] for name, values in cells.items()])


def start():
    seconds = read('start')['seconds']
    trees = list(dict.fromkeys(name for row in seconds.values() for name in row))

    def spread(values):
        return f'{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})' if values else ''

    return table(['processor seconds', *trees], [
        [what, *(spread(row.get(name)) for name in trees)] for what, row in seconds.items()])


def encoder_throughput():
    return table_of(only('encoder_throughput'), ('', '{contender}'), ('images/s', '{images_per_second:.1f}'),
                    ('x the best of PyTorch', '{ratio:.2f}'))


def knn():
    return table(['', 'wall s', 'CPU s'], [
        [name, f'{statistics.median(row["seconds"]):.1f}', f'{statistics.median(row["cpu_seconds"]):.1f}']
        for name, row in only('knn').items()])


def ratios():
    return table(['', 'best peer', 'before', 'now'], [
        [what, peer, f'{before:.2f}' if before else '', f'{now:.2f}'] for what, now, before, peer in ratio_lines()])


def growth():
    sizes, lines, found = (1000, 10_000, 100_000, 1_000_000), [], read('growth')
    for kind, name in (('start', 'start on a folder'), ('resume', 'again in that workdir'),
                       ('before', 'start, before'), ('knn', 'kNN, 1,000 queries'), ('linear', 'linear probe')):
        rows = {row['size']: row for row in found.get(kind, {'rows': []})['rows']}
        if sizes[-1] not in rows:
            continue
        last, tenth = rows[sizes[-1]], rows.get(sizes[-2])
        lines.append([name, *(f'{rows[size]["cpu_s"]:.2f}' if size in rows else '' for size in sizes),
                      f'{math.log10(last["cpu_s"] / tenth["cpu_s"]):.2f}' if tenth else '', f'{last["peak_mib"]:,}',
                      f'{(last["peak_mib"] - tenth["peak_mib"]) * 2 ** 20 / 900_000:.0f}' if tenth else ''])
    return table(['processor s of', *(f'{size:,}' for size in sizes), 'slope of the last tenfold', 'peak MiB',
                  'bytes a further image'], lines)


def growth_steps():
    names = {'step': 'batch of 64, images in memory', 'batch': 'of 8,192 images, batch',
             'devices': 'batch of 512, simulated devices'}
    found = read('growth')
    return table_of(
        [row | {'what': f'{name}: {row["size"]:,}'} for kind, name in names.items() for row in found[kind]['rows']],
        ('a step', '{what}'), ('processor ms', '{cpu_s:.1f ms}'),
        ('temporaries of all devices, MiB', '{compiled_mib:.0f}'), ('peak of the process, MiB', '{peak_mib:,}'))


# Weights


def torch_parity():
    rows = [{name.replace(': ', ' '): value for name, value in row.items()} for row in only('torch_parity')]
    return table_of(
        rows, ('', '{network}'), ('features', '{features?:small}'),
        ("torchvision's class", '{torchvision?:small}'), ('head', '{projections?:small}'),
        ('training mode: features', '{training features?:small}'), ('head', '{training projections?:small}'),
        ('running statistics', '{training statistics?:small}'))


def export_parity():
    rows = only('export_parity')
    formats = list(dict.fromkeys(row['format'] for row in rows))
    networks = list(dict.fromkeys(row['network'] for row in rows))
    cells = {(row['network'], row['format']):
             f'{small(max(row["random"], row["photographs"]))}, {row["bytes"] / 1e6:.0f}' for row in rows}
    return table(['', *formats], [[f'ResNet-{network}', *(cells[network, name] for name in formats)]
                                  for network in networks])
