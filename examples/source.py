"""A data source of your own: anything with a length and items {'image', 'label'} pretrains as it is.

    python examples/source.py WORKDIR

In a config: `data.source = 'examples.source:Stripes'`, with `data.arguments = {'count': 64}` if need be.
"""

import sys

import numpy as np

import simclr_jax


class Stripes:
    """Images of stripes, horizontal (class 0) or vertical (class 1)."""

    class_names = ('horizontal', 'vertical')        # optional; else the labels themselves

    def __init__(self, split='train', count=64):
        self.count, self.seed = count, ('train', 'test').index(split)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        width = np.random.default_rng([self.seed, index]).integers(1, 5)
        image = np.zeros((16, 16, 3), np.uint8)     # or an encoded file's bytes, a path, a PIL image
        image[np.arange(16) // width % 2 == 1] = 255
        label = index % 2
        return {'image': image.transpose(1, 0, 2) if label else image, 'label': label}


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.batch_size = 4, 16
    config.augment.image_size = 16
    results = simclr_jax.pretrain(config, sys.argv[1], source=Stripes('train'), test_source=Stripes('test'))
    print(f'linear probe: {results["pretrained"]["linear_accuracy"]:.2f}')
