"""Linear evaluation of a pretrained encoder, the paper's protocol (sec. 2.2).

    python -m simclr_jax.main --config=configs/linear.py --workdir=DIR     # DIR: the workdir of the run

Encoder, data, image size and normalisation are those of the run in DIR; `--config.linear.pretrained`
names another workdir and then DIR only receives the results. Other data: `--config.data.source=...`
with its splits. Learning rate and epochs fit ImageNet; for CIFAR-10 use the block of configs/cifar10.py:

    python -m simclr_jax.main --config=configs/cifar10.py --config.task=linear --workdir=DIR

`--config.linear.solver=lbfgs` fits to convergence on features of centre crops instead, with an l2 that is
chosen among 45 values on a held-out tenth of the training split (App. B.8).

Numbers: google-research/simclr README, "linear evaluation": momentum SGD, lr 0.1 x B/256, weight
decay 1e-6, 90 epochs, batch 4096, no warm-up; crops and flips only (paper sec. 2.2 and App. B.6).
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, epochs=90.0, batch=4096)
    config = recipes.base_config()
    config.task = 'linear'
    # Empty: what the pretraining run has.
    config.data.update({'source': '', 'train_split': '', 'test_split': ''})
    config.linear.num_epochs = options.epochs
    config.linear.batch_size = options.batch
    if options.smoke:
        config.linear.update({'num_epochs': 2.0, 'batch_size': 64, 'pixel_floor': False})
        config.log.every_steps = 4
    return config
