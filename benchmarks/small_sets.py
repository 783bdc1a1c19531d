"""SimCLR on small real sets: configs/folder.py beside Lightly's SimCLR, by the same evaluation.

    python benchmarks/small_sets.py --fashion=fashion_mnist.npz [--only=ours,lightly] [--seeds=3]

Sets: the first 5,000 images of Fashion-MNIST (an .npz of train_images and train_labels), and two Debian
packages: openclipart-png (its folders of 30 images or more but `unsorted` and `special`, which name no
class; links left out, at most 150 a class) and tuxpaint-stamps-default (its folders of 30 images or more). A
set that is not there is left out. Every file is put on white, padded to a square and reduced to 64 pixels;
a quarter of each class is held out, the same for all.

Contenders, each a ResNet-10 of width 0.25 at 48 pixels and a batch of 256, for the same epochs: `ours`,
configs/folder.py as it stands, but for a warm-up of a tenth of the epochs; `lars`, the same with LARS;
`lightly`, the optimiser, schedule, transform, head and loss of Lightly's SimCLR tutorial (needs torch, timm
and lightly). All are measured by our kNN (k = 20) and linear classifier on the held-out images. Prints a
table, means and standard deviations of the seeds, and writes benchmarks/small_sets.json. A call with the
same --workdir goes on where an earlier one stopped.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from runs import ROOT, keep, train

SIDE, BATCH, NEIGHBOURS = 64, 256, 20
ENCODER = {'depth': 10, 'width': 0.25, 'stem': 'imagenet'}
RECIPE = '--config=configs/folder.py:size=48,depth=10,batch=256,epochs={epochs}'
FOLDERS = {'openclipart': ('/usr/share/openclipart/png', ('unsorted', 'special')),
           'tuxpaint': ('/usr/share/tuxpaint/stamps', ())}
EPOCHS = {'fashion': 10, 'openclipart': 30, 'tuxpaint': 80}
OURS = {'ours': (), 'lars': ('--config.optimizer.name=lars', '--config.optimizer.learning_rate=0.075',
                             '--config.optimizer.scaling=sqrt', '--config.optimizer.weight_decay=1e-6')}


# ---- the sets ----------------------------------------------------------------------------------------


def square(path):
    """An image file on white, padded to a square: uint8 [SIDE, SIDE, 3]."""
    with Image.open(path) as image:
        image = image.convert('RGBA')
    side = max(image.size)
    canvas = Image.new('RGBA', (side, side), 'white')
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.convert('RGB').resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def read_folder(root, left_out):
    """Images [N, SIDE, SIDE, 3] and labels [N] of the first-level folders that are classes."""
    files = collections.defaultdict(list)
    for path in sorted(pathlib.Path(root).rglob('*.png')):
        if not path.is_symlink():
            files[path.relative_to(root).parts[0]].append(path)
    classes = [name for name, paths in files.items() if len(paths) >= 30 and name not in left_out]
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = np.random.default_rng(0).permutation(files[name])[:150]
        images += [square(path) for path in paths]
        labels += [label] * len(paths)
    return np.array(images), np.array(labels)


def read_fashion(path):
    with np.load(path) as arrays:
        images, labels = arrays['train_images'][:5000], arrays['train_labels'][:5000]
    images = images.reshape(len(images), 28, 28, 1).repeat(3, axis=3)
    return images, labels


def write_set(name, fashion, path):
    """The set as an .npz that `data.source=arrays:` reads; False where it is not installed."""
    if name == 'fashion':
        if not fashion:
            return False
        images, labels = read_fashion(fashion)
    elif os.path.isdir(FOLDERS[name][0]):
        images, labels = read_folder(*FOLDERS[name])
    else:
        return False
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.random.default_rng(1).permutation(np.flatnonzero(labels == label))
        is_test[rows[:len(rows) // 4]] = True
    np.savez(path, train_images=images[~is_test], train_labels=labels[~is_test].astype(np.int32),
             test_images=images[is_test], test_labels=labels[is_test].astype(np.int32))
    return True


# ---- the contenders ----------------------------------------------------------------------------------


def run_ours(data, epochs, seed, workdir, options):
    """{'knn_accuracy', 'linear_accuracy'} of the run's own results, and of the random encoder."""
    run = train(workdir, RECIPE.format(epochs=epochs), f'--config.data.source=arrays:{data}',
                '--config.data.test_split=test', f'--config.seed={seed}', '--config.encoder.width=0.25',
                '--config.encoder.dtype=float32', '--config.eval.knn_every_epochs=0',
                f'--config.schedule.warmup_epochs={epochs / 10}',
                f'--config.eval.knn_k={NEIGHBOURS}', '--config.eval.linear_at_end=true',
                '--config.eval.pixel_floor=false', *options)
    return run['results']['pretrained'], run['results']['random']


def run_lightly(data, epochs, seed, workdir):
    """The same, of an encoder that a process of its own trains as Lightly's tutorial does."""
    workdir.mkdir(parents=True, exist_ok=True)
    trained = workdir / 'trained' / 'encoder.safetensors'
    if not trained.exists():
        job = {'data': str(data), 'epochs': epochs, 'seed': seed, 'workdir': str(workdir)}
        subprocess.run([sys.executable, __file__, f'--lightly={json.dumps(job)}'], check=True, cwd=ROOT)
    return measure(trained, data), None


def measure(path, data):
    """What a run of ours reports at its end, of an encoder from a file."""
    import functools

    import jax

    from simclr_jax.data import sources
    from simclr_jax.evaluate import frozen
    from simclr_jax.evaluate.pretrained import load_pretrained
    from simclr_jax.runtime import sharding
    from simclr_jax.training.steps import make_encode
    found = load_pretrained(str(path))
    found.config.eval.knn_k = NEIGHBOURS
    encode = functools.partial(jax.jit(make_encode(found.network)), found.variables)
    splits = [sources.load_source(f'arrays:{data}', split) for split in ('train', 'test')]
    return frozen.frozen_accuracies(encode, *splits, found.config, sharding.make_mesh(), linear=True)


def train_lightly(data, epochs, seed, workdir):
    """Lightly's tutorial on SimCLR, with our ResNet in the place of its ResNet-18 and our epochs."""
    import jax
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.transforms.utils import IMAGENET_NORMALIZE

    from simclr_jax.models.network import make_network
    from simclr_jax.weights.write.torch import write_torch
    from simclr_jax.weights.tree import Imported
    from simclr_jax.weights.write import torch_model
    torch.manual_seed(seed)
    size, normalisation = 48, {name: tuple(values) for name, values in IMAGENET_NORMALIZE.items()}
    fields = ENCODER | {'dtype': 'float32'}
    network = make_network(encoder=fields, head={'mode': 'none'})
    variables = jax.device_get(network.init(jax.random.key(seed), np.zeros((1, size, size, 3), np.float32),
                                            train=False))
    write_torch(workdir, Imported(fields, {'mode': 'none'}, variables, **normalisation, image_size=size,
                                  crop_proportion=0.875, source='Lightly'))
    card = torch_model.read_card(pathlib.Path(workdir) / 'encoder.safetensors')
    encoder = torch_model.build(card)                           # timm's own initial weights
    width = encoder.num_features
    model = torch.nn.Sequential(encoder, SimCLRProjectionHead(width, width, 128)).train()
    transform = SimCLRTransform(input_size=size, vf_prob=0.5, rr_prob=0.5)
    images = [Image.fromarray(image) for image in np.load(data)['train_images']]
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        order = torch.randperm(len(images)).tolist()
        for first in range(0, len(order) - BATCH + 1, BATCH):
            views = [transform(images[row]) for row in order[first:first + BATCH]]
            loss = criterion(*(model(torch.stack(view)) for view in zip(*views)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        print(f'epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}', flush=True)
    trained = pathlib.Path(workdir) / 'trained'
    trained.mkdir(exist_ok=True)
    torch_model.save(trained / 'encoder.safetensors', encoder.eval(), card)


# ---- the table ---------------------------------------------------------------------------------------


def compare(name, contender, arguments, directory):
    """A row: means and standard deviations over the seeds, in per cent, and seconds of processor time."""
    rows = [one_run(name, contender, seed, directory) for seed in range(arguments.seeds)]
    for seed, row in enumerate(rows):
        print(f'{name}, {contender}, seed {seed}: {row}', flush=True)
    return {'set': name, 'contender': contender, 'epochs': EPOCHS[name],
            **{measure_name: [row[measure_name] for row in rows] for measure_name in rows[0]}}


def one_run(name, contender, seed, directory):
    """{measure: per cent; 'seconds', and of the processor}, also of a run that an earlier call made."""
    workdir, data = directory / f'{name}_{contender}_{seed}', directory / f'{name}.npz'
    kept = directory / f'{name}_{contender}_{seed}.json'
    if kept.exists():
        return json.loads(kept.read_text())
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    measured, random = (run_lightly(data, EPOCHS[name], seed, workdir) if contender == 'lightly' else
                        run_ours(data, EPOCHS[name], seed, workdir, OURS[contender]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {'knn': 100 * measured['knn_accuracy'], 'linear': 100 * measured['linear_accuracy'],
           'seconds': time.time() - started,
           'processor_seconds': after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
    if random:
        row |= {'random knn': 100 * random['knn_accuracy'], 'random linear': 100 * random['linear_accuracy']}
    kept.write_text(json.dumps(row))
    return row


def show(rows):
    print('| set | contender | epochs | kNN % | linear % | processor seconds |\n|---|---|---|---|---|---|')
    for row in rows:
        knn, linear = (f'{np.mean(row[name]):.1f} ± {np.std(row[name], ddof=min(1, len(row[name]) - 1)):.1f}'
                       for name in ('knn', 'linear'))
        print(f'| {row["set"]} | {row["contender"]} | {row["epochs"]} | {knn} | {linear} | '
              f'{np.mean(row["processor_seconds"]):.0f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--fashion', help='.npz of Fashion-MNIST')
    parser.add_argument('--sets', default=','.join(EPOCHS))
    parser.add_argument('--only', default='ours,lars,lightly', help='contenders')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    parser.add_argument('--lightly', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lightly:
        train_lightly(**json.loads(arguments.lightly))
        return
    directory, rows = arguments.workdir or pathlib.Path(tempfile.mkdtemp()), []
    directory.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets.split(','):
        if write_set(name, arguments.fashion, directory / f'{name}.npz'):
            rows += [compare(name, contender, arguments, directory)
                     for contender in arguments.only.split(',')]
        else:
            print(f'{name} is not here: left out.')
    show(rows)
    keep('small_sets', ', '.join(sorted({row['set'] for row in rows})), rows)


if __name__ == '__main__':
    main()
