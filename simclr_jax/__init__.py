"""simclr_jax: SimCLR in JAX, from images without labels to a measured encoder.

    encoder = simclr_jax.load_encoder('runs/mine')      # a workdir, or a file of weights
    features = encoder(images)                          # [N, H, W, 3] -> [N, D] float32

`pretrain(config, workdir)` is what the command runs, with parts of your own where you give them; `config`
holds the recipes' building blocks. Every part can also be used alone, in any program of JAX: views, networks,
losses, LARS and its schedules, kNN and the linear probe (docs/parts.md).
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING

__version__ = '0.1.0'

if TYPE_CHECKING:
    from simclr_jax import config as config
    from simclr_jax.data.loading import load_source as load_source
    from simclr_jax.encoder import Encoder as Encoder, load_encoder as load_encoder
    from simclr_jax.evaluate.arrays import knn as knn, linear_probe as linear_probe
    from simclr_jax.models.network import ProjectionHead as ProjectionHead
    from simclr_jax.models.resnet import ResNet as ResNet
    from simclr_jax.objectives.cosine_regression import cosine_regression as cosine_regression
    from simclr_jax.objectives.info_nce import info_nce as info_nce
    from simclr_jax.objectives.nt_xent import nt_xent as nt_xent
    from simclr_jax.runtime.sharding import make_mesh as make_mesh
    from simclr_jax.train import pretrain as pretrain
    from simclr_jax.training.optimizers import lars as lars
    from simclr_jax.training.schedules import epoch_cosine as epoch_cosine, warmup_cosine as warmup_cosine
    from simclr_jax.views.device import augment as augment, eval_crop as eval_crop
    from simclr_jax.views.fields import View as View
    from simclr_jax.views.pairs import (
        byol_views as byol_views,
        moco_views as moco_views,
        simclr_views as simclr_views,
        two_views as two_views,
    )

# Where each name lives; it is imported when it is first asked for, so that `import simclr_jax` costs nothing.
_NAMES = {name: module for module, names in {
    'data.loading': ['load_source'],
    'encoder': ['Encoder', 'load_encoder'],
    'evaluate.arrays': ['knn', 'linear_probe'],
    'models.network': ['ProjectionHead'],
    'models.resnet': ['ResNet'],
    'objectives.cosine_regression': ['cosine_regression'],
    'objectives.info_nce': ['info_nce'],
    'objectives.nt_xent': ['nt_xent'],
    'runtime.sharding': ['make_mesh'],
    'train': ['pretrain'],
    'training.optimizers': ['lars'],
    'training.schedules': ['epoch_cosine', 'warmup_cosine'],
    'views.device': ['augment', 'eval_crop'],
    'views.fields': ['View'],
    'views.pairs': ['byol_views', 'moco_views', 'simclr_views', 'two_views'],
}.items() for name in names}
# Modules that once stood elsewhere, and where they are now: `import simclr_jax.plan` goes on working.
_MOVED = {'data.sources': 'data.loading', 'device_augment': 'views.device',
          'models.heads': 'models.network', 'plan': 'inspect.plan', 'views.presets': 'views.from_config'}


if not TYPE_CHECKING:               # to a checker every name but those above is a mistake
    __all__ = sorted([*_NAMES, 'config'])

    def __getattr__(name: str):
        if name in _MOVED or name == 'config':
            return importlib.import_module(f'{__name__}.{name}')
        if name not in _NAMES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES, 'config'])


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `_MOVED` under their old names: the same module objects."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(f'{__name__}.') and fullname.removeprefix(f'{__name__}.') in _MOVED:
            return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        module = importlib.import_module(f'{__name__}.{_MOVED[spec.name.removeprefix(__name__ + ".")]}')
        self._spec = module.__spec__        # the import system is about to replace it
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec


sys.meta_path.append(_MovedModules())
