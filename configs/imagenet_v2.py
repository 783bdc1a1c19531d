"""SimCLRv2 on ImageNet: deeper heads, selective kernels, 800 epochs.

    python -m simclr_jax.main --config=configs/imagenet_v2.py --workdir=DIR                       # R50
    python -m simclr_jax.main --config=configs/imagenet_v2.py:depth=152,width=3,sk=true --workdir=DIR
    python -m simclr_jax.main --config=configs/imagenet_v2.py:memory --workdir=DIR

Hardware: a TPU pod slice. Not run to the end by this project, which has none. Published top-1 of
the linear evaluation (google-research/simclr README): R50 71.7, R50 2x + SK 77.7, R152 3x + SK 79.8.
Those runs used a momentum memory (`memory`), which the official code does not contain; without it its author
reports 71.1 for R50, users 70.4 (google-research/simclr issue 77). It is MoCo's, with the other keys of the batch
as negatives too (issue 115); BatchNorm then sees each view by itself, which the paper does not tell.

Numbers: google-research/simclr tf2/run.py and issue 77, as noted.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, depth=50, width=1.0, sk=False, epochs=800.0, batch=4096,
                                     memory=False)
    config = recipes.base_config()
    config.data.source = 'imagenet2012'
    config.data.test_split = 'validation'           # tf2/run.py eval_split; test has no labels
    config.batch_size = options.batch
    config.num_epochs = options.epochs             # issue 77: 800

    config.encoder.depth = options.depth
    config.encoder.width = options.width
    config.encoder.sk_ratio = 0.0625 if options.sk else 0.0     # README: the recommended ratio
    if options.memory:                              # 64K keys, decay 0.999 (paper, sec. 3.1)
        recipes.use_method(config, 'simclr_memory')
    else:
        config.method.loss_weight = 2.0             # scale of the official code (tf2/objective.py)
    config.method.temperature = 0.1
    config.head.num_layers = 3                      # tf2/run.py
    config.augment = recipes.augment_config(image_size=224, strength=1.0)

    config.optimizer.learning_rate = 0.1            # issue 77: 0.1 x sqrt(B)
    config.optimizer.scaling = 'sqrt'
    config.optimizer.weight_decay = 1e-4            # README, every command
    config.schedule.warmup_epochs = 0.05 * options.epochs       # issue 77: 5 %
    config.eval.knn_every_epochs = 50.0
    config.eval.linear_at_end = False               # too many features: run configs/linear.py instead
    return recipes.smoke(config) if options.smoke else config
