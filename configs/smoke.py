"""SimCLR on the embedded data set `shapes`: the first run, minutes on two CPU cores.

    python -m simclr_jax.main --config=configs/smoke.py --workdir=/tmp/smoke
    python -m simclr_jax.main --config=configs/smoke.py:method=byol --workdir=/tmp/byol
    python -m simclr_jax.main --config=configs/smoke.py:no_colour --workdir=/tmp/no_colour

`method` is simclr, simclr_memory, moco_v2, moco_v3, byol, simsiam, barlow_twins, vicreg, nnclr, sup_con or
instance_discrimination, on the same data, encoder and optimiser; moco_v2 takes 2,000 steps of 64 images
(docs/methods.md).

`no_colour` turns colour jitter and grey off and leaves crop and flip: two crops of one image then share
its colours, the network tells images apart by them, and learns nothing else (paper sec. 3.1, Fig. 6).

Numbers: chosen for this data set and two cores, on its test split; the README has what they give.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, method='simclr', no_colour=False)
    config = recipes.base_config()
    config.data.source = 'shapes'                   # 10,000 training and 2,000 test images of 32 px
    config.batch_size = 256
    config.num_train_steps = 500

    config.encoder.update({'depth': 10, 'width': 0.25, 'dtype': 'float32'})
    recipes.use_method(config, options.method, num_layers=2, hidden_width=128, out_dim=64)
    config.augment = recipes.augment_config(image_size=32, strength=1.0, blur=False)
    config.augment.crop.area = (0.5, 1.0)           # smaller crops often miss the shape
    if options.no_colour:
        config.augment.jitter.probability = 0.0
        config.augment.grey.probability = 0.0

    # `exclude` is as when runs of this recipe were first begun: the probe, which it leaves out, has steps of its own.
    config.optimizer.update({'learning_rate': 4.0, 'scaling': 'none', 'exclude': ()})
    recipes.for_short_runs(config)
    config.schedule.warmup_epochs = 1.0
    config.eval.update({'crop_proportion': 1.0, 'batch_size': 250, 'knn_every_epochs': 4.0,
                        'pixel_floor': True})
    config.checkpoint.every_epochs = 2.0
    config.linear.update({'batch_size': 256, 'num_epochs': 10.0})
    return recipes.smoke(config) if options.smoke else config
