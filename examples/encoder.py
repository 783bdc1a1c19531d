"""An encoder of your own: any Flax module, images [B, H, W, 3] and train=True or False -> features [B, D].

    python examples/encoder.py WORKDIR

In a config: `encoder.name = 'examples.encoder:PatchNet'`, and `encoder.arguments = {'width': 64}`.
"""

import sys

import flax.linen as nn
import numpy as np

import simclr_jax


class PatchNet(nn.Module):
    """Patches of 4 x 4 pixels, two layers for each, and their mean."""

    width: int = 32

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(self.width, (4, 4), strides=4)(images)
        x = nn.LayerNorm()(nn.gelu(x))
        x = nn.Dropout(0.1, deterministic=not train)(nn.Dense(self.width)(x))
        return nn.LayerNorm()(x).mean((1, 2))


if __name__ == '__main__':
    config = simclr_jax.config.smoke(simclr_jax.config.base_config())
    config.num_train_steps, config.augment.image_size = 4, 16
    config.data.update({'train_split': 'train[:128]', 'test_split': 'test[:64]'})
    results = simclr_jax.pretrain(config, sys.argv[1], encoder=PatchNet(width=32))
    print(f'linear probe: {results["pretrained"]["linear_accuracy"]:.2f}')
    # A module of an importable file is found by its name: then load_encoder(WORKDIR) is enough.
    encoder = simclr_jax.load_encoder(sys.argv[1], encoder=PatchNet(width=32))
    print(f'features: {encoder(np.zeros((2, 20, 20, 3), np.uint8)).shape}')
