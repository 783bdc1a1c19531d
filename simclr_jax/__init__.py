"""simclr_jax: SimCLR in JAX, from images without labels to a measured encoder.

    encoder = simclr_jax.load_encoder('runs/mine')      # a workdir, or a file of weights
    features = encoder(images)                          # [N, H, W, 3] -> [N, D] float32

`nt_xent` is the loss, `simclr_views` the two random views of a batch, `augment` one of an image with
every operation of yours, `ResNet` and `ProjectionHead` the networks: each can be used alone.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = '0.1.0'

if TYPE_CHECKING:
    from simclr_jax.augmentations import simclr_views
    from simclr_jax.device_augment import augment, eval_crop
    from simclr_jax.encoder import Encoder, load_encoder
    from simclr_jax.models.heads import ProjectionHead
    from simclr_jax.models.resnet import ResNet
    from simclr_jax.objectives.nt_xent import nt_xent

# Where each name lives; it is imported when it is first asked for, so that `import simclr_jax` costs nothing.
_NAMES = {
    'load_encoder': 'encoder', 'Encoder': 'encoder', 'nt_xent': 'objectives.nt_xent',
    'simclr_views': 'augmentations', 'augment': 'device_augment', 'eval_crop': 'device_augment',
    'ResNet': 'models.resnet', 'ProjectionHead': 'models.heads',
}
__all__ = ['Encoder', 'ProjectionHead', 'ResNet', 'augment', 'eval_crop', 'load_encoder', 'nt_xent',
           'simclr_views']


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
