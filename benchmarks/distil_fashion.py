"""Distillation on Fashion-MNIST with 1 % of the labels (600): teacher, supervised network, student.

    python benchmarks/distil_fashion.py --fashion=fashion_mnist.npz [--seeds=3]

For each seed: `configs/fashion_mnist.py` pretrains SimCLR on the 60,000 images without labels for 200 steps, with the
stem of ImageNet; `configs/finetune.py` fine-tunes it on 600 labels, 60 of a class: the teacher. `configs/distil.py`
trains a student from random weights on the teacher's probabilities and the 600 labels, and one in as many steps on the
labels alone, which is supervised training. All are tested on the 10,000 test images. Prints a table and writes
benchmarks/distil_fashion.json. A call with the same --workdir goes on where an earlier one stopped.
"""

import argparse
import json
import pathlib
import runpy
import tempfile
import time

from equal_compute import QUIET
from runs import ROOT, keep

import simclr_jax
from simclr_jax.evaluate.distil import distil
from simclr_jax.evaluate.finetune import finetune

SHARE = 0.01
# The recipes' LARS has rates for many more steps.
ADAM = {'optimizer': 'adamw', 'scaling': 'none', 'weight_decay': 1e-4}
FINETUNE = {f'finetune.{name}': value for name, value in (
    {'layer': 0, 'init': 'pretrained', 'batch_size': 200, 'num_epochs': 80.0, 'learning_rate': 0.002} | ADAM).items()}
DISTIL = {f'distil.{name}': value for name, value in (
    {'batch_size': 256, 'num_epochs': 1.0, 'learning_rate': 0.002} | ADAM).items()}


def config_of(name, fields):
    """A recipe of configs/, with some fields of other values."""
    path, _, argument = name.partition(':')
    config = runpy.run_path(str(ROOT / 'configs' / path))['get_config'](argument)
    config.update_from_flattened_dict(fields)
    return config


def one_seed(fashion, seed, workdir):
    """{network: top-1 in [0, 1]; 'seconds' of the processor}, also of a seed that an earlier call made."""
    kept = workdir / 'benchmark.json'
    if not kept.exists():
        used, labelled = time.process_time(), {'seed': seed, 'data.test_split': 'test'}
        simclr_jax.pretrain(config_of('fashion_mnist.py', QUIET | {
            'data.source': f'arrays:{fashion}', 'encoder.stem': 'imagenet', 'num_train_steps': 200, 'seed': seed,
            'data.test_split': 'none'}), str(workdir))
        tuned = finetune(config_of(f'finetune.py:share={SHARE}', labelled | FINETUNE), str(workdir))
        distilled = distil(config_of(f'distil.py:share={SHARE}', labelled | DISTIL), str(workdir))
        kept.write_text(json.dumps({
            'supervised': distilled['student on the labels alone']['distil_accuracy'],
            'teacher': tuned['pretrained']['finetune_accuracy'], 'student': distilled['student']['distil_accuracy'],
            'seconds': round(time.process_time() - used)}))
    return json.loads(kept.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--fashion', required=True, type=pathlib.Path, help='.npz of Fashion-MNIST')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--workdir', type=pathlib.Path, help='keeps the runs; default: a temporary one')
    arguments = parser.parse_args()
    directory = arguments.workdir or pathlib.Path(tempfile.mkdtemp())
    rows = [one_seed(arguments.fashion.absolute(), seed, directory / f'distil_{seed}')
            for seed in range(arguments.seeds)]
    table = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in table.items():
        print(name, values)
    keep('distil_fashion', f'{arguments.seeds} seeds', table)


if __name__ == '__main__':
    main()
