"""SimCLR on a folder of your own images, labels or none, on one GPU.

    python -m simclr_jax.main --config=configs/folder.py --config.data.source=folder:/path/to/images \
        --workdir=DIR

Any tree of image files of any size. First-level folders, if there are two or more, become labels; folders
named train and test (or val, validation) become splits; neither is needed (docs/data.md).
Hardware: one GPU of 24 GB or more by launch/gpu.sh, which lets jax take 90 % of it (18 GiB are needed); for
less, `:batch=128` (10.3 GiB); for a CPU, `:size=32,depth=10,width=0.25,epochs=20`. Time: by the size of the
folder; the progress line says. Result: that of Lightly's run of this shape (ResNet-50, batch 256, 100 epochs,
square-root scaling) on ImageNet is 63.2 % linear, against 57.5 in the paper with linear scaling.

Fewer than 20,000 images: half the colour jitter, crops from 30 % of the area, twice the rate, and a warm-up
of a tenth of a run below 100 epochs. Chosen on three sets of 359 to 2,502 images, in runs of about 200 steps:
3 to 9 points of linear accuracy and 1 to 4 of kNN (no more than seeds differ on two of the sets) above the
values for many images. Tried as well, and no better: AdamW, SGD, five times the rate and more, temperature
0.5 (numbers: benchmarks/RESULTS.md, Small sets).
A field that you set otherwise stays; --config.few_images.below=0 turns all of it off.

Numbers: google-research/simclr tf2/run.py, unless another source stands beside them.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, depth=50, width=1.0, size=224, epochs=100.0,
                                     batch=256)
    config = recipes.base_config()
    config.data.source = ''                         # the user's; evaluations take the run's
    config.batch_size = options.batch
    config.num_epochs = options.epochs

    config.encoder.depth, config.encoder.width = options.depth, options.width
    config.encoder.stem = 'cifar' if options.size <= 32 else 'imagenet'
    config.augment = recipes.augment_config(image_size=options.size, strength=1.0)
    config.eval.crop_proportion = 1.0 if options.size <= 32 else 0.875

    config.optimizer.name = 'lars'                  # AdamW and SGD were no better (benchmarks/RESULTS.md)
    config.optimizer.learning_rate = 0.075          # paper App. B.1, with square-root scaling
    config.optimizer.scaling = 'sqrt'               # for batches below 4096 (paper Table B.1 and Lightly)
    config.few_images.update({'below': 20_000, 'instead': (
        ('optimizer.learning_rate', 0.075, 0.15),
        ('augment.crop.area', (0.08, 1.0), (0.3, 1.0)),
        ('augment.jitter.brightness', 0.8, 0.4), ('augment.jitter.contrast', 0.8, 0.4),
        ('augment.jitter.saturation', 0.8, 0.4), ('augment.jitter.hue', 0.2, 0.1),
        ('schedule.warmup_epochs', 10.0, min(10.0, options.epochs / 10)))})
    config.eval.knn_every_epochs = 5.0
    config.linear.update({'batch_size': options.batch})
    if options.smoke:
        config = recipes.smoke(config)
        config.data.test_split = ''                 # a folder that is given need not have one
    return config
