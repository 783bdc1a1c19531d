"""SupCon, supervised contrastive learning, on CIFAR-10: its positives are all views of a class.

    python -m simclr_jax.main --config=configs/sup_con.py --workdir=DIR

Hardware: one GPU. Not run to the end by this project, which has none. Published top-1 of the linear evaluation,
ResNet-50, 1000 epochs: 96.0 (HobbitLong/SupContrast README; 93.6 by SimCLR and 95.0 by cross entropy there).

Numbers: HobbitLong/SupContrast README and main_supcon.py. Its rate ends at a thousandth of the peak, ours at 0.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, depth=50, epochs=1000.0, batch=1024)
    config = recipes.base_config()
    recipes.use_method(config, 'sup_con')
    config.data.source = 'cifar10'
    config.num_epochs, config.batch_size = options.epochs, options.batch
    config.encoder.update({'depth': options.depth, 'stem': 'cifar', 'zero_init_last_gamma': False})
    config.augment = recipes.moco_augment(image_size=32, blur=False)
    config.augment.update({'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2023, 0.1994, 0.2010)})
    config.optimizer.update({                       # on everything, BatchNorm and biases too
        'name': 'sgd', 'learning_rate': 0.5, 'scaling': 'none', 'weight_decay': 1e-4,
        'weight_decay_groups': (('', 1e-4),)})
    config.schedule.warmup_epochs = 10.0
    config.eval.update({'crop_proportion': 1.0, 'knn_every_epochs': 50.0})
    return recipes.smoke(config) if options.smoke else config
