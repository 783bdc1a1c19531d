"""Whether our SimCLR, MoCo v2 and BYOL learn as well as Lightly's at equal work: curves over steps and processor time.

    python benchmarks/learning.py --fashion=fashion_mnist.npz --workdir=DIR
    python benchmarks/learning.py --workdir=DIR --draw       # from what is there: learning.json, docs/learning.svg

Both sides have one ResNet-10 of width 0.25 at 28 pixels with the same initial weights (ours, heads, target and
queue included, written by weights/write), the same images in every batch of 256, the same law of views, heads of
the same layers, SGD with momentum 0.9 after a warm-up and a cosine, and the same momentum of the target. Ours is
the package's compiled step, theirs Lightly's transforms (of Pillow images), heads, losses and `update_momentum` in
a plain loop. Fashion-MNIST (an .npz of train_images, train_labels, test_images and test_labels), whole, and its
first 5,000 images; kNN (k = 20) and the linear probe are our functions on the features of both sides, of the first
5,000 training and the first 5,000 test images.

Processor time is that of the process on one thread, measurements left out, from building the step on: compiling is
in it, and on Lightly's side the views are. The two sides are two processes at the same time; a run that a call with the
same --workdir finished is not made again. `first steps` compares the two sides on identical views, weights and batches:
the loss, the gradient, and all that they hold after 5 steps; `views` the distributions of their views.
Needs torch, torchvision, timm and lightly.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

METHODS, SIDES = ('simclr', 'moco_v2', 'byol'), ('ours', 'lightly')
TITLES = {'simclr': 'SimCLR', 'moco_v2': 'MoCo v2', 'byol': 'BYOL'}
STEPS = {'5,000': 120, 'whole': 234}            # 6 epochs of 5,000 images; one of 60,000
POINTS = (0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)     # of a run, measured at
BATCH, SIZE, MEASURED, WARM_UP = 256, 28, 5000, 0.1
ENCODER = {'depth': 10, 'width': 0.25, 'stem': 'imagenet', 'dtype': 'float32'}
HEAD = {'num_layers': 2, 'hidden_width': 256, 'out_dim': 64, 'init_stddev': 0.0}
# Where the heads of the recipes differ from Lightly's modules of their names. MoCo's have BatchNorm, as its recipe
# for short runs here: without, a network tells old keys from new ones.
LAYERS = {'simclr': {}, 'moco_v2': {'norm': True, 'final_norm': True, 'bias': False, 'final_bias': False},
          'byol': {'bias': False, 'final_bias': True}}
METHOD = {'simclr': {'temperature': 0.2}, 'moco_v2': {'temperature': 0.2, 'momentum': 0.9, 'queue_size': 1024},
          'byol': {'momentum': 0.9}}
RATE = {'simclr': 0.3, 'moco_v2': 0.3, 'byol': 0.3}
OPTIMIZER = {'name': 'sgd', 'scaling': 'none', 'momentum': 0.9, 'weight_decay': 5e-4, 'exclude': ()}
# The images are grey: saturation, hue and grey would cost time and change nothing.
CROP = {'law': 'uniform', 'area': (0.5, 1.0), 'resize': 'bilinear', 'antialias': True}
JITTER = {'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.0, 'hue': 0.0}
SOLARIZE = {'byol': 0.2}                        # of view 2


def on_one_thread():
    """Threads are counted by the processors that a process may have when it makes them; afterwards it may have all."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(every)])
    import jax
    jax.devices()
    for thread in os.listdir('/proc/self/task'):
        os.sched_setaffinity(int(thread), every)


def load(path, count):
    """{split: (uint8 [N, 28, 28, 3], labels [N])}: the first `count` images of the training split."""
    with np.load(path) as arrays:
        return {split: (arrays[f'{split}_images'][:count].reshape(-1, SIZE, SIZE, 1).repeat(3, axis=3),
                        arrays[f'{split}_labels'][:count].astype(np.int32)) for split in ('train', 'test')}


# ---- our side ----------------------------------------------------------------------------------------


def make_config(method, seed, num_steps, num_images):
    from simclr_jax import config as recipes
    config = recipes.base_config()
    config.update({'seed': seed, 'batch_size': BATCH, 'num_train_steps': num_steps})
    recipes.use_method(config, method, **HEAD | LAYERS[method])
    config.method.update(METHOD[method])
    if method != 'byol':
        config.predictor.mode = 'none'
    config.encoder.update(ENCODER)
    config.optimizer.update(OPTIMIZER | {'learning_rate': RATE[method]})
    # A quarter of a step more, so that no rounding of epochs moves the last step of the warm-up.
    config.schedule.warmup_epochs = (warm_up(num_steps) + 0.25) * BATCH / num_images
    config.augment = recipes.augment_config(image_size=SIZE, strength=0.5, blur=False)
    config.augment.update({'mean': recipes.IMAGENET_MEAN, 'std': recipes.IMAGENET_STD})
    config.augment.crop.update(CROP)
    config.augment.jitter.update(JITTER)
    config.augment.grey.probability = 0.0
    config.augment.view2 = {'solarize': {'probability': SOLARIZE.get(method, 0.0)}}
    config.eval.online_probe = False
    return config


def warm_up(num_steps):
    return round(WARM_UP * num_steps)


class Ours:
    """The package's step: on images in memory, or on views that are given."""

    def __init__(self, config, num_images, images=None):
        import jax

        from simclr_jax import train
        from simclr_jax.data.source import ArraySource
        from simclr_jax.runtime import sharding
        from simclr_jax.training import steps
        mesh = sharding.make_mesh(jax.devices()[:1])
        inputs = train.make_inputs(config, form='views' if images is None else 'memory')
        network, init, self.train_step, shardings = train.build(
            config, mesh, num_examples=num_images, num_classes=10, num_steps=config.num_train_steps, inputs=inputs)
        self.encode = jax.jit(steps.make_encode(network))
        self.state = steps.jit_seldom(init, out_shardings=shardings)()
        if images is not None:
            source = ArraySource('fashion_mnist', 'train', *images, tuple('0123456789'))
            self.batches = inputs.batches(source, mesh)

    def step(self, step):
        del step                                # its state counts them
        self.state, metrics = self.train_step(self.state, next(self.batches))
        return metrics['loss']

    def features(self, images):
        return np.concatenate([self.encode(self.state.variables(), part) for part in np.split(images, 10)])


# ---- a run -------------------------------------------------------------------------------------------


def runs_of_side(side, arguments):
    """Makes the runs that are not there, one after the other."""
    on_one_thread()
    import jax

    from simclr_jax import train  # noqa: F401      its import is nobody's time
    for data in arguments.sets.split('/'):
        arrays = load(arguments.fashion, 5000 if data == '5,000' else 60_000)
        for seed, method in itertools.product(range(arguments.seeds), arguments.methods.split(',')):
            path = arguments.workdir / f'{data}_{method}_{side}_{seed}.json'
            if not path.exists():
                one_run(arrays, data, method, side, seed, arguments.steps or STEPS[data], path)
                jax.clear_caches()


def one_run(arrays, data, method, side, seed, num_steps, path):
    """Writes the curve of one run to `path`."""
    images = arrays['train'][0]
    config = make_config(method, seed, num_steps, len(images))
    if side == 'lightly':
        import learning_lightly
        start = start_of(config)
        learning_lightly.prepare(seed)
    begun = time.process_time()
    contender = (Ours(config, len(images), arrays['train']) if side == 'ours' else
                 learning_lightly.Lightly(config, start, images))
    points, curve, measuring, loss = [round(share * num_steps) for share in POINTS], [], 0.0, None
    for step in range(num_steps + 1):
        if step in points:
            loss = None if loss is None else float(loss)        # it waits for the step
            stopped = time.process_time()
            curve.append({'step': step, 'loss': loss, 'processor_seconds': stopped - begun - measuring,
                          **measure(contender.features, arrays)})
            measuring += time.process_time() - stopped
            print(data, method, side, seed, curve[-1], flush=True)
        if step < num_steps:
            loss = contender.step(step)
            if step == 0:
                float(loss)
                first = time.process_time() - begun - measuring
    row = {'data': data, 'method': method, 'side': side, 'seed': seed, 'first_step_seconds': first,
           **{name: [point[name] for point in curve] for name in curve[0]}}
    path.write_text(json.dumps(row))


def start_of(config):
    """Our state at step 0, as numpy arrays."""
    import jax
    return jax.device_get(Ours(config, 60_000).state)


def measure(features_of, arrays):
    """kNN and linear accuracy, in per cent."""
    from simclr_jax.evaluate.features import Features
    from simclr_jax.evaluate.knn import knn_accuracy
    from simclr_jax.evaluate.logistic import logistic_accuracy
    train, test = (Features(np.asarray(features_of(arrays[split][0][:MEASURED])), arrays[split][1][:MEASURED])
                   for split in ('train', 'test'))
    return {'knn': 100 * knn_accuracy(train, test, num_classes=10, k=20, temperature=0.07),
            'linear': 100 * logistic_accuracy(train, test, num_classes=10)}


def rate_at(step, peak, num_steps):
    """The schedule of both, in plain words."""
    warm = warm_up(num_steps)
    if step < warm:
        return peak * step / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / (num_steps - warm)))


def draw(rows, path):
    """kNN over steps, and over processor time; a thin line for each seed."""
    import matplotlib
    matplotlib.use('svg')
    from matplotlib import pyplot
    pyplot.rcParams.update({'svg.hashsalt': 'learning', 'svg.fonttype': 'none', 'font.size': 8})
    runs = {key: [[row for row in rows if (row['data'], row['method'], row['side']) == (*key, side)] for side in SIDES]
            for key in itertools.product(STEPS, METHODS)}
    runs = {key: sides for key, sides in runs.items() if all(sides)}
    figure, axes = pyplot.subplots(2, len(runs), figsize=(2.1 * len(runs), 4.4), sharey='col', layout='constrained')
    for column, ((data, method), sides) in zip(axes.T, runs.items()):
        column[0].set_title(f'{TITLES[method]}, {"60,000" if data == "whole" else data} images', fontsize=8)
        for axis, name in zip(column, ('step', 'processor_seconds')):
            axis.set_xlabel(name.replace('_', ' '))
            for side, colour, found in zip(SIDES, ('#0a6', '#d62'), sides):
                across, knn = (np.array([row[kind] for row in found])[:, 1:] for kind in (name, 'knn'))
                axis.plot(across.T, knn.T, color=colour, linewidth=0.6, alpha=0.6)
                axis.plot(across.mean(0), knn.mean(0), color=colour, marker='.', label=side)
    for axis in axes[:, 0]:
        axis.set_ylabel('kNN, %')
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--fashion', help='.npz of Fashion-MNIST')
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs')
    parser.add_argument('--sets', default='/'.join(STEPS))
    parser.add_argument('--methods', default=','.join(METHODS))
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, help=f'default: {STEPS}')
    parser.add_argument('--compare', action='store_true', help='the first steps and the views alone')
    parser.add_argument('--draw', action='store_true', help='makes no run')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return runs_of_side(arguments.side, arguments)
    from runs import ROOT, keep
    if arguments.compare:
        import learning_lightly
        on_one_thread()
        keep('learning', 'first steps', learning_lightly.compare_steps(load(arguments.fashion, 5000)))
        keep('learning', 'views', learning_lightly.compare_views(load(arguments.fashion, 5000)))
        return
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    if not arguments.draw:              # the sides side by side, so that what else runs slows both
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
        processes = [subprocess.Popen([sys.executable, *sys.argv, f'--side={side}'], env=environment) for side in SIDES]
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit('A side failed.')
    pairs = [[path.with_name(path.name.replace('_ours_', f'_{side}_')) for side in SIDES]
             for path in sorted(arguments.workdir.glob('*_ours_*.json'))]
    rows = [json.loads(path.read_text()) for pair in pairs if pair[1].exists() for path in pair]
    keep('learning', 'curves', rows)
    draw(rows, ROOT / 'docs/learning.svg')


if __name__ == '__main__':
    main()
