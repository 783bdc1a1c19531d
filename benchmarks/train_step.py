"""SimCLR's training step beside PyTorch's and Lightly's, on the CPU, GPU or TPU that jax finds.

    python benchmarks/train_step.py [--cells=resnet18-16,resnet18-64,resnet50] [--only=ours,plain,...]
        [--rounds=5] [--turn=3] [--torch-python=PATH] [--roofline] [--apart] [--kept]
    python benchmarks/train_step.py --layers [--cells=...]
    python benchmarks/train_step.py --cells=resnet18-augmented --data=FILE.npz --until=0.85,0.88

All make the same step of the same network: two views in one call of the encoder, NT-Xent, SGD with momentum,
on views that lie on the device; float32 on a CPU, bfloat16 on an accelerator. Contenders:

    ours            the step of `train.build`
    plain           the same in plain Flax, its convolutions XLA's; those of an accelerator are that anyway
    eager           PyTorch, NCHW
    channels-last   PyTorch
    compiled        PyTorch, channels-last, torch.compile
    lightly         Lightly's head and loss as in its SimCLR example, eager, NCHW: a call for each view

Every contender is a process of its own, which waits while it is not its turn. A turn is as many steps as
take --turn seconds; figures are medians over the rounds. A process is started twice: with empty compile
caches (the cold first step, from the start of the process) and with what it left there (the warm one). Where
the memory of a GPU does not hold all of them, --apart starts a process for every turn.

"of matmul peak": FLOPs of the plain step's products and convolutions, over the fastest square product (2048
and 4096, by jax or torch) of this run. Peak memory is the resident memory of the process on a CPU, that of
the allocator on a GPU. --roofline sets the step's time beside the least that its FLOPs and bytes allow.

Cells with "augmented" are fed by a data set on the device, which makes both views too: random images, unless
--data names others. --until then trains ours and the fastest PyTorch, with empty caches, until the kNN
accuracy of the test images has passed each value; the time is that since the process was started.

On a CPU malloc gives a step's memory back to the system, and every page of it comes back by a fault. --kept
keeps it on all sides, as the field `keep_freed_memory` does.

--layers times every convolution of the cells' networks alone: forward, gradient of the kernel, of the input.

Prints tables and keeps them in benchmarks/train_step.json, by cell and device, with versions.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from contenders import CELLS, CONTENDERS, HERE, TORCH, contender, make_spec, present, said, title_of
from smoke import processor
from train_step_layers import layer_table, layers
from turns import KEPT, Failed

SIDES = (2048, 4096)                # of the matrix products that say what this machine can do


class Side:
    """A contender in a cell: its process, and what was measured of it."""

    def __init__(self, name, spec, options, caches):
        self.name, self.apart = name, options.apart
        self.process = contender(name, spec, options, caches)
        self.row, self.turns, self.flops, self.count = {'contender': name}, [], [], options.steps

    @property
    def failed(self):
        return 'failed' in self.row

    def attempt(self, action):
        """action(), or the row's 'failed'; nothing any more once it has failed."""
        if not self.failed:
            try:
                action()
            except Failed as error:
                self.row['failed'] = str(error)

    def start(self, turn):
        """Twice: cold, then warm. Sets how many steps a turn of `turn` seconds has."""
        for caches in ('cold', 'warm'):
            self.process.close()
            self.row |= self.process.start()
            self.row |= {f'{caches}_seconds': self.process.seconds,
                         f'{caches}_cpu_seconds': self.row.pop('cpu_seconds')}
        self.process.ask('steps', count=1)
        once = self.process.ask('steps', count=2)['seconds'] / 2
        self.count = self.count or max(1, round(turn / once))
        if self.apart:
            self.process.close()

    def take_turn(self, matmul_dtype=None):
        """Its steps and, if it is asked to, matrix products."""
        if self.apart:
            self.process.start()
            self.process.ask('steps', count=2)
        self.turns.append(self.process.ask('steps', count=self.count))
        if matmul_dtype:
            self.flops += [self.process.ask('matmul', side=side, dtype=matmul_dtype)['flops']
                           for side in SIDES]
        if self.apart:
            self.process.close()

    def finish(self, views):
        if self.turns and not self.failed:
            rates = [self.count * views / turn['seconds'] for turn in self.turns]
            self.row |= {
                'views_per_second': statistics.median(rates), 'turns': rates, 'steps_per_turn': self.count,
                'cpu_seconds_per_view': statistics.median(
                    turn['cpu_seconds'] / self.count / views for turn in self.turns),
                'peak_bytes': max(turn['peak'] for turn in self.turns), 'loss': self.turns[-1]['result']}


def compare(spec, names, options):
    """{'rows', 'flops' of a step, 'matmul_flops' a second, 'roofline'} of one cell."""
    views = 2 * spec['batch']
    report = {'flops': said('ours', spec | {'task': 'trace', 'dtype': 'float32'}, options)['flops']}
    with tempfile.TemporaryDirectory() as caches:
        sides = [Side(name, spec, options, caches) for name in names]
        for side in sides:
            print(f'  {side.name} starts', file=sys.stderr, flush=True)
            side.attempt(functools.partial(side.start, options.turn))
        running = [side for side in sides if not side.failed]
        measuring = [next((side for side in running if (side.name in TORCH) == is_torch), None)
                     for is_torch in (False, True)]         # one of each library multiplies matrices
        for turn in range(options.rounds):
            for side in sides[::-1] if turn % 2 else sides:
                side.attempt(functools.partial(side.take_turn, spec['dtype'] if side in measuring else None))
        for side in sides:
            side.finish(views)
        report['matmul_flops'] = max((flops for side in sides for flops in side.flops), default=None)
        ours = sides[0]
        if options.roofline and ours.name == 'ours' and not ours.failed:
            if ours.apart:
                ours.process.start()
            ours.attempt(lambda: report.update(roofline=ours.process.ask('roofline')))
        for side in sides:
            side.process.close()
    report['rows'] = [side.row for side in sides]
    check_parameters(report['rows'])
    add_shares(report, views)
    return report


def add_shares(report, views):
    """Gives every row that has a rate its 'share_of_matmul'; a step has so many `views`."""
    for row in report['rows']:
        if 'views_per_second' in row and report['matmul_flops']:
            steps_per_second = row['views_per_second'] / views
            row['share_of_matmul'] = report['flops'] * steps_per_second / report['matmul_flops']


def check_parameters(rows):
    """The same arrays everywhere, and so the same FLOPs; Lightly's head is another one."""
    shapes = {row['contender']: row.pop('shapes') for row in rows if 'shapes' in row}
    for name, own in shapes.items():
        if name != 'lightly' and own != shapes.get('ours', own):
            raise AssertionError(f'{name} has other parameters than ours: {own}')


def step_table(report):
    """(columns, rows) of text for what `compare` returned."""
    rates = {row['contender']: row.get('views_per_second') for row in report['rows']}
    rows = []
    for row in report['rows']:
        if 'views_per_second' not in row:
            rows.append([row['contender'], f'failed: {row["failed"]}'] + [''] * 7)
            continue
        rate = row['views_per_second']
        starts = [f'{row[f"{caches}_seconds"]:.1f}, {row[f"{caches}_cpu_seconds"]:.1f}'
                  for caches in ('cold', 'warm')]
        rows.append([
            row['contender'], f'{rate:,.1f}', f'{min(row["turns"]):,.1f} to {max(row["turns"]):,.1f}',
            f'{rates["ours"] / rate:.2f}' if rates.get('ours') else '',
            f'{1e3 * row["cpu_seconds_per_view"]:,.2f}', f'{row["peak_bytes"] / 2 ** 20:,.0f}',
            f'{100 * row["share_of_matmul"]:.0f} %' if 'share_of_matmul' in row else '',
            *starts])
    return ['contender', 'views/s', 'least to most', 'ours / it', 'CPU ms a view', 'peak MiB',
            'of matmul peak', 'first step, cold s, CPU s', 'warm s, CPU s'], rows


def roofline_table(report, views):
    """(columns, rows): what the step asks for, and the least time that this device needs for it."""
    roof, rate = report['roofline'], report['rows'][0]['views_per_second']
    seconds, rows = views / rate, []
    more = ' or more' if roof['loops_counted_once'] else ''
    for label, amount, speed, unit, scale in (
            ('FLOPs of products', report['flops'], report['matmul_flops'], 'GFLOP', 1e9),
            ("bytes by XLA's count", roof['bytes'], roof['copied_bytes_a_second'], 'GB', 1e9)):
        if amount and speed:
            rows.append([label, f'{amount / scale:,.1f} {unit}{more if unit == "GB" else ""}',
                         f'{speed / scale:,.0f} {unit}/s', f'{1e3 * amount / speed:,.1f}',
                         f'{100 * amount / speed / seconds:.0f} %'])
    rows.append(['the step, measured', '', '', f'{1e3 * seconds:,.1f}', '100 %'])
    return ['limit', 'amount', 'measured rate', 'ms', 'of the step'], rows


# ---------------------------------------------------------------------------------------------------
# Time to an accuracy


def train_until(spec, report, options):
    """A row for ours and the fastest PyTorch and each of --until: when kNN passed it, from a cold start."""
    running = [row for row in report['rows'] if 'views_per_second' in row]
    fastest = sorted((row for row in running if row['contender'] in TORCH[:3]),
                     key=lambda row: -row['views_per_second'])[:1]
    rows = []
    for name in [row['contender'] for row in running if row['contender'] == 'ours' or row in fastest]:
        with tempfile.TemporaryDirectory() as caches:
            started, measuring, step = time.perf_counter(), 0.0, 1      # a process starts with a step
            process = contender(name, spec, options, caches)
            process.start()
            targets = sorted(map(float, options.until.split(',')))
            while targets and step < spec['max_steps']:
                count = min(options.every, spec['max_steps'] - step)
                process.ask('steps', count=count)
                step, before = step + count, time.perf_counter()
                knn = process.ask('accuracy')['knn']
                measuring += time.perf_counter() - before
                at = {'contender': name, 'step': step, 'knn': knn, 'of which kNN': measuring,
                      'seconds': time.perf_counter() - started}
                rows += [{'target': target} | at for target in targets if knn >= target]
                targets = [target for target in targets if knn < target]
            rows += [{'target': target, 'missed': True} | at for target in targets]
            process.close()
    return rows


def until_table(rows):
    """(columns, rows) of text for what `train_until` returned."""
    return ['contender', 'kNN of', 'reached', 'step', 'seconds', 'of which kNN'], [
        [row['contender'], f'{row["target"]}', f'{row["knn"]:.4f}', f'{row["step"]:,}',
         'not' if 'missed' in row else f'{row["seconds"]:.1f}', f'{row["of which kNN"]:.1f}']
        for row in rows]


# ---------------------------------------------------------------------------------------------------
# The command


def show(title, columns, rows):
    """A table in Markdown, which a terminal shows as well as a document."""
    print(f'\n{title}\n', flush=True)
    try:
        from rich import box, console, table
    except ImportError:                                     # a bare machine with a GPU: not as neat
        lines = [columns, ['---'] * len(columns), *rows]
        return print('\n'.join(f'| {" | ".join(line)} |' for line in lines))
    lines = table.Table(*columns, box=box.MARKDOWN)
    for row in rows:
        lines.add_row(*row)
    console.Console(width=240, markup=False, highlight=False).print(lines)


def keep(path, title, report):
    """Puts a report under its title into a JSON file, whole or not at all."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[title] = {'machine': f'{os.cpu_count()} cores {processor()}'} | report
    temporary = path.with_suffix('.part')
    temporary.write_text(json.dumps(kept, indent=1) + '\n')
    os.replace(temporary, path)


def random_images(path):
    """A data set of 10,000 images of 32 px to make views of."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(path, **{f'{split}_{kind}': array for split, count in (('train', 10_000), ('test', 1000))
                      for kind, array in (('images', rng.integers(0, 256, (count, 32, 32, 3), np.uint8)),
                                          ('labels', rng.integers(0, 10, count).astype(np.int32)))})


def read_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cells', default='', help=f'of {", ".join(CELLS)}')
    parser.add_argument('--only', default='', help=f'of {", ".join(CONTENDERS)}')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--turn', type=float, default=3.0, help='seconds')
    parser.add_argument('--steps', type=int, default=0, help='of a turn, whatever they take')
    parser.add_argument('--batch', type=int, default=0, help='images, of every cell')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'))
    parser.add_argument('--torch-python', default=sys.executable)
    parser.add_argument('--apart', action='store_true', help='a process for every turn')
    parser.add_argument('--kept', action='store_true', help='freed memory is kept, on all sides')
    parser.add_argument('--roofline', action='store_true', help='always made on an accelerator')
    parser.add_argument('--layers', action='store_true')
    parser.add_argument('--data', help='.npz with train_images, train_labels, test_...')
    parser.add_argument('--until', default='', help='kNN accuracies')
    parser.add_argument('--max-steps', type=int, default=2000, help='of --until and the schedule')
    parser.add_argument('--every', type=int, default=200, help='steps from one kNN accuracy to the next')
    parser.add_argument('--out', type=pathlib.Path, default=HERE / 'train_step.json')
    options = parser.parse_args()
    for given, known in ((options.cells, CELLS), (options.only, CONTENDERS)):
        for name in filter(None, given.split(',')):
            if name not in known:
                parser.error(f'there is no {name!r}: choose of {", ".join(known)}.')
    if options.data and not os.path.isfile(options.data):
        parser.error(f"there is no file '{options.data}'.")
    if options.until and not options.data:
        parser.error('--until needs --data.')
    return options


def run_cell(name, ours, names, options):
    spec = make_spec(CELLS[name], ours['backend'], options)
    title = title_of(name, spec, ours)
    if ours['backend'] == 'cpu' and '(AVX2)' in processor():
        title = f'AVX2 {title}'         # beside those of AVX-512
    print(title, file=sys.stderr, flush=True)
    if options.layers:
        rows = layers(spec, names, options)
        keep(options.out, f'layers of {title}', {'versions': ours['versions'], 'rows': rows})
        return show(f'{title}, {2 * spec["batch"]} views', *layer_table(rows))
    report = compare(spec, names, options)
    keep(options.out, title, report)
    matmul = report['matmul_flops']
    show(f'{title}; {report["flops"] / 1e9:,.1f} GFLOP a step'
         + (f', matmul peak {matmul / 1e9:,.0f} GFLOP/s' if matmul else ''), *step_table(report))
    if 'roofline' in report:
        show('Roofline of our step', *roofline_table(report, 2 * spec['batch']))
    if spec['augmented'] and options.until:
        report['until'] = train_until(spec, report, options)
        keep(options.out, title, report)
        show('Time to a kNN accuracy', *until_table(report['until']))


def main():
    options = read_options()
    if options.kept:
        os.environ[KEPT] = '1'      # for the contenders, too
    ours, names = present(options)
    on_cpu = ours['backend'] == 'cpu'
    options.roofline |= not on_cpu
    cells = ['resnet18-16', 'resnet18-64', 'resnet50'] + ['resnet18-augmented'] * (not on_cpu)
    with tempfile.TemporaryDirectory() as directory:
        if not options.data:
            options.data = f'{directory}/images.npz'
            random_images(options.data)
        for name in options.cells.split(',') if options.cells else cells:
            run_cell(name, ours, names, options)


if __name__ == '__main__':
    main()
