"""SimCLR on CIFAR-size images against the clock, ours and then PyTorch compiled, on the device that both find.

    python benchmarks/cifar_speed.py --data=FILE.npz [--epochs=100] [--batch=512]

ResNet-18 with the CIFAR stem, views made on the device, SGD; bfloat16 on an accelerator. FILE.npz has train_images
(32 px; CIFAR-10 has 50,000), train_labels, test_images and test_labels, as `arrays:FILE.npz`. Each contender is a
process of its own that starts with empty compile caches; the clock runs from its start, compilation and kNN included.

Prints the seconds to the end, those of kNN among them, the kNN accuracy of the test images at the end, and when it
first passed each of --targets, asked every --every epochs; beside them what others published. Keeps the rows in
benchmarks/cifar_speed.json, by data and device.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
from contenders import CONTENDERS, HERE, Cell, contender, make_spec, present
from train_step import keep, show
from turns import Failed

# The crops and the temperature of configs/cifar10.py; SGD's numbers are those of contenders.RECIPE.
RECIPE = {'temperature': 0.5, 'area': [0.08, 1.0]}
# github.com/dkobak/simclr-cifar10, README: ResNet-18, batch 512, PyTorch on an A100: what it is, seconds, accuracy.
PUBLISHED = [('dkobak/simclr-cifar10, 100 epochs, A100', 20 * 60, 'kNN 83.2 %, linear 85.6 %'),
             ('dkobak/simclr-cifar10, 500 epochs, A100', 99 * 60, 'kNN 90.3 %')]


def race(name, spec, options, epoch):
    """A row of one contender: it trains `options.epochs` epochs of `epoch` steps."""
    row, targets = {'contender': name, 'reached': {}}, list(options.targets)
    with tempfile.TemporaryDirectory() as caches:
        started, measuring, step = time.perf_counter(), 0.0, 1           # a process starts with a step
        process = contender(name, spec, options, caches)
        try:
            row |= process.start()
            row['seconds to start'] = time.perf_counter() - started
            while step < spec['max_steps']:
                count = min(options.every * epoch - step % (options.every * epoch), spec['max_steps'] - step)
                row['loss'] = process.ask('steps', count=count)['result']
                step, before = step + count, time.perf_counter()
                row['knn'] = process.ask('accuracy')['knn']
                measuring += time.perf_counter() - before
                row |= {'steps': step, 'seconds': time.perf_counter() - started, 'seconds of kNN': measuring}
                while targets and row['knn'] >= targets[0]:
                    row['reached'][f'{targets.pop(0):g}'] = row['seconds']
                print(f'{name}: step {step:,} of {spec["max_steps"]:,}, {row["seconds"]:,.0f} s, kNN {row["knn"]:.4f}',
                      file=sys.stderr, flush=True)
        except Failed as error:
            row['failed'] = str(error)
        finally:
            process.close()
    return row


def table(rows, targets):
    """(columns, rows) of text, with what others published below."""
    lines = []
    for row in rows:
        if 'failed' in row:
            lines.append([row['contender'], f'failed: {row["failed"]}', *[''] * (2 + len(targets))])
            continue
        reached = [row['reached'].get(f'{target:g}') for target in targets]
        lines.append([row['contender'], f'{row["seconds"]:,.0f}', f'kNN {100 * row["knn"]:.1f} %',
                      f'{row["seconds of kNN"]:,.0f}',
                      *('not' if seconds is None else f'{seconds:,.0f}' for seconds in reached)])
    lines += [[name, f'{seconds:,}', accuracy, *[''] * (1 + len(targets))] for name, seconds, accuracy in PUBLISHED]
    return ['', 's to the end', 'accuracy there', 's of kNN in it',
            *(f's to kNN {100 * target:g} %' for target in targets)], lines


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='.npz with train_images, train_labels, test_...')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, default=512)
    parser.add_argument('--every', type=int, default=5, help='epochs from one kNN accuracy to the next')
    parser.add_argument('--targets', default='0.8,0.85,0.9', help='kNN accuracies')
    parser.add_argument('--only', default='ours,compiled', help=f'of {", ".join(CONTENDERS)}')
    parser.add_argument('--depth', type=int, default=18)
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'))
    parser.add_argument('--torch-python', default=sys.executable)
    parser.add_argument('--out', type=pathlib.Path, default=HERE / 'cifar_speed.json')
    options = parser.parse_args()
    if not os.path.isfile(options.data):
        parser.error(f"there is no file '{options.data}'.")
    options.targets = sorted(float(target) for target in options.targets.split(',') if target)
    return options


def main():
    options = read_options()
    with np.load(options.data) as arrays:
        shape = arrays['train_images'].shape
    epoch = shape[0] // options.batch
    if not epoch:
        sys.exit(f'{options.data} has {shape[0]} training images, fewer than the batch of {options.batch}: '
                 'give a smaller --batch.')
    options.max_steps = options.epochs * epoch
    ours, names = present(options)
    cell = Cell(options.depth, options.width, 'cifar', shape[1], options.batch, options.batch, augmented=True)
    spec = make_spec(cell, ours['backend'], options) | RECIPE
    rows = [race(name, spec, options, epoch) for name in names]
    title = (f'{pathlib.Path(options.data).name}, {shape[0]:,} images of {shape[1]} px, ResNet-{options.depth}, '
             f'{64 * options.width:g} channels, {options.epochs} epochs, batch {options.batch}, {spec["dtype"]}, '
             f'{ours["device"]}')
    keep(options.out, title, {'rows': rows})
    show(title, *table(rows, options.targets))


if __name__ == '__main__':
    main()
