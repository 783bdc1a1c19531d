"""SimCLR on ImageNet, the recipe of the 2020 paper: ResNet-50, 100 epochs, batch 4096.

    python -m simclr_jax.main --config=configs/imagenet.py --workdir=DIR
    python -m simclr_jax.main --config=configs/imagenet.py:epochs=1000,width=4 --workdir=DIR
    python -m simclr_jax.main --config=configs/imagenet.py:multi_crop --workdir=DIR

Hardware: the official code needs "at least 32 TPUs" for this batch and about 6 hours on 32 TPU v3
(google-research/simclr README). Not run to the end by this project, which has no such machine.
Published top-1 of the linear evaluation (configs/linear.py): 64.6 at 100 epochs (paper Table B.1;
README "~64.5"), 69.3 / 74.2 / 76.5 at 1000 epochs for width 1 / 2 / 4 (paper Table 6). `multi_crop`, six small views
(facebookresearch/swav scripts/swav_200ep_pretrain.sh), is not the paper's.

Numbers: paper, sec. 2 and App. B, and google-research/simclr tf2/run.py where they agree; where
they do not, the comment names the source that was taken.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, depth=50, width=1.0, epochs=100.0, batch=4096,
                                     multi_crop=False)
    config = recipes.base_config()
    config.data.source = 'imagenet2012'
    config.data.test_split = 'validation'           # tf2/run.py eval_split; test has no labels
    config.batch_size = options.batch
    config.num_epochs = options.epochs

    config.encoder.depth = options.depth
    config.encoder.width = options.width
    config.method.temperature = 0.1                 # paper Table 5; tf2/run.py
    config.method.loss_weight = 2.0                 # scale of the official code (tf2/objective.py)
    config.head.num_layers = 2                      # the paper's; tf2/run.py says 3
    config.augment = recipes.augment_config(image_size=224, strength=1.0)
    if options.multi_crop:
        recipes.use_multi_crop(config)

    config.optimizer.learning_rate = 0.075          # README; = 0.3 x B/256 at batch 4096: both 4.8
    config.optimizer.scaling = 'sqrt'               # README; paper App. B.1: better for small batches
    config.optimizer.weight_decay = 1e-6            # paper sec. 2.2; the README's commands pass 1e-4
    config.schedule.warmup_epochs = 10.0
    config.eval.knn_every_epochs = 20.0
    config.eval.linear_at_end = False               # 10 GB of features: run configs/linear.py instead
    return recipes.smoke(config) if options.smoke else config
