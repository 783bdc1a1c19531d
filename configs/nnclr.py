"""NNCLR on ImageNet.

    python -m simclr_jax.main --config=configs/nnclr.py --workdir=DIR

Hardware: a TPU pod slice for the batch of 4096. Not run to the end by this project, which has none. Published
top-1 of the linear evaluation, ResNet-50, 1000 epochs: 75.4, with small crops beside the two views 75.6 (paper,
Table 1).

Numbers: the paper, sec. 4.1, whose views are BYOL's.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, epochs=1000.0, batch=4096)
    config = recipes.base_config()
    recipes.use_method(config, 'nnclr')
    config.data.update({'source': 'imagenet2012', 'test_split': 'validation'})
    config.num_epochs, config.batch_size = options.epochs, options.batch
    config.augment = recipes.byol_augment(image_size=224)
    config.optimizer.update({'name': 'lars', 'learning_rate': 0.3, 'scaling': 'linear', 'weight_decay': 1e-6})
    config.schedule.warmup_epochs = 10.0
    config.eval.update({'knn_every_epochs': 20.0, 'linear_at_end': False})
    return recipes.smoke(config) if options.smoke else config
