"""SimSiam on ImageNet or CIFAR-10.

    python -m simclr_jax.main --config=configs/simsiam.py --workdir=DIR
    python -m simclr_jax.main --config=configs/simsiam.py:data=cifar10 --workdir=DIR

Hardware: 8 GPUs. Not run to the end by this project, which has none. Published top-1 of the linear evaluation,
ResNet-50: 68.1 at 100 epochs (facebookresearch/simsiam README), with a predictor whose rate stays; here it falls with
the others (67.7 in the paper's Table 1). CIFAR-10, ResNet-18, 800 epochs: 91.8 (paper, appendix D).

Numbers: facebookresearch/simsiam main_simsiam.py and simsiam/builder.py; CIFAR-10: the paper's appendix D.
The norm at the projector's end has a scale here, none there.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, data='imagenet', epochs=0.0, batch=0)
    config = recipes.base_config()
    recipes.use_method(config, 'simsiam')
    config.schedule.update({'name': 'epoch_cosine', 'warmup_epochs': 0.0})
    config.batch_size = options.batch or 512
    config.eval.knn_every_epochs = 20.0
    if options.data == 'imagenet':
        config.data.update({'source': 'imagenet2012', 'test_split': 'validation'})
        config.num_epochs = options.epochs or 100.0
        config.augment = recipes.moco_augment(image_size=224)
        rate, weight_decay = 0.05, 1e-4
        config.eval.linear_at_end = False           # too many features: run configs/linear.py instead
    elif options.data == 'cifar10':
        config.data.source = 'cifar10'
        config.num_epochs = options.epochs or 800.0
        config.encoder.update({'depth': 18, 'stem': 'cifar'})
        config.head.num_layers = 2
        config.augment = recipes.moco_augment(image_size=32, blur=False)
        rate, weight_decay = 0.03, 5e-4
        config.eval.crop_proportion = 1.0
    else:
        raise ValueError(f'data={options.data}: it is imagenet or cifar10.')
    recipes.resize_as_torchvision(config)
    config.optimizer.update({                       # on everything, BatchNorm and biases too
        'name': 'sgd', 'learning_rate': rate, 'scaling': 'linear', 'weight_decay': weight_decay,
        'weight_decay_groups': (('', weight_decay),)})
    return recipes.smoke(config) if options.smoke else config
