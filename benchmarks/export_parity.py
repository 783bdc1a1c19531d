"""Full-size encoders in every format that `task=export` writes: how far their features are from ours.

    pip install "simclr_jax[export]" scikit-learn
    python benchmarks/export_parity.py [--networks=18,50] [--batch=4]

ResNet-18, 50, 50 of twice the width, and 50 with selective kernels, at 224 px, with random weights, of which
the last norm of each block is small, as in trained networks; the BatchNorm statistics are those of a batch of
unlike images in training mode. Each format is written, loaded in its own runtime and run on random images
and on crops of two photographs (scikit-learn's). The difference is the largest of the features, over their
root mean square; for PyTorch that of the projections stands beside it in the JSON. Prints a table and writes
benchmarks/export_parity.json.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import runs  # noqa: E402

from simclr_jax.models.building import make_network  # noqa: E402
from simclr_jax.views.device import eval_crop
from simclr_jax.weights.tree import Imported, flat  # noqa: E402
from simclr_jax.weights.write.formats import (
    FORMATS,
    largest_difference,
    make_job,
    relative_difference,
    why_unusable,
)

NETWORKS = {'18': {'depth': 18}, '50': {'depth': 50}, '50x2': {'depth': 50, 'width': 2.0},
            '50-SK': {'depth': 50, 'sk_ratio': 0.0625}}
HEAD = {'mode': 'nonlinear', 'num_layers': 2, 'out_dim': 128}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--networks', default=','.join(NETWORKS))
    parser.add_argument('--batch', type=int, default=4)
    arguments = parser.parse_args()
    allow_any_torchvision()
    photographs = crops(arguments.batch)
    rows = []
    print(f'{"network":<8}{"format":<12}{"random":>10}{"photos":>10}{"MB":>9}{"write s":>9}{"ms/image":>10}')
    for name in arguments.networks.split(','):
        job = make_job(random_encoder(NETWORKS[name], unlike(photographs)), layer=0, normalize_inside=True)
        ours = job.run(job.imported.variables, photographs)
        for kind in FORMATS:
            row = {'network': name, 'format': kind, **measure(kind, job, photographs, ours)}
            rows.append(row)
            print(f'{name:<8}{kind:<12}' + (row['left_out'] if 'left_out' in row else
                  f'{row["random"]:>10.1e}{row["photographs"]:>10.1e}{row["bytes"] / 1e6:>9.1f}'
                  f'{row["write_seconds"]:>9.1f}{1e3 * row["seconds_per_image"]:>10.1f}'), flush=True)
    runs.keep('export_parity', f'{SIZE} px, batch {arguments.batch}', rows)


def measure(kind, job, photographs, ours):
    """Differences, size and seconds of a format; {'left_out': why} where it cannot be run here."""
    reason = why_unusable(FORMATS[kind].needs) or why_unusable(FORMATS[kind].runtime)
    if reason:
        return {'left_out': reason}
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        FORMATS[kind].write(directory, job)
        written = time.perf_counter() - started
        size = sum(path.stat().st_size for path in pathlib.Path(directory).rglob('*') if path.is_file())
        encode = FORMATS[kind].load(directory, job)
        on_random, on_photographs = encode(job.images), encode(photographs)
        started = time.perf_counter()
        encode(photographs)
        seconds = (time.perf_counter() - started) / len(photographs)
    return {'random': relative_difference(on_random[0], job.ours[0]),
            'photographs': relative_difference(on_photographs[0], ours[0]),
            'with_projection': max(largest_difference(on_random, job.ours),
                                   largest_difference(on_photographs, ours)),
            'bytes': size, 'write_seconds': round(written, 2), 'seconds_per_image': round(seconds, 4)}


def random_encoder(encoder, images):
    """Random weights; statistics of `images` in training mode, so that activations have their usual size."""
    # A momentum of 0: the running statistics become the batch's.
    network = make_network(encoder=encoder | {'norm_momentum': 0.0, 'zero_init_last_gamma': False}, head=HEAD,
                           mean=MEAN, std=STD)
    variables = jax.jit(lambda: network.init(jax.random.key(0), images[:1], train=False))()
    rng = np.random.default_rng(0)
    last = 'norm3' if encoder['depth'] >= 50 else 'norm2'

    def draw(path, leaf):
        if path[-1].key == 'kernel':
            return leaf
        limits = (-0.3, 0.3) if path[-1].key == 'bias' else (0.1, 0.4) if path[-2].key == last else (0.5, 1.5)
        return rng.uniform(*limits, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, variables['params'])
    train = jax.jit(lambda variables: network.apply(variables, images, train=True, mutable=['batch_stats']))
    _, stats = train(variables | {'params': params})
    variables = jax.device_get({'params': params, 'batch_stats': stats['batch_stats']})
    assert all(np.isfinite(array).all() for array in flat(variables).values())
    return Imported(encoder=encoder, head=HEAD, variables=variables, mean=MEAN, std=STD, image_size=SIZE,
                    crop_proportion=0.875, source='random')


def unlike(photographs):
    """Images [20, 224, 224, 3] of many kinds. On alike ones a random network's features are alike: their
    statistics have means far larger than deviations, and every rounding is blown up."""
    rng = np.random.default_rng(1)
    noise = [rng.random((SIZE // size, SIZE // size, 3), np.float32).repeat(size, 0).repeat(size, 1)
             for size in (1, 2, 4, 7, 14, 28, 56, 112)]
    flat_colours = rng.random((4, 1, 1, 3), np.float32) * np.ones((1, SIZE, SIZE, 1), np.float32)
    return np.concatenate([photographs[:4], 1 - photographs[:4], noise, flat_colours])


def crops(count):
    """[count, 224, 224, 3] float32: squares of several sizes out of two photographs, resized."""
    from sklearn.datasets import load_sample_images
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    images = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = rng.integers(200, min(photograph.shape[:2]) + 1)
        top, left = (rng.integers(extent - side + 1) for extent in photograph.shape[:2])
        square = photograph[top:top + side, left:left + side]
        images.append(eval_crop(square, image_size=SIZE, proportion=1.0))
    return np.stack(images)


def allow_any_torchvision():
    """timm imports torchvision, whose operations, of which none is needed, may not fit torch."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        import torch
        global _operations      # they are there as long as this is
        _operations = torch.library.Library('torchvision', 'DEF')
        for name in ('nms', 'qnms'):
            _operations.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


if __name__ == '__main__':
    main()
