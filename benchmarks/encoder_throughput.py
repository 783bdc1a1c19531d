"""Images per second of `encoder(images)` beside PyTorch: ResNet-50, 224 px, batch 64, the same weights.

    python benchmarks/encoder_throughput.py             # writes benchmarks/encoder_throughput.json

Both sides in one process, in turns, medians of the rounds; needs the extra [export]. PyTorch runs timm's
ResNet in inference mode as it is (NCHW), in channels-last memory and compiled, each on floats that are
cropped already. Ours is measured on the same floats (the network alone), and as users call it: uint8 images
of 256 px that it crops and resizes itself. On a GPU both sides compute in bfloat16.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import runs
import torch

sys.path.insert(0, str(runs.ROOT))
import simclr_jax  # noqa: E402
from simclr_jax.config import base_config
from simclr_jax.training.steps import make_encode
from simclr_jax.weights.tensors import write_flax  # noqa: E402
from simclr_jax.weights.write.torch import write_torch
from tests.weights.random_weights import random_imported  # noqa: E402


def _resnet(depth):
    fields = base_config().encoder.to_dict() | {'depth': depth}
    return {name: value for name, value in fields.items() if name not in ('name', 'arguments')}


def contenders(depth: int, batch: int, directory: str, compiled: bool) -> dict:
    """{name: a function of nothing that returns features [B, D] as numpy}."""
    imported = random_imported(_resnet(depth), image_size=224,
                               crop_proportion=0.875, mean=(0.0,) * 3, std=(1.0,) * 3)
    write_flax(f'{directory}/encoder.flax.safetensors', imported)
    write_torch(directory, imported)
    spec = importlib.util.spec_from_file_location('torch_model', f'{directory}/torch_model.py')
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    gpu = torch.cuda.is_available()
    place = {'device': 'cuda', 'dtype': torch.bfloat16} if gpu else {'dtype': torch.float32}
    floats = np.random.default_rng(1).random((batch, 224, 224, 3), np.float32)
    photos = np.random.default_rng(2).integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)

    def torch_side(memory_format, wrap=lambda model: model):
        model = loader.load(f'{directory}/encoder.safetensors')[0].to(**place, memory_format=memory_format)
        images = torch.from_numpy(floats.transpose(0, 3, 1, 2).copy())
        images = images.to(**place, memory_format=memory_format)
        model = wrap(model)

        def call():
            with torch.inference_mode():
                return model(images).float().cpu().numpy()

        return call

    encoder = simclr_jax.load_encoder(directory, batch_size=batch)
    network = jax.jit(make_encode(encoder.network))
    variables, images = jax.device_put(encoder.variables), jnp.asarray(floats)
    sides = {'ours, encoder(images)': lambda: encoder(photos),
             'ours, the network': lambda: np.asarray(network(variables, images)),
             'torch, NCHW': torch_side(torch.contiguous_format),
             'torch, channels-last': torch_side(torch.channels_last)}
    if compiled:
        sides['torch, compiled'] = torch_side(torch.channels_last, torch.compile)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--depth', type=int, default=50)
    parser.add_argument('--no_compile', action='store_true', help='leave torch.compile out')
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as directory:
        sides = contenders(options.depth, options.batch, directory, not options.no_compile)
        features = {name: call() for name, call in sides.items()}       # compiles, and warms up
        reference = features['torch, NCHW']
        seconds = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, call in sides.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
    rows, best = [], min(statistics.median(times) for name, times in seconds.items() if 'torch' in name)
    print(f'{"":<24}{"images/s":>10}{"x best torch":>14}{"features differ by":>20}')
    for name, times in seconds.items():
        median = statistics.median(times)
        difference = float(abs(features[name] - reference).max() / abs(reference).max())
        same = '' if name == 'ours, encoder(images)' else f'{difference:.1e}'    # that one sees other images
        rows.append({'contender': name, 'images_per_second': options.batch / median, 'ratio': best / median,
                     'seconds': times} | ({'difference': difference} if same else {}))
        print(f'{name:<24}{options.batch / median:>10.1f}{best / median:>14.2f}{same:>20}')
    runs.keep(pathlib.Path(__file__).stem, f'ResNet-{options.depth}, 224 px, batch {options.batch}, '
              f'{torch.get_num_threads()} threads, torch {torch.__version__}', rows)


if __name__ == '__main__':
    main()
