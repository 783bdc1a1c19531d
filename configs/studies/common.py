"""What all studies start from: a recipe at one of three scales, and the paper's numbers (paper.json).

    paper   configs/imagenet.py: ResNet-50, 100 epochs of ImageNet for each cell, "at least 32 TPUs"
    cifar   configs/cifar10.py: ResNet-18, 100 epochs of CIFAR-10 for each cell, 20 minutes on an A100
    tiny    `shapes`, ResNet-10 of width 0.125, 300 steps for each cell, about a minute on two CPU cores

`:smoke` shrinks any of them to some steps on embedded data, to see that it runs.
"""

import json
import pathlib
import runpy

from simclr_jax import config as recipes

_HERE = pathlib.Path(__file__).parent


def start(argument, paper_name, **defaults):
    """(arguments, config, the paper's numbers); ValueError for a scale that there is not."""
    values = recipes.parse_argument(argument, scale='tiny', **defaults)
    scales = {'paper': _paper, 'cifar': _cifar, 'tiny': _tiny}
    if values.scale not in scales:
        raise ValueError(f'scale={values.scale}: it is {", ".join(scales)}.')
    config = scales[values.scale]()
    if values.smoke:
        config = _smoke(config)
    config.task = 'study'
    config.eval.pixel_floor = False                 # the same for all cells: see configs/smoke.py
    paper = json.loads((_HERE / 'paper.json').read_text())[paper_name]
    return values, config, paper


def _recipe(name, argument=''):
    return runpy.run_path(str(_HERE.parent / f'{name}.py'))['get_config'](argument)


def _paper():
    config = _recipe('imagenet')
    config.eval.linear_at_end = True                # 10 GB of features in the memory of the host
    config.eval.knn_every_epochs = 0.0
    config.checkpoint.every_epochs = 5.0
    return config


def _cifar():
    config = _recipe('cifar10', 'epochs=100')
    config.eval.knn_every_epochs = 0.0
    config.checkpoint.every_epochs = 10.0
    return config


def _tiny():
    """Chosen here: what a cell may cost on two cores, and learn something in."""
    config = _recipe('smoke')
    config.batch_size = 128
    config.num_train_steps = 300
    config.encoder.width = 0.125
    config.data.train_split = 'train[:5000]'
    config.optimizer.learning_rate = 2.0            # smoke.py's 4.0 at twice the batch
    config.eval.knn_every_epochs = 0.0              # at the end only
    config.checkpoint.every_epochs = 2.6            # every 100 steps
    config.log.every_steps = 50
    return config


def _smoke(config):
    config = recipes.smoke(config)
    config.update({'batch_size': 16, 'num_train_steps': 4})
    config.data.update({'train_split': 'train[:64]', 'test_split': 'test[:40]'})
    config.encoder.width = 0.0625
    config.augment.image_size = 16
    config.checkpoint.every_epochs = 0.25           # every step
    config.log.every_steps = 1
    return config
