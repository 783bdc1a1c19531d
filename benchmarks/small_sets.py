"""SimCLR on small real sets: configs/folder.py beside Lightly's SimCLR, by the same evaluation.

    python benchmarks/small_sets.py --fashion=fashion_mnist.npz [--only=ours,lightly] [--seeds=3]

Sets: the first 5,000 images of Fashion-MNIST (an .npz of train_images and train_labels), and two Debian
packages: openclipart-png (its folders of 30 images or more but `unsorted` and `special`, which name no
class; links and images above 10 million pixels left out) and tuxpaint-stamps-default (its folders of 30
images or more); at most 250 images of a class. A set that is not there is left out. Every file is put on
white, padded to a square and reduced to 64 pixels; half of each class is held out, the same for all.

Contenders, each a ResNet-10 of width 0.25 at 32 pixels and a batch of 128, on the same number of images:
`ours`, configs/folder.py as it stands; `before`, the same without its choice for few images, but with a
warm-up of a tenth too; `lightly`, the optimiser, schedule, transform, head and loss of Lightly's SimCLR
tutorial (needs torch, timm and lightly). All are measured by our kNN (k = 20) and linear classifier on the
held-out images, and so is `random`, the encoder that `ours` starts from. Prints a table, means and standard
deviations of the seeds, and writes benchmarks/small_sets.json. A call with the same --workdir goes on where
an earlier one stopped.
"""

import argparse
import collections
import json
import math
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

Image.MAX_IMAGE_PIXELS = None   # the size is looked at before the pixels are
SIDE, MOST, SIZE, BATCH, NEIGHBOURS = 64, 250, 32, 128, 20
MOST_PIXELS = 10_000_000        # one drawing has 600 million
ENCODER = {'depth': 10, 'width': 0.25, 'stem': 'imagenet'}
RECIPE = f'--config=configs/folder.py:size={SIZE},depth=10,batch={BATCH},epochs='
FOLDERS = {'openclipart': ('/usr/share/openclipart/png', ('unsorted', 'special')),
           'tuxpaint': ('/usr/share/tuxpaint/stamps', ())}
EPOCHS = {'fashion': 12, 'openclipart': 20, 'tuxpaint': 80}
OURS = {'ours': (), 'before': ('--config.few_images.below=0',)}


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
            with Image.open(path) as image:
                if math.prod(image.size) <= MOST_PIXELS:
                    files[path.relative_to(root).parts[0]].append(path)
    classes = [name for name, paths in files.items() if len(paths) >= 30 and name not in left_out]
    images, labels = [], []
    for label, name in enumerate(classes):
        paths = np.random.default_rng(0).permutation(files[name])[:MOST]
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
    if path.exists():
        return True
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
        is_test[rows[:len(rows) // 2]] = True
    np.savez(path, train_images=images[~is_test], train_labels=labels[~is_test].astype(np.int32),
             test_images=images[is_test], test_labels=labels[is_test].astype(np.int32))
    return True


# ---- the contenders ----------------------------------------------------------------------------------


def run_ours(data, epochs, seed, workdir, options):
    """{'knn_accuracy', 'linear_accuracy'} of the run's own results, and of the random encoder."""
    run = train(workdir, f'{RECIPE}{epochs}', f'--config.data.source=arrays:{data}',
                '--config.data.test_split=test', f'--config.seed={seed}', '--config.encoder.width=0.25',
                '--config.encoder.stem=imagenet', '--config.encoder.dtype=float32',
                '--config.eval.knn_every_epochs=0',
                f'--config.eval.knn_k={NEIGHBOURS}', '--config.eval.linear_at_end=true',
                f'--config.schedule.warmup_epochs={epochs / 10}', '--config.log.step_breakdown=false',
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

    from simclr_jax.data import loading
    from simclr_jax.evaluate import accuracies
    from simclr_jax.evaluate.pretrained import load_pretrained
    from simclr_jax.runtime import sharding
    from simclr_jax.training.steps import make_encode
    found = load_pretrained(str(path))
    found.config.eval.knn_k = NEIGHBOURS
    encode = functools.partial(jax.jit(make_encode(found.network)), found.variables)
    splits = [loading.load_source(f'arrays:{data}', split) for split in ('train', 'test')]
    return accuracies.frozen_accuracies(encode, *splits, found.config, sharding.make_mesh(), linear=True)


def train_lightly(data, epochs, seed, workdir):
    """Lightly's tutorial on SimCLR, with our ResNet in the place of its ResNet-18 and our epochs."""
    import jax
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.transforms.utils import IMAGENET_NORMALIZE

    from simclr_jax.models.building import make_network
    from simclr_jax.weights.tree import Imported
    from simclr_jax.weights.write import torch_model
    from simclr_jax.weights.write.torch import write_torch
    torch.manual_seed(seed)
    normalisation = {name: tuple(values) for name, values in IMAGENET_NORMALIZE.items()}
    fields = ENCODER | {'dtype': 'float32'}
    network = make_network(encoder=fields, head={'mode': 'none'})
    variables = jax.device_get(network.init(jax.random.key(seed), np.zeros((1, SIZE, SIZE, 3), np.float32),
                                            train=False))
    write_torch(workdir, Imported(fields, {'mode': 'none'}, variables, **normalisation, image_size=SIZE,
                                  crop_proportion=1.0, source='Lightly'))
    card = torch_model.read_card(pathlib.Path(workdir) / 'encoder.safetensors')
    encoder = torch_model.build(card)                           # timm's own initial weights
    width = encoder.num_features
    model = torch.nn.Sequential(encoder, SimCLRProjectionHead(width, width, 128)).train()
    transform = SimCLRTransform(input_size=SIZE, vf_prob=0.5, rr_prob=0.5)
    images = [Image.fromarray(image) for image in np.load(data)['train_images']]
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=6e-2, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    rows = torch.cat([torch.randperm(len(images)) for _ in range(epochs)])
    for first in range(0, len(rows) - BATCH + 1, BATCH):        # no image is left out: as many steps as ours
        views = [transform(images[row]) for row in rows[first:first + BATCH].tolist()]
        loss = criterion(*(model(torch.stack(view)) for view in zip(*views)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (first + BATCH) // len(images) > scheduler.last_epoch:
            scheduler.step()
            print(f'epoch {scheduler.last_epoch}/{epochs}  loss {loss.item():.3f}', flush=True)
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
        if row['contender'] == 'ours':
            print(f'| {row["set"]} | random | 0 | {spread(row["random knn"])} | '
                  f'{spread(row["random linear"])} | |')
        print(f'| {row["set"]} | {row["contender"]} | {row["epochs"]} | {spread(row["knn"])} | '
              f'{spread(row["linear"])} | {np.mean(row["processor_seconds"]):.0f} |')


def spread(values):
    return f'{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--fashion', help='.npz of Fashion-MNIST')
    parser.add_argument('--sets', default=','.join(EPOCHS))
    parser.add_argument('--only', default='ours,before,lightly', help='contenders')
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
