"""Instance discrimination, with a memory bank and noise-contrastive estimation, on ImageNet.

    python -m simclr_jax.main --config=configs/instance_discrimination.py --workdir=DIR

Hardware: 8 GPUs; every device holds the bank, 656 MB for ImageNet's 1,281,167 images. Not run to the end by this
project, which has none. Published top-1 of the weighted kNN (k = 200), ResNet-50, 200 epochs: 46.8
(zhirongw/lemniscate.pytorch README).

Numbers: zhirongw/lemniscate.pytorch main.py and its README's command, whose colour jitter comes after grey there and
before it here. An image that cannot be read lends its row to the one that takes its place.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, epochs=200.0, batch=256)
    config = recipes.base_config()
    recipes.use_method(config, 'instance_discrimination')
    config.data.update({'source': 'imagenet2012', 'test_split': 'validation'})
    config.num_epochs, config.batch_size = options.epochs, options.batch
    config.augment = recipes.moco_augment(image_size=224, blur=False)
    config.augment.jitter.update({'probability': 1.0, 'hue': 0.4})
    recipes.resize_as_torchvision(config)
    config.encoder.zero_init_last_gamma = False     # torchvision's resnet50()
    config.optimizer.update({                       # on everything, BatchNorm and biases too
        'name': 'sgd', 'learning_rate': 0.03, 'scaling': 'linear', 'weight_decay': 1e-4,
        'weight_decay_groups': (('', 1e-4),)})
    # main.py adjust_learning_rate: a tenth from epoch 120, a hundredth from epoch 160 on
    config.schedule.update({'name': 'epoch_steps', 'warmup_epochs': 0.0, 'drops': (120.0, 160.0)})
    config.eval.update({'knn_every_epochs': 20.0, 'linear_at_end': False})
    return recipes.smoke(config) if options.smoke else config
