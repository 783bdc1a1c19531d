"""What train_step.py measures: networks and sizes, the recipe, and the processes that make the steps."""

import dataclasses
import json
import os
import pathlib
import sys
import tempfile

from turns import KEPT, Contender, Failed

HERE = pathlib.Path(__file__).parent
# The recipe of configs/fashion_mnist.py, which --until trains; steps on prepared views have its numbers, too.
RECIPE = {'head_layers': 3, 'out_dim': 128, 'temperature': 0.2, 'rate': 0.06, 'momentum': 0.9, 'decay': 5e-4,
          'area': [0.5, 1.0], 'aspect': [3 / 4, 4 / 3], 'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4,
          'hue': 0.1, 'knn_k': 200, 'knn_temperature': 0.07}
TORCH = ('eager', 'channels-last', 'compiled', 'lightly')
CONTENDERS = ('ours', 'plain', *TORCH)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A network, its images, and how many of them are a batch on a CPU and on an accelerator."""

    depth: int
    width: float
    stem: str
    size: int
    on_cpu: int
    elsewhere: int
    augmented: bool = False
    vit: str = ''               # a size of models/vit.py, in patches of 16 pixels, instead of a ResNet


CELLS = {
    'resnet18-16': Cell(18, 0.25, 'cifar', 32, 64, 1024),
    'resnet18-64': Cell(18, 1.0, 'cifar', 32, 64, 1024),
    'resnet50': Cell(50, 1.0, 'imagenet', 224, 8, 256),
    'vit-tiny': Cell(0, 0, '', 64, 16, 256, vit='tiny'),
    'vit-small': Cell(0, 0, '', 64, 16, 256, vit='small'),
    'resnet18-augmented': Cell(18, 1.0, 'cifar', 32, 64, 1024, augmented=True),
    'tiny': Cell(10, 0.125, 'cifar', 32, 16, 16),           # a trial
    'tiny-augmented': Cell(10, 0.125, 'cifar', 32, 16, 16, augmented=True),
}


def contender(name, spec, options, caches):
    """The process of a contender, not started; `caches`: the directory of what it compiles."""
    environment = {
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false', 'JAX_COMPILATION_CACHE_DIR': f'{caches}/{name}/jax',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1', 'TF_CPP_MIN_LOG_LEVEL': '3',
        'TORCHINDUCTOR_CACHE_DIR': f'{caches}/{name}/inductor', 'TRITON_CACHE_DIR': f'{caches}/{name}/triton'}
    if spec['task'] == 'trace':
        environment['JAX_PLATFORMS'] = 'cpu'
    python, file = ((options.torch_python, 'train_step_torch.py') if name in TORCH
                    else (sys.executable, 'train_step_ours.py'))
    return Contender([python, str(HERE / file), json.dumps(spec | {'contender': name})], environment)


def said(name, spec, options):
    """What a process says when it is ready; it is closed again."""
    with tempfile.TemporaryDirectory() as caches:
        process = contender(name, spec, options, caches)
        try:
            return process.start()
        finally:
            process.close()


def present(options):
    """(what our side says of its device, names of the contenders that can run here)."""
    ours = said('ours', {'task': 'layers'}, options)
    names = list(CONTENDERS)
    if options.only:
        names = options.only.split(',')
    elif ours['backend'] != 'cpu':
        names.remove('plain')                               # the same program
    try:
        torch = said('eager', {'task': 'probe'}, options)
        if torch['backend'] != ours['backend']:
            print(f'PyTorch is left out: that of {options.torch_python} has no {ours["backend"]}.')
            torch = None
        elif 'lightly' in names and not torch['lightly']:
            print(f'Lightly is left out: {options.torch_python} has none.')
            names.remove('lightly')
    except (Failed, FileNotFoundError) as error:
        print(f'PyTorch is left out: {options.torch_python} does not run it ({error}).')
        torch = None
    return ours, [name for name in names if torch or name not in TORCH]


def make_spec(cell, backend, options):
    """What a worker must know of a cell: plain values."""
    shape = dataclasses.asdict(cell)
    on_cpu, elsewhere = shape.pop('on_cpu'), shape.pop('elsewhere')
    return RECIPE | shape | {
        'task': 'train', 'batch': options.batch or (on_cpu if backend == 'cpu' else elsewhere),
        'dtype': options.dtype or ('float32' if backend == 'cpu' else 'bfloat16'), 'data': options.data,
        'max_steps': options.max_steps, 'warmup': min(100, options.max_steps // 10)}


def title_of(name, spec, ours):
    """What a cell is called in tables and in the JSON file."""
    threads = f'{len(os.sched_getaffinity(0))} CPU threads'
    network = (f'ViT {spec["vit"]}, patches of 16' if spec['vit'] else
               f'ResNet-{spec["depth"]}, {64 * spec["width"]:g} channels')
    kept = 'kept ' if KEPT in os.environ else ''
    return (f'{kept}{name}: {network}, {spec["size"]} px, batch {spec["batch"]}, {spec["dtype"]}, '
            f'{threads if ours["backend"] == "cpu" else ours["device"]}')
