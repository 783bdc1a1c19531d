"""SimCLR on Fashion-MNIST, sized for two CPU cores: some minutes.

    python -m simclr_jax.main --config=configs/fashion_mnist.py --config.data.dir=TFDS_DIR --workdir=DIR

TFDS_DIR holds the set as TFDS prepared it (`tfds build fashion_mnist`, or --config.data.download=true).
Result: kNN 80.5 % (raw pixels 79.1, random encoder 49.1), linear 86.4 % (random encoder 61.4).

Numbers: chosen for grey 28-pixel images and two cores; no paper runs SimCLR at this size.
"""

from simclr_jax import config as recipes


def get_config(argument: str = '') -> recipes.ConfigDict:
    options = recipes.parse_argument(argument, method='simclr', epochs=2.0)
    config = recipes.base_config()
    config.data.source = 'fashion_mnist'
    config.batch_size = 256
    config.num_epochs = options.epochs

    config.encoder.update({'depth': 10, 'width': 0.25, 'stem': 'cifar', 'dtype': 'float32'})
    recipes.use_method(config, options.method, num_layers=2, hidden_width=128, out_dim=64)
    config.augment = recipes.augment_config(image_size=28, strength=0.5, blur=False)
    config.augment.crop.area = (0.5, 1.0)
    # The images are grey: hue, saturation and grey would cost time and change nothing.
    config.augment.jitter.update({'saturation': 0.0, 'hue': 0.0})
    config.augment.grey.probability = 0.0

    # No excluded probe: plain momentum at this rate would blow it up.
    config.optimizer.update({'learning_rate': 4.0, 'scaling': 'none', 'exclude': ()})
    recipes.for_short_runs(config)
    config.schedule.warmup_epochs = 0.2
    config.eval.update({'crop_proportion': 1.0, 'batch_size': 250, 'knn_every_epochs': 0.5,
                        'pixel_floor': True})
    config.linear.update({'batch_size': 256, 'num_epochs': 5.0})
    return recipes.smoke(config) if options.smoke else config
