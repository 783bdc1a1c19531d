"""Writes the published tables from the JSON that the benchmarks left.

    python benchmarks/tables.py             # writes them into README.md, docs/*.md and benchmarks/RESULTS.md
    python benchmarks/tables.py --check     # writes nothing; exit status 1 names what is stale

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; NAME is a function of this file. The
standard library alone.
"""

import argparse
import functools
import json
import pathlib
import re
import statistics
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (ROOT / 'README.md', ROOT / 'benchmarks/RESULTS.md', *sorted((ROOT / 'docs').glob('*.md')))
MARKED = re.compile(r'(<!-- table: (\w+) -->\n).*?(<!-- /table -->)', re.DOTALL)
MIB, GIB = 1 << 20, 1 << 30


def read(name):
    return json.loads((ROOT / 'benchmarks' / f'{name}.json').read_text())


def only(name, start=''):
    """The rows of the one entry of NAME.json whose title begins with `start`."""
    (rows,) = [entry['rows'] for title, entry in read(name).items() if title.startswith(start)]
    return rows


def table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return ''.join('|' + ''.join(' |' if cell == '' else f' {cell} |' for cell in line) + '\n' for line in lines)


def percent(share):
    return '' if share is None else f'{100 * share:.1f}'


def small(number):
    """1.9e-6, without the zero that Python puts into an exponent."""
    return '' if number is None else '0' if number == 0 else re.sub(r'e-0', 'e-', f'{number:.1e}')


def recipes():
    """The README's table of recipes, for the page about them."""
    text = (ROOT / 'README.md').read_text()
    return text.partition('<!-- recipes -->\n')[2].partition('<!-- /recipes -->')[0]


# configs/smoke.py


def interval(values):
    return '' if values is None else f'{100 * values[0]:.1f} ({100 * values[1]:.1f}-{100 * values[2]:.1f})'


def _encoders(run, head, *measures):
    return table(head, [[name, *(interval(values.get(measure)) for measure in measures)]
                        for name, values in read('smoke')[run]['encoders'].items()])


smoke = functools.partial(_encoders, 'smoke', ['encoder', 'kNN top-1 %', 'linear top-1 %'], 'knn', 'linear')
smoke_linear = functools.partial(
    _encoders, 'linear', ['`--config.task=linear`, 10 epochs of crops and flips', 'linear top-1 %'], 'linear')


def smoke_run():
    run = read('smoke')['smoke']
    versions = ', '.join(f'{name} {version}' for name, version in run['versions'].items())
    wall, used = (f'{run[name] // 60} min {run[name] % 60:02} s' for name in ('seconds', 'cpu_seconds'))
    return (f'{wall}, {used} of processor time; {run["machine"]}; seed {run["seed"]}; {run["date"]}; '
            f'{versions}.\n')


def smoke_log():
    lines = read('smoke')['smoke']['output']
    begin = next(number for number, line in enumerate(lines) if re.match(r'simclr on shapes', line))
    end = next(number for number, line in enumerate(lines) if re.match(r'shapes, test', line))
    kept = [*lines[begin:begin + 2], '...', *lines[end - 4:end + 6]]
    return '```text\n' + '\n'.join(kept).rstrip() + '\n```\n'


def smoke_shortcut():
    runs = read('smoke')
    rows = [[what, f'{100 * runs[name]["contrastive_accuracy"]:.0f} %',
             *(percent(runs[name]['encoders']['pretrained'][measure][0]) for measure in ('knn', 'linear'))]
            for name, what in (('smoke', 'crop, flip, colour jitter, grey'),
                               ('no_colour', 'crop and flip alone (`:no_colour`)'))]
    floor = runs['smoke']['encoders']['random']
    return table(['`configs/smoke.py`', 'contrastive accuracy', 'kNN %', 'linear %'],
                 [*rows, ['not trained', '', *(percent(floor[measure][0]) for measure in ('knn', 'linear'))]])


# Methods

METHODS = {'simclr': 'SimCLR', 'moco_v2': 'MoCo v2', 'moco_v3': 'MoCo v3', 'byol': 'BYOL', 'simsiam': 'SimSiam',
           'barlow_twins': 'Barlow Twins', 'vicreg': 'VICReg', 'nnclr': 'NNCLR', 'sup_con': 'SupCon (with labels)',
           'instance_discrimination': 'Instance discrimination'}


def _of_seeds(values, scale=100):
    mean = f'{scale * statistics.mean(values):.1f}'
    return f'{mean} ± {scale * statistics.stdev(values):.1f}' if len(values) > 1 else mean


def _equal_compute(what):
    rows = only('equal_compute', what)
    first = rows[0]
    floors = [['raw pixels', '', '', percent(first['raw pixels knn'][0]), '', ''],
              ['random encoder', '', len(first['random knn']), _of_seeds(first['random knn']),
               _of_seeds(first['random linear']), '']]
    return table(['', 'steps', 'seeds', 'kNN %', 'linear %', 'effective rank of h'], [*floors, *(
        [METHODS[row['method']], row['steps'][0], len(row['steps']), _of_seeds(row['pretrained knn']),
         _of_seeds(row['pretrained linear']), f'{statistics.mean(row["feature_rank"]):.1f}'] for row in rows)])


equal_compute_shapes = functools.partial(_equal_compute, 'shapes')
equal_compute_fashion = functools.partial(_equal_compute, 'fashion')


def equal_compute_search():
    return table(['', 'steps', 'kNN %, held out', 'rank of h', 'rank of z'], [
        [f'{METHODS[row["method"]]}, {row["variant"]}', row['steps'], percent(row['heldout knn']),
         f'{row["feature_rank"]:.1f}', f'{row["projection_rank"]:.1f}'] for row in only('equal_compute', 'search')])


def distil_fashion():
    names = {'supervised': 'supervised: the student without distillation', 'teacher': 'teacher: pretrained, fine-tuned',
             'student': 'student, distilled'}
    rows = only('distil_fashion')
    return table(['Fashion-MNIST, 600 labels', 'top-1 %'], [[names[key], _of_seeds(rows[key])] for key in names])


def ablations_byol():
    return table(['', 'regression loss', 'rank of h', 'rank of z', 'spread of z', 'kNN %', 'linear %'], [
        [row['variant'].replace('EMA', 'momentum'), f'{row["regression_loss"]:.3g}'.replace('e-0', 'e-'),
         f'{row["feature_rank"]:.1f}', f'{row["projection_rank"]:.1f}', f'{row["projection_spread"]:.3f}',
         percent(row['knn_accuracy']), percent(row['linear_accuracy'])]
        for row in only('method_ablations', 'byol')])


def ablations_moco():
    head = ['BatchNorm of the keys', 'contrastive accuracy %', 'contrastive loss', 'kNN %', 'linear %']
    return table(head, [
        [row['variant'], percent(row['contrastive_accuracy']), f'{row["contrastive_loss"]:.2f}',
         percent(row['knn_accuracy']), percent(row['linear_accuracy'])]
        for row in only('method_ablations', 'moco_v2')])


def sent(collectives):
    return ', '.join(f'{each["count"]} {kind}: {each["bytes"] / 1e6:.1f} MB' for kind, each in collectives.items())


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


# Reliability


def kill_and_resume():
    return table(['trial', 'killed after step', 'resumed from step', 'identical'], [
        [number, trial['killed_after'], trial['resumed_from'], ('**no**', 'yes')[trial['identical']]]
        for number, trial in enumerate(read('kill_and_resume')['trials'])])


def pod_in_a_box():
    result = read('pod_in_a_box')
    return table(['killed', 'after step', 'resumed from step',
                  f'bit-identical to the uninterrupted run ({result["arrays"]} arrays)'],
                 [[f'process {trial["process"]}', trial['killed_after'], trial['resumed_from'],
                   ('**no**', 'yes')[trial['identical']]] for trial in result['trials']])


# Plans


def plans():
    order = ('v5e:4x8', 'v4:4x4x2', 'v3:4x8', 'v5p:4x4x2', 'v6e:4x8', 'v4:4x4x8', 'v5e:8x16', 'v3:8x16')
    cases = read('plan')['cases']
    rows = []
    for topology in order:
        case = cases[f'resnet50 {topology}']
        slowest = max(case['floor'], key=case['floor'].get)
        rows.append([topology, f'{case["num_devices"]} {case["device"]}',
                     f'{case["memory"]["total"] / GIB:.2f} of {case["memory_of_device"] / GIB:.0f}',
                     f'{case["flops"] / 1e12:.2f}', sent(case['collectives']),
                     f'{1e3 * case["floor"][slowest]:.0f} ms ({slowest})'])
    return table(['slice', 'devices', 'memory, GiB', 'TFLOP', 'collectives', 'floor'], rows)


def plan_chunks():
    cases = read('plan')['cases']
    rows = []
    for chunks in (1, 2, 4, 8):
        case = cases[f'resnet50 v5e:4x8{f" chunks {chunks}" if chunks > 1 else ""}']
        reduced = case['collectives']['all-reduce']
        rows.append([f'encoder_chunks={chunks}', *(f'{case["memory"][key] / GIB:.2f}' for key in (
            'total', 'temporaries')), f'{case["flops"] / 1e12:.2f}',
            f'{reduced["count"]}: {reduced["bytes"] / 1e6:.0f} MB'])
    return table(['v5e:4x8', 'memory, GiB', 'temporaries', 'TFLOP', 'all-reduces'], rows)


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
            ('.2f', [cell and cell['memory']['temporaries'] / GIB for cell in (before, after)]))]
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


# benchmarks/combinations.py


ENCODERS = {'resnet': 'ResNet', 'vit': 'ViT', 'convnext': 'ConvNeXt'}


def _combinations(names, cell):
    rows = only('combinations')
    return [[name, *(cell(rows[f'{encoder} {name}']) for encoder in ENCODERS)] for name in names]


def _of_kind(with_steps):
    """Names of the methods, or of the tasks, in their order."""
    rows = only('combinations')
    return dict.fromkeys(name.split()[1] for name in rows if ('steps' in rows[name]) == with_steps)


def combinations():
    def cell(row):
        equal, of = row['resume']
        loss, norm, four = map(small, row['devices'])
        return f'{equal} of {of}; {loss}, {norm}; {four}'

    return table(['', *ENCODERS.values()], _combinations(_of_kind(True), cell))


def combinations_tasks():
    def cell(row):
        files = ', '.join(f'{name} {small(apart)}' for name, apart in row.get('formats', {}).items())
        return row['error'] or f'yes{f" ({files})" if files else ""}'

    return table(['', *ENCODERS.values()], _combinations(_of_kind(False), cell))


# Speed


def nt_xent():
    names = {'ours': '**tiles**', 'dense': 'our dense form', 'optax': 'optax.losses.ntxent',
             'lightly': "Lightly's NTXentLoss (torch 2.13)"}
    rows, everything = [], read('nt_xent')['rows']
    for row in everything:
        ours = next(other for other in everything if (other['n'], other['contender']) == (row['n'], 'ours'))
        if 'skipped' in row:
            cells = ['not run', '', '', '', f'asks for {row["asked"] / MIB:,.0f}', '']
        else:
            cells = [f'{row[name] * unit:,.0f}' if part == 0 else f'{row[name] / ours[name]:{form}}'
                     for name, unit, form in (
                         ('median_seconds', 1e3, '.2f'), ('median_cpu_seconds', 1e3, '.2f'),
                         ('peak', 1 / MIB, '.1f')) for part in (0, 1)]
        rows.append([f'{row["n"]:,}', names[row['contender']], *cells])
    return table(['N', '', 'wall ms', 'x ours', 'CPU ms', 'x ours', 'peak MiB', 'x ours'], rows)


INPUT_NAMES = {
    'official': 'official steps in tf.image', 'PIL': 'PIL, as torchvision', 'OpenCV': 'OpenCV and numpy',
    'albumentations': 'albumentations', 'kornia': 'kornia, on the CPU',
    'ours views': 'ours, all on the host (`augment_on=host`)',
    'OpenCV crops': 'OpenCV, decode and crop alone', 'ours crops': 'ours, decode and crop (`device`)',
    'ours padded': 'ours, decode and pad (`device`, `pad_to=512`)',
    'ours device': 'ours, on the device (here the CPU): rows, crop and colour in one program'}


def _rates():
    found = {(row['setting'], row['contender']): row['images_per_cpu_second']
             for row in read('input_path')['rows']}
    for name in ('ours crops', 'ours padded'):          # they decode and crop; the blur is the device's
        if ('224', name) in found:
            found.setdefault(('blur', name), found['224', name])
    return found


def _rate(rates, setting, name):
    rate = rates.get((setting, name))
    return ['', ''] if rate is None else [f'{rate:,.0f}', f'{rate / rates[setting, "official"]:.2f}']


def _input(head, *settings):
    rates = _rates()
    return table(head, [[what, *(cell for setting in settings for cell in _rate(rates, setting, name))]
                        for name, what in INPUT_NAMES.items() if (settings[0], name) in rates])


input_photographs = functools.partial(
    _input, ['to 224 px', 'no blur', 'x official', 'with blur', 'x official'], '224', 'blur')
input_small = functools.partial(_input, ['32 px, in memory', 'images/s/core', 'x official'], '32')


SMALL_SETS = {'fashion': 'Fashion-MNIST (2,502 and 2,498 images, 10 classes; 235 steps)',
              'openclipart': 'openclipart (1,249 and 1,245, 15; 196)',
              'tuxpaint': 'tuxpaint (359 and 354, 8; 225)'}
CONTENDERS = {'ours': 'configs/folder.py', 'before': 'the same, few_images.below=0',
              'lightly': "Lightly's tutorial"}


def small_sets():
    lines = []
    for row in only('small_sets'):
        if row['contender'] == 'ours':
            lines.append([SMALL_SETS[row['set']], 'random encoder', _of_seeds(row['random knn'], 1),
                          _of_seeds(row['random linear'], 1), ''])
        lines.append(['', CONTENDERS[row['contender']], _of_seeds(row['knn'], 1), _of_seeds(row['linear'], 1),
                      f'{statistics.mean(row["processor_seconds"]):.0f}'])
    return table(['set (trained on, held out)', 'contender', 'kNN %', 'linear %', 'processor seconds'], lines)


def _train_step(cell):
    rows = only('train_step', f'{cell}:')
    ours = rows[0]
    head = ['', 'views/s', 'least to most', 'ours / it', 'CPU ms a view', 'peak MiB', 'of matmul peak',
            'first step, cold s, CPU s', 'warm s, CPU s']
    return table(head, [
        [row['contender'], f'{row["views_per_second"]:.1f}',
         f'{min(row["turns"]):.1f} to {max(row["turns"]):.1f}',
         f'{ours["views_per_second"] / row["views_per_second"]:.2f}',
         f'{1e3 * row["cpu_seconds_per_view"]:.2f}',
         f'{row["peak_bytes"] / MIB:,.0f}', f'{100 * row["share_of_matmul"]:.0f} %',
         *(f'{row[f"{start}_seconds"]:.1f}, {row[f"{start}_cpu_seconds"]:.1f}' for start in ('cold', 'warm'))]
        for row in rows])


train_step_16 = functools.partial(_train_step, 'resnet18-16')
train_step_64 = functools.partial(_train_step, 'resnet18-64')
train_step_50 = functools.partial(_train_step, 'resnet50')
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


def encoder_throughput():
    return table(['', 'images/s', 'x the best of PyTorch'], [
        [row['contender'], f'{row["images_per_second"]:.1f}', f'{row["ratio"]:.2f}']
        for row in only('encoder_throughput')])


def knn():
    return table(['', 'wall s', 'CPU s'], [
        [name, f'{min(row["seconds"]):.1f}', f'{min(row["cpu_seconds"]):.1f}']
        for name, row in only('knn').items()])


# Weights


def torch_parity():
    head = ['', 'features', "torchvision's class", 'head', 'training mode: features', 'head',
            'running statistics']
    keys = ('features', 'torchvision', 'projections', 'training: features', 'training: projections',
            'training: statistics')
    return table(head, [[row['network'], *(small(row.get(key)) for key in keys)] for row in only('torch_parity')])


def export_parity():
    rows = only('export_parity')
    formats = list(dict.fromkeys(row['format'] for row in rows))
    networks = list(dict.fromkeys(row['network'] for row in rows))
    cells = {(row['network'], row['format']):
             f'{small(max(row["random"], row["photographs"]))}, {row["bytes"] / 1e6:.0f}' for row in rows}
    return table(['', *formats], [[f'ResNet-{network}', *(cells[network, name] for name in formats)]
                                  for network in networks])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; fail if a table is stale')
    arguments = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text()
        for whole in MARKED.finditer(text):
            made = f'{whole[1]}{globals()[whole[2]]()}{whole[3]}'
            if made != whole[0]:
                stale.append(f'{page.relative_to(ROOT)}: {whole[2]}')
                text = text.replace(whole[0], made)
        if not arguments.check:
            page.write_text(text)
    if arguments.check and stale:
        sys.exit('Stale, run python benchmarks/tables.py: ' + ', '.join(stale))
    print('\n'.join(stale) or 'All tables are as the JSON has them.')


if __name__ == '__main__':
    main()
