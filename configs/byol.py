"""BYOL on ImageNet or CIFAR-10.

    python -m simclr_jax.main --config=configs/byol.py --workdir=DIR                 # 1000 epochs
    python -m simclr_jax.main --config=configs/byol.py:epochs=300 --workdir=DIR
    python -m simclr_jax.main --config=configs/byol.py:multi_crop --workdir=DIR
    python -m simclr_jax.main --config=configs/byol.py:data=cifar10 --workdir=DIR

Hardware: a TPU pod slice for the batch of 4096. Not run to the end by this project, which has none.
Published top-1 of the linear evaluation, ResNet-50: 74.3 at 1000 epochs (paper, abstract), 72.5 at 300.
CIFAR-10, ResNet-18, 1000 epochs: 92.6 (solo-learn README, online linear probe).

Numbers: deepmind-research byol/configs/byol.py, whose presets go by the number of epochs (40, 100, 300,
1000; another number takes the next longer preset). CIFAR-10: learning rate of byol/README.md's small
run, momentum, batch and views of solo-learn scripts/pretrain/cifar/byol.yaml, whose LARS is another.
`multi_crop`, six small views (facebookresearch/swav scripts/swav_200ep_pretrain.sh), is not the paper's.
"""

from simclr_jax import config as recipes

# epochs: learning rate per 256, weight decay, momentum of the target
_PRESETS = {40: (0.45, 1e-6, 0.97), 100: (0.45, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99),
            1000: (0.2, 1.5e-6, 0.996)}


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, data='imagenet', epochs=1000.0, batch=0, multi_crop=False)
    config = recipes.base_config()
    recipes.use_method(config, 'byol')
    config.num_epochs = options.epochs
    rate, weight_decay, momentum = _PRESETS[min(
        (epochs for epochs in _PRESETS if epochs >= options.epochs), default=1000)]
    config.method.momentum = momentum
    config.optimizer.update({                       # byol/utils/optimizers.py
        'name': 'lars', 'rate_in_momentum': False, 'learning_rate': rate, 'scaling': 'linear',
        'weight_decay': weight_decay, 'exclude': ()})
    config.schedule.warmup_epochs = 10.0
    if options.data == 'imagenet':
        config.data.source = 'imagenet2012'
        config.data.test_split = 'validation'
        config.batch_size = options.batch or 4096
        config.augment = recipes.byol_augment(image_size=224)
        if options.multi_crop:
            recipes.use_multi_crop(config)
        config.eval.knn_every_epochs = 20.0
        config.eval.linear_at_end = False           # too many features: run configs/linear.py instead
        config.linear.update({                      # byol/configs/linear.py
            'batch_size': 1024, 'num_epochs': 80.0, 'learning_rate': 0.2, 'weight_decay': 0.0})
    elif options.data == 'cifar10':
        config.data.source = 'cifar10'
        config.batch_size = options.batch or 256
        config.encoder.update({'depth': 18, 'stem': 'cifar'})
        config.method.momentum = 0.99
        config.optimizer.learning_rate = 2.0
        config.augment = recipes.byol_augment(image_size=32, blur=False)
        config.eval.update({'crop_proportion': 1.0, 'knn_every_epochs': 50.0})
        config.linear.update({'batch_size': 512, 'num_epochs': 100.0, 'weight_decay': 0.0})
    else:
        raise ValueError(f'data={options.data}: it is imagenet or cifar10.')
    return recipes.smoke(config) if options.smoke else config
