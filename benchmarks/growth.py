"""How time and memory grow: with the images of a data set, with the batch, with the number of devices.

    python benchmarks/growth.py [--only=start,knn,...] [--sizes=1000,10000] [--rounds=1] [--folders=DIR] [--draw]

Every point is a process of its own on one thread: its processor seconds and its greatest resident memory.

    start, resume       a run on a folder of small PNGs of 81 shapes (hard links to 64 contents), 100 or 1,000 in the
                        folder of a class, 10 % of each held out: all that is done with the data up to the first
                        batch, and again in that workdir; of it the listing, with the splits, and the files' sizes
    before              the same as start, by the package of another checkout, which $GROWTH_OF names
    knn, linear         `nearest_neighbours` of 1,000 queries, k = 200; `linear_probe`, 10 classes; features of 64
    step                a step of 64 images of 8 px that lie in memory, SimCLR, crops alone, a ResNet-10 of 4 channels
    batch, devices      the same of so many images, of 8,192 in memory; of 512 on so many simulated devices

Writes benchmarks/growth.json, --only and --sizes into what is there, and with --draw docs/growth.svg. The slope of
the last tenfold is the power of the size that it grows with: 1 is linear.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, os.environ.get('GROWTH_OF', str(ROOT)))
IMAGES = (1000, 10_000, 100_000, 1_000_000)
BATCHES = (64, 256, 1024, 4096, 8192)
SIZES = {'start': IMAGES, 'resume': IMAGES, 'knn': IMAGES, 'linear': IMAGES, 'step': IMAGES, 'batch': BATCHES,
         'devices': (1, 2, 4, 8), 'before': IMAGES[-1:]}
WIDTH, SIDE = 64, 8


def cpu():
    return time.process_time()


def peak_mib():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


# Points: each in a process of its own -------------------------------------------------------------------


def make_folder(root, count):
    """`count` PNGs below `root`, of more shapes than one, so that none is read into memory at the start."""
    import numpy as np
    from PIL import Image
    each, kinds, rng = (100 if count < 100_000 else 1000), root / 'kinds', np.random.default_rng(0)
    kinds.mkdir(parents=True)
    for number in range(64):
        shape = (*rng.integers(16, 25, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(kinds / f'{number}.png', compress_level=1)
    for number in range(count):
        folder = f'{root}/images/{number // each:04}'
        if number % each == 0:
            os.makedirs(folder)
        os.link(kinds / f'{number % 64}.png', f'{folder}/{number:07}.png')


def small_run(**fields):
    """The config of a tiny SimCLR run."""
    from simclr_jax.config import base_config, smoke
    config = smoke(base_config())
    config.encoder.width, config.augment.image_size = 1 / 16, SIDE
    for operation in ('jitter', 'grey', 'blur'):        # they take half a minute to compile
        config.augment[operation].probability = 0.0
    config.eval.update({'knn_max_images': 1000, 'linear_at_end': False})
    config.schedule.update({'name': 'constant', 'warmup_epochs': 0.0})
    config.data.update({'train_split': 'train', 'test_split': ''})
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def start(count, folder):
    """All that a start does with its data, up to the first batch; the listing and the sizes of it."""
    from simclr_jax import train
    from simclr_jax.data import folder as folders, loading
    from simclr_jax.training import workdir
    parts = {'listing': 0.0, 'sizes': 0.0}

    def timed(part, function):
        def call(*arguments, **keywords):
            begun = cpu()
            try:
                return function(*arguments, **keywords)
            finally:
                parts[part] += cpu() - begun
        return call

    loading.load_pair = timed('listing', loading.load_pair)
    folders.FolderSource.fingerprint = timed('sizes', folders.FolderSource.fingerprint)
    config, given = small_run(**{'data.source': f'folder:{folder}/images'}), ('source', 'test_source', 'views')

    def load():
        run, inputs, _ = train.load(config, str(folder / 'run'), encoder=None, method=None, **dict.fromkeys(given))
        with inputs.batches(run.train_source, run.mesh) as batches:
            next(batches)
        workdir.save_run(folder / 'run', config.to_dict(), run.train_source)
        for source in (run.train_source, run.test_source):      # as the floors are kept by
            source.fingerprint()

    return measured(load) | parts


def features(count):
    import numpy as np
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, WIDTH), np.float32)

    def some(count):
        labels, found = rng.integers(0, 10, count).astype(np.int32), np.empty((count, WIDTH), np.float32)
        for first in range(0, count, 1000):     # no more memory than they take
            part = slice(first, first + 1000)
            found[part] = centres[labels[part]] + 2 * rng.standard_normal((len(labels[part]), WIDTH), np.float32)
        return found, labels

    return *some(count), *some(1000)


def measured(function):
    begun, before = cpu(), peak_mib()
    found = function()
    return {'cpu_s': cpu() - begun, 'peak_mib': peak_mib(), 'before_mib': before, **(found or {})}


def knn(count):
    from simclr_jax.evaluate.features import Features
    from simclr_jax.evaluate.knn import nearest_neighbours
    train, labels, queries, _ = features(count)
    nearest_neighbours(Features(train[:500], labels[:500]), queries[:10], k=200)
    return measured(lambda: nearest_neighbours(Features(train, labels), queries, k=200) and None)


def linear(count):
    import simclr_jax
    arrays = features(count)
    simclr_jax.linear_probe(*(array[:500] for array in arrays))
    return measured(lambda: {'accuracy': simclr_jax.linear_probe(*arrays)})


def step(count, batch=64, devices=1):
    """A step, in seconds of the processor, after those that compile; and what its program asks for."""
    import jax
    import numpy as np

    from simclr_jax import train
    from simclr_jax.data.source import ArraySource
    from simclr_jax.runtime import sharding
    from simclr_jax.training import steps
    before, rng, mesh = peak_mib(), np.random.default_rng(0), sharding.make_mesh(jax.devices()[:devices])
    source = ArraySource('random', 'train', rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
                         rng.integers(0, 10, count).astype(np.int32), tuple('0123456789'))
    config = small_run(batch_size=batch)
    inputs = train.make_inputs(config, source)
    _, init_state, train_step, shardings = train.build(
        config, mesh, num_examples=count, num_classes=10, num_steps=1000, inputs=inputs)
    state, batches = steps.jit_seldom(init_state, out_shardings=shardings)(), inputs.batches(source, mesh)
    program = train_step.lower(state, next(batches)).compile()
    memory = program.memory_analysis()
    state, metrics = program(state, next(batches))
    jax.block_until_ready(metrics)
    number, begun = 0, cpu()
    while number < 3 or cpu() - begun < 2:
        state, metrics = program(state, next(batches))
        jax.block_until_ready(metrics)
        number += 1
    return {'cpu_s': (cpu() - begun) / number, 'peak_mib': peak_mib(), 'before_mib': before, 'steps': number,
            'compiled_mib': devices * memory.temp_size_in_bytes / 2 ** 20}


def point(kind, size, folder):
    found = {**dict.fromkeys(('start', 'resume', 'before'), lambda size: start(size, pathlib.Path(folder))),
             'knn': knn, 'linear': linear, 'step': step, 'batch': lambda size: step(8192, size),
             'devices': lambda size: step(8192, 512, size)}[kind](size)
    print(json.dumps(found))


# All of them ---------------------------------------------------------------------------------------------


def run_point(kind, size, folder=''):
    flags = '--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=' + str(
        size if kind == 'devices' else 1)
    process = subprocess.run([sys.executable, __file__, f'--point={kind},{size},{folder}'], text=True,
                             stdout=subprocess.PIPE, env=os.environ | {
                                 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1',
                                 'XLA_FLAGS': flags})
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"cpu_s"')]
    if process.returncode or not lines:
        sys.exit(f'{kind} of {size} failed.')
    return lines[0]


def slope(rows, key):
    """d log(key) / d log(size) between the last two points."""
    before, last = rows[-2:]
    return math.log(last[key] / before[key]) / math.log(last['size'] / before['size'])


PANELS = (('start', 'start on a folder', 'images'), ('knn', 'kNN, 1,000 queries', 'images'),
          ('linear', 'linear probe', 'images'), ('step', 'step of 64', 'images in memory'),
          ('batch', 'step', 'batch'), ('devices', 'step of 512', 'simulated devices'))


def draw(found, path):
    """Two small panels for each kind that was measured: seconds of the processor, and memory."""
    import matplotlib
    matplotlib.use('svg')
    import matplotlib.pyplot as plt
    matplotlib.rcParams.update({'svg.hashsalt': 'growth', 'font.size': 8})
    panels = [panel for panel in PANELS if panel[0] in found]
    figure, axes = plt.subplots(2, len(panels), figsize=(3.2 * len(panels), 5), layout='constrained', squeeze=False)
    for (kind, title, unit), times, memories in zip(panels, *axes):
        lines = [(times, kind, 'cpu_s', 'all'), (memories, kind, 'more_mib', 'resident')]
        if kind == 'start':
            lines += [(times, 'resume', 'cpu_s', 'again'), (times, kind, 'listing', 'listing and splits'),
                      (times, kind, 'sizes', "files' sizes")]
        if 'compiled_mib' in found[kind]['rows'][0]:
            lines += [(memories, kind, 'compiled_mib', 'temporaries, all devices')]
        for axis, of, key, label in lines:
            rows = [row | {'more_mib': max(1, row['peak_mib'] - row['before_mib'])} if 'before_mib' in row else row
                    for row in found[of]['rows']]
            axis.plot([row['size'] for row in rows], [row[key] for row in rows], marker='.',
                      label=f'{label}: {slope(rows, key):.2f}')
        for axis, what in ((times, 'processor s'), (memories, 'MiB beyond those before')):
            axis.set(xscale='log', yscale='log', xlabel=unit, ylabel=what)
            axis.grid(True, alpha=0.3)
            axis.spines[['top', 'right']].set_visible(False)
            axis.legend(frameon=False, fontsize=7)
        times.set_title(title)
    figure.savefig(path, metadata={'Date': None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--only', type=lambda names: names.split(','), default=[*SIZES])
    parser.add_argument('--sizes', type=lambda sizes: [*map(int, sizes.split(','))])
    parser.add_argument('--rounds', type=int, default=1, help='of each point, of which the medians are kept')
    parser.add_argument('--folders', type=pathlib.Path, help='where the folders of images are made and left')
    parser.add_argument('--draw', action='store_true', help='measure nothing; draw docs/growth.svg')
    parser.add_argument('--point', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        kind, size, folder = arguments.point.split(',')
        return point(kind, int(size), folder)
    from runs import keep
    file = ROOT / 'benchmarks/growth.json'
    found = json.loads(file.read_text()) if file.exists() else {}
    here = arguments.folders or pathlib.Path(tempfile.mkdtemp())
    for kind in arguments.only if not arguments.draw else ():
        rows = {row['size']: row for row in found.get(kind, {'rows': []})['rows']}
        for size in arguments.sizes or SIZES[kind]:
            folder = here / str(size)
            if kind in ('start', 'resume', 'before') and not folder.exists():
                make_folder(folder, size)
            points = []
            for _ in range(arguments.rounds):
                if kind != 'resume':
                    shutil.rmtree(folder / 'run', ignore_errors=True)
                points.append(run_point(kind, size, folder))
            rows[size] = {'size': size, 'rounds': len(points)} | {
                key: round(statistics.median(point[key] for point in points), 5) for key in points[0]}
            print(kind, rows[size], flush=True)
            keep('growth', kind, [rows[size] for size in sorted(rows)])
    if arguments.folders is None:
        shutil.rmtree(here)
    if arguments.draw:
        draw(found, ROOT / 'docs/growth.svg')


if __name__ == '__main__':
    main()
