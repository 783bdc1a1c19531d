"""SimCLR training on one GPU against PyTorch: images/s, memory, and the time to a kNN accuracy.

    python benchmarks/train_gpu.py --data=fashion_mnist.npz [--batch=1024] [--steps=100] [--rounds=5]
        [--torch_python=PATH] [--until=0.85,0.88] [--max_steps=2000] [--width=1.0] [--depth=18]

Both train the same ResNet (3x3 stem of stride 1, no max-pool), 32 px, bfloat16, with the same head, NT-Xent
in float32 and SGD with momentum, from uint8 images that lie on the device, and make both views there. Ours is
the step of `train.build(..., form='memory')`, fed by `inputs.InMemory`. PyTorch is channels-last, autocast,
with a fused optimiser, eager and compiled by torch.compile. An image is a source image: two views of it.

The views differ in the crop alone: torch's grid_sample has a cubic of a = -0.75 where ours has -0.5, and sees
the pixels beside the box; its kNN images come from F.interpolate, of a = -0.75 too. Random numbers differ.

Every contender is a process of its own, which stands still unless it has its turn: in each round every
contender makes --steps steps and waits for the last loss. The first round, which compiles, does not count;
figures are medians over the others. Then, for --until, ours and the faster PyTorch train one after the other
until the kNN accuracy (k = 200, temperature 0.07) of the test images, taken every --every steps, has passed
each value. That time begins when the process starts and holds imports, data and compilation with empty
caches; the time of the measurements in it stands beside it.

Without a GPU both run on the CPU, PyTorch eager alone: a trial. Prints a table; where a GPU ran, it writes
benchmarks/train_gpu.json. PyTorch runs under --torch_python, by default this Python.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

from train_gpu_torch import (
    AREA, ASPECT, BRIGHTNESS, CONTRAST, DECAY, HEAD_LAYERS, HUE, KNN_K, KNN_TEMPERATURE, MOMENTUM, OUT_DIM,
    RATE, SATURATION, SIZE, TEMPERATURE, canonical, torch_trainer, warmup_of)

ROOT = pathlib.Path(__file__).parent.parent


def trainer(name, options):
    return our_trainer(options) if name == 'ours' else torch_trainer(options, name == 'torch compiled')


# ---------------------------------------------------------------------------------------------------
# Ours. A trainer is (run, accuracy, facts): run(steps) makes steps and returns the last loss, accuracy() is
# that of kNN, facts() says what ran and the peak of the device's memory.


def our_config(options):
    from simclr_jax import config as recipes

    config = recipes.base_config()
    config.data.source = f'arrays:{options.data}'
    config.batch_size, config.num_train_steps = options.batch, options.max_steps
    config.encoder.update({'depth': options.depth, 'width': options.width, 'stem': 'cifar',
                           'dtype': 'bfloat16'})
    recipes.use_method(config, 'simclr', num_layers=HEAD_LAYERS, out_dim=OUT_DIM)
    config.method.temperature = TEMPERATURE
    config.augment = recipes.augment_config(image_size=SIZE, strength=0.5, blur=False)
    config.augment.crop.update({'law': 'uniform', 'area': AREA, 'aspect': ASPECT})
    config.augment.jitter.update({'brightness': BRIGHTNESS, 'contrast': CONTRAST, 'saturation': SATURATION,
                                  'hue': HUE})
    config.optimizer.update({'name': 'sgd', 'learning_rate': RATE, 'scaling': 'linear', 'momentum': MOMENTUM,
                             'weight_decay': DECAY})
    config.eval.update({'online_probe': False, 'crop_proportion': 1.0, 'batch_size': 2000, 'knn_k': KNN_K,
                        'knn_temperature': KNN_TEMPERATURE})
    return config


def our_trainer(options):
    if importlib.util.find_spec('rich') is None:            # shows progress, which nobody sees here
        for name in ('', '.console', '.progress', '.table'):
            sys.modules[f'rich{name}'] = mock.MagicMock()
    sys.path.insert(0, str(ROOT))
    import functools
    import jax

    from simclr_jax import inputs, sharding, steps, train
    from simclr_jax.data import sources
    from simclr_jax.evaluate.frozen import measure

    config, mesh = our_config(options), sharding.make_mesh(jax.devices()[:1])
    rows = f'[:{options.images}]' if options.images else ''
    source, test = (sources.load_source(config.data.source, split + rows) for split in ('train', 'test'))
    # A quarter of a step more, so that no rounding of epochs moves the last step of the warm-up.
    config.schedule.warmup_epochs = (warmup_of(options) + 0.25) * options.batch / source.num_examples
    assert train.choose_form(config, source) == 'memory'
    network, init_state, train_step, shardings = train.build(
        config, mesh, num_examples=source.num_examples, num_classes=10, num_steps=options.max_steps,
        form='memory')
    batches = inputs.InMemory(source, mesh, seed=config.seed, batch_size=options.batch, start_step=0)
    state = steps.jit_once(init_state, out_shardings=shardings)()
    train_step = jax.jit(train_step, donate_argnums=0,
                         out_shardings=(shardings, sharding.replicated(mesh)))
    encode = jax.jit(steps.make_encode(network))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]

    def run(count):
        nonlocal state
        for _ in range(count):
            state, metrics = train_step(state, next(batches))
        return float(metrics['contrastive_loss'])

    def accuracy():
        variables = state.variables()
        return measure(functools.partial(encode, variables), source, test, config, mesh,
                       linear=False)['knn_accuracy']

    def facts():
        device = jax.devices()[0]
        return {'gpu': device.platform == 'gpu', 'device': device.device_kind, 'version': jax.__version__,
                'shapes': canonical(shapes), 'peak': (device.memory_stats() or {}).get('peak_bytes_in_use')}

    return run, accuracy, facts


# ---------------------------------------------------------------------------------------------------
# Contenders' processes


def serve(name, options):
    """A turn of steps for each line on stdin."""
    run, _, facts = trainer(name, options)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = run(options.steps)
        print('RESULT ' + json.dumps({'seconds': time.perf_counter() - started, 'loss': loss, **facts()}),
              flush=True)


def train_until(name, options):
    """Trains until the last of --until is passed, and says when each was."""
    targets = sorted(map(float, filter(None, options.until.split(','))))
    run, accuracy, facts = trainer(name, options)
    measuring, passed, curve, step = 0.0, {}, [], 0
    while step < options.max_steps and len(passed) < len(targets):
        count = min(options.every, options.max_steps - step)
        loss = run(count)
        step += count
        before = time.time()
        reached = accuracy()
        now = time.time()
        measuring += now - before
        at = {'step': step, 'seconds': now - options.started, 'of which kNN': measuring, 'knn': reached}
        curve.append({**at, 'loss': loss})
        print(f'{name}: {json.dumps(curve[-1])}', file=sys.stderr, flush=True)
        passed |= {str(target): at for target in targets if reached >= target and str(target) not in passed}
    print('RESULT ' + json.dumps({'passed': passed, 'curve': curve, **facts()}), flush=True)


class Contender:
    """A process that trains for --steps steps whenever it is asked to."""

    def __init__(self, name, options, task):
        self.name, self.answers = name, []
        self.log = tempfile.TemporaryFile('w+')
        self.caches = tempfile.TemporaryDirectory()         # compilation is paid for, each time
        environment = {**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
                       'TORCHINDUCTOR_CACHE_DIR': f'{self.caches.name}/inductor',
                       'TRITON_CACHE_DIR': f'{self.caches.name}/triton'}
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)
        python = sys.executable if name == 'ours' else options.torch_python
        self.process = subprocess.Popen(
            [python, __file__, *sys.argv[1:], f'--worker={name}', f'--task={task}',
             f'--started={time.time()}'], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log)

    def answer(self):
        """What the process says next, or None where it ended without a word."""
        for line in self.process.stdout:                    # libraries may print, too
            if line.startswith('RESULT '):
                return json.loads(line.removeprefix('RESULT '))
        return None

    def run(self):
        try:
            self.process.stdin.write('run\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            return False
        answer = self.answer()
        self.answers += [answer] if answer else []
        return answer is not None

    def close(self):
        """Its last words, of a process that failed."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()
        self.log.seek(0)
        words = self.log.read().strip().splitlines()[-3:]
        self.log.close()
        self.caches.cleanup()
        return '\n'.join(words)


# ---------------------------------------------------------------------------------------------------
# The two comparisons


def throughput(options, names):
    """A row for each contender: images/s of its turns, peak memory, or why there are none."""
    contenders, rows = [Contender(name, options, 'speed') for name in names], []
    failed = set()
    for turn in range(1 + options.rounds):
        for contender in contenders[::-1] if turn % 2 else contenders:
            if contender not in failed and not contender.run():
                failed.add(contender)
    for contender in contenders:
        words = contender.close()
        if contender in failed:
            rows.append({'contender': contender.name, 'failed': words})
            continue
        first, *turns = contender.answers
        speeds = [options.steps * options.batch / turn['seconds'] for turn in turns]
        rows.append({'contender': contender.name, 'images_per_second': statistics.median(speeds),
                     'turns': speeds, 'first_turn_seconds': first['seconds'], **turns[-1]})
    shapes = {row['contender']: row.pop('shapes') for row in rows if 'shapes' in row}
    for name, own in shapes.items():            # the same arrays, and so the same FLOPs
        assert own == shapes.get('ours', own), f'{name} has other parameters than ours: {own}'
        print(f'{name:<15} {sum(map(math.prod, own)):,} parameters in {len(own)} arrays')
    return rows


def print_throughput(rows):
    ours = next((row.get('images_per_second') for row in rows if row['contender'] == 'ours'), None)
    print('\n| contender | images/s | ours / it | peak MiB | first turn, s | loss |\n' + '|---' * 6 + '|')
    for row in rows:
        if 'failed' in row:
            print(f'| {row["contender"]} | failed: {row["failed"]} |')
            continue
        share = f'{ours / row["images_per_second"]:.2f}' if ours else ''
        peak = f'{row["peak"] / 2 ** 20:,.0f}' if row['peak'] else ''
        print(f'| {row["contender"]} | {row["images_per_second"]:,.0f} | {share} | {peak} | '
              f'{row["first_turn_seconds"]:.1f} | {row["loss"]:.3f} |', flush=True)


def time_to(options, names):
    rows = []
    for name in names:
        contender = Contender(name, options, 'until')
        answer = contender.answer()
        words = contender.close()
        rows.append({'contender': name, **(answer or {'failed': words})})
        rows[-1].pop('shapes', None)
    print('\n| contender | kNN | step | seconds | of which kNN |\n' + '|---' * 5 + '|')
    for row in rows:
        if 'failed' in row:
            print(f'| {row["contender"]} | failed: {row["failed"]} |')
            continue
        for target, at in {**row['passed'], 'end': row['curve'][-1]}.items():
            label = target if target != 'end' else f'end, {at["knn"]:.4f}'
            print(f'| {row["contender"]} | {label} | {at["step"]} | {at["seconds"]:.1f} | '
                  f'{at["of which kNN"]:.1f} |', flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='.npz with train_images, train_labels, test_...')
    parser.add_argument('--images', type=int, default=0, help='of each split; 0 = all')
    for name, value in [('batch', 1024), ('steps', 100), ('rounds', 5), ('depth', 18), ('max_steps', 2000),
                        ('every', 200)]:
        parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--until', default='0.85,0.88', help='kNN accuracies, or nothing')
    parser.add_argument('--torch_python', default=sys.executable)
    parser.add_argument('--only', help='contenders, separated by commas')
    for name in ('worker', 'task', 'started'):
        parser.add_argument(f'--{name}', type=float if name == 'started' else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return (serve if options.task == 'speed' else train_until)(options.worker, options)
    if not os.path.isfile(options.data):
        parser.error(f"there is no file '{options.data}'.")
    probe = subprocess.run([options.torch_python, '-c', 'import torch; print(torch.cuda.is_available())'],
                           capture_output=True, text=True)
    names = ['ours', 'torch', 'torch compiled'] if 'True' in probe.stdout else ['ours', 'torch']
    if probe.returncode:
        names = ['ours']
        print(f'PyTorch is left out: {options.torch_python} has none.')
    names = options.only.split(',') if options.only else names
    report = {'options': {name: value for name, value in vars(options).items() if name not in
                          ('data', 'torch_python', 'worker', 'task', 'started')}}
    report['throughput'] = rows = throughput(options, names)
    print_throughput(rows)
    if options.until:
        running = [row for row in rows if 'failed' not in row]
        fastest = sorted((row for row in running if row['contender'] != 'ours'),
                         key=lambda row: -row['images_per_second'])[:1]
        chosen = [row['contender'] for row in running if row['contender'] == 'ours' or row in fastest]
        report['until'] = time_to(options, chosen)
    if any(row.get('gpu') for row in rows):
        (ROOT / 'benchmarks' / 'train_gpu.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
