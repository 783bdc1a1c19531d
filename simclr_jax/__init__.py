"""simclr_jax: SimCLR in JAX, from images without labels to a measured encoder.

    encoder = simclr_jax.load_encoder('runs/mine')      # a workdir, or a file of weights
    features = encoder(images)                          # [N, H, W, 3] -> [N, D] float32

`pretrain(config, workdir)` is what the command runs, with parts of your own where you give them; `config`
holds the recipes' building blocks.

`nt_xent` is the loss, `simclr_views` the two random views of a batch, `augment` one of an image with
every operation of yours, `ResNet` and `ProjectionHead` the networks: each can be used alone.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from typing import TYPE_CHECKING

__version__ = '0.1.0'

if TYPE_CHECKING:
    from simclr_jax import config
    from simclr_jax.encoder import Encoder, load_encoder
    from simclr_jax.models.heads import ProjectionHead
    from simclr_jax.models.resnet import ResNet
    from simclr_jax.objectives.nt_xent import nt_xent
    from simclr_jax.runtime.sharding import make_mesh
    from simclr_jax.train import pretrain
    from simclr_jax.views.device import augment, eval_crop
    from simclr_jax.views.presets import simclr_views

# Where each name lives; it is imported when it is first asked for, so that `import simclr_jax` costs nothing.
_NAMES = {
    'load_encoder': 'encoder', 'Encoder': 'encoder', 'nt_xent': 'objectives.nt_xent',
    'simclr_views': 'views.presets', 'augment': 'views.device', 'eval_crop': 'views.device',
    'ResNet': 'models.resnet', 'ProjectionHead': 'models.heads',
    'pretrain': 'train', 'make_mesh': 'runtime.sharding',
}
# Modules that once stood at the top, and where they are now: `import simclr_jax.plan` goes on working.
_MOVED = {'device_augment': 'views.device', 'plan': 'inspect.plan'}
__all__ = ['Encoder', 'ProjectionHead', 'ResNet', 'augment', 'config', 'eval_crop', 'load_encoder', 'make_mesh',
           'nt_xent', 'pretrain', 'simclr_views']


if not TYPE_CHECKING:               # to a checker every name but those above is a mistake
    def __getattr__(name: str):
        if name in _MOVED or name == 'config':
            return importlib.import_module(f'{__name__}.{name}')
        if name not in _NAMES:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `_MOVED` under their old names: the same module objects."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition('.')
        if package == __name__ and name in _MOVED:
            return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        module = importlib.import_module(f'{__name__}.{_MOVED[spec.name.rpartition(".")[2]]}')
        self._spec = module.__spec__        # the import system is about to replace it
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec


sys.meta_path.append(_MovedModules())
