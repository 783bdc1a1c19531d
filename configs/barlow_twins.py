"""Barlow Twins, or VICReg, on ImageNet.

    python -m simclr_jax.main --config=configs/barlow_twins.py --workdir=DIR
    python -m simclr_jax.main --config=configs/barlow_twins.py:vicreg --workdir=DIR

Hardware: 32 GPUs, or a TPU pod slice, for the batch of 2048. Not run to the end by this project, which has none.
Published top-1 of the linear evaluation, ResNet-50, 1000 epochs: Barlow Twins 73.2, VICReg 73.2 (the papers' Table 1,
each).

Numbers: facebookresearch/barlowtwins main.py, facebookresearch/vicreg main_vicreg.py; their views are BYOL's. The rates
there end at a thousandth of the peak, ours at 0; Barlow Twins' for scales and biases is 0.0048, ours the kernels'.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, vicreg=False, epochs=1000.0, batch=2048)
    config = recipes.base_config()
    recipes.use_method(config, 'vicreg' if options.vicreg else 'barlow_twins')
    config.data.update({'source': 'imagenet2012', 'test_split': 'validation'})
    config.num_epochs, config.batch_size = options.epochs, options.batch
    config.augment = recipes.byol_augment(image_size=224)
    recipes.resize_as_torchvision(config, 'bicubic')
    config.optimizer.update({'name': 'lars', 'rate_in_momentum': False, 'learning_rate': 0.2, 'scaling': 'linear',
                             'weight_decay': 1e-6})
    config.schedule.warmup_epochs = 10.0
    config.eval.update({'knn_every_epochs': 20.0, 'linear_at_end': False})
    return recipes.smoke(config) if options.smoke else config
