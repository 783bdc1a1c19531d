"""SimCLR on CIFAR-10, ResNet-18 or ResNet-50 with the CIFAR stem.

    python -m simclr_jax.main --config=configs/cifar10.py --workdir=DIR            # ResNet-18
    python -m simclr_jax.main --config=configs/cifar10.py:depth=50 --workdir=DIR   # ResNet-50

Hardware: one GPU; dkobak/simclr-cifar10 reports 12 s an epoch for ResNet-18 on an A100 (PyTorch).
Expected, not yet run to the end here: ResNet-18 about 91 % linear (google-research/simclr README,
"~91%"; dkobak/simclr-cifar10 91.7), ResNet-50 92.6 to 94.0 (dkobak 93.4; paper App. B.9: 94.0 at
batch 1024). 100 epochs (`:epochs=100`): 85 % (dkobak).

Numbers: google-research/simclr README, "CIFAR-10" command, unless another source stands beside them.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, depth=18, epochs=1000.0, batch=0)
    config = recipes.base_config()
    config.data.source = 'cifar10'
    # README: 512 for ResNet-18; paper App. B.9: best at 1024 for ResNet-50.
    config.batch_size = options.batch or (512 if options.depth <= 34 else 1024)
    config.num_epochs = options.epochs

    config.encoder.depth = options.depth
    config.encoder.stem = 'cifar'                   # paper App. B.9; tf2/resnet.py
    config.method.temperature = 0.5                 # README; App. B.9: best when trained long
    config.method.loss_weight = 2.0                 # scale of the official code (tf2/objective.py)
    config.head.num_layers = 3                      # tf2/run.py default
    config.augment = recipes.augment_config(image_size=32, strength=0.5, blur=False)

    config.optimizer.learning_rate = 1.0            # linear scaling: 2.0 at batch 512
    config.optimizer.weight_decay = 1e-4
    config.eval.crop_proportion = 1.0               # tf2/data_util.py: no crop at 32 px and below
    config.eval.knn_every_epochs = 50.0
    config.linear.update({                          # README, "linear evaluation" on CIFAR-10
        'batch_size': 512, 'num_epochs': 100.0, 'weight_decay': 0.0})
    return recipes.smoke(config) if options.smoke else config
