"""A trained encoder from its workdir or a file of weights, with the preprocessing it was trained with."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax import storage
from simclr_jax.config import ConfigDict, base_config
from simclr_jax.models.building import make_network
from simclr_jax.models.network import Network, init_variables
from simclr_jax.training import checkpoint
from simclr_jax.training.steps import jit_seldom
from simclr_jax.training.workdir import load_config
from simclr_jax.weights import hub
from simclr_jax.weights.read.files import read_weights
from simclr_jax.weights.tree import Imported

_EVAL = ('crop_proportion', 'resize', 'antialias', 'resize_to')      # of Imported, and of config.eval


class Pretrained(NamedTuple):
    """An encoder and its head, from a workdir or a file of weights."""

    config: ConfigDict      # of the run that trained it; of a file: what it says, over the defaults
    network: Network        # encoder and head alone: no predictor, no online probe
    variables: dict         # {'params', 'batch_stats'} of the checkpoint, numpy
    make_initial: Callable[[], dict]        # of `initial`
    step: int               # 0 where a file does not say
    whose: str              # they are, 'online' or 'target'
    source: str             # what it is, in words: 'simclr, step 500' or 'torchvision ResNet-50'
    card: dict              # what a file says of itself; {} of a workdir
    classifier: dict | None = None      # {'kernel' [D, C], 'bias' [C]} of h, of a file that has one

    @property
    def initial(self) -> dict:
        """Of the online network at step 0: the baseline of results; made when it is asked for."""
        return self.make_initial()


def load_pretrained(path: str | os.PathLike, which: str = 'last', network: str = '', *,
                    encoder: nn.Module | None = None) -> Pretrained:
    """The encoder and head of a workdir, or of any file that `weights.read.files.read_weights` knows.

    `initial` is what the online network started from, also beside a target. MoCo's target starts as its
    copy; BYOL's has a start of its own, and this, as for a file, is another random network of the kind.

    Args:
        path: a workdir, a file or a directory of weights, or 'hf:OWNER/NAME' (see `weights.hub.fetch`).
        which: 'last', 'best' (by kNN accuracy), or the number of a step that was kept. Of a workdir.
        network: 'online', 'target' (the moving average of MoCo and BYOL), or '' for the one that the
            run itself measured, its eval.encoder. Of a workdir.
        encoder: the module, where its config cannot name it (see `models.building.make_encoder`).

    Raises:
        FileNotFoundError: `path` holds no run and no weights, or no such checkpoint.
        ValueError: `which` or `network` is none of the above, the run has no target, its encoder cannot be
            built again, or the file is refused (see `read_weights`).
    """
    path = storage.as_path(path)
    if hub.is_hub(path):
        path = hub.fetch(path)
    if storage.is_file(os.path.join(path, 'config.json')):
        return _from_workdir(path, which, network, encoder)
    if storage.is_dir(path) and not storage.scan(path):
        raise FileNotFoundError(f'{path} is empty: it is not a workdir of simclr_jax and holds no weights.')
    imported = read_weights(path)
    if which != 'last' or network == 'target':
        name, value = ('checkpoint', which) if which != 'last' else ('network', network)
        raise ValueError(f'{name} is {value!r}: {path} is a file of weights, with one network and no steps. Leave '
                         f'{name} as it is.')
    config = file_config(imported)
    module, _, make_initial = _network(config, encoder)
    return Pretrained(config, module, imported.variables, make_initial, int(imported.card.get('step') or 0),
                      'online', imported.source, imported.card, imported.classifier)


@contextlib.contextmanager
def naming_fields(block: str) -> Iterator[None]:
    """Errors of `load_pretrained` and `layer` name the fields of a task's block that the values came from."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        argument, is_named, rest = str(error).partition(' is ')
        fields = {'checkpoint': 'checkpoint', 'network': 'encoder', 'layer': 'layer'}
        if not is_named or argument not in fields:
            raise
        raise type(error)(f'{block}.{fields[argument]} is {rest}') from None


def load_of_task(settings: ConfigDict, path: str, block: str, encoder: nn.Module | None = None) -> Pretrained:
    """`load_pretrained` with `checkpoint` and `encoder` of a task's block, which its errors name."""
    with naming_fields(block):
        return load_pretrained(path, settings.checkpoint, settings.encoder, encoder=encoder)


def path_of(settings: ConfigDict, workdir: str) -> str:
    """Where a task finds its encoder: `pretrained` of its block, or the workdir; FileNotFoundError: no such workdir."""
    if not settings.pretrained and not storage.exists(workdir):
        raise FileNotFoundError(f'There is no directory {workdir}: give the workdir of a run with --workdir, or '
                                "weights with the task's field `pretrained`.")
    return storage.as_path(settings.pretrained or workdir)


def fresh(config: ConfigDict, encoder: nn.Module | None = None) -> Pretrained:
    """An encoder and head that nothing has trained: those of a config at step 0."""
    network, _, make_initial = _network(config, encoder)
    return Pretrained(config, network, make_initial(), make_initial, 0, 'online', 'random weights', {})


def file_config(imported: Imported) -> ConfigDict:
    """The config of an encoder from a file: its recipe, or the defaults, under what the file says."""
    config = ConfigDict(imported.card.get('recipe') or base_config().to_dict() | {'task': ''})
    if not imported.card.get('recipe'):
        config.data.update({'source': '', 'train_split': 'train', 'test_split': ''})
    with config.unlocked():
        config.encoder.update(imported.encoder)
        config.head.update(imported.head)
        config.augment.update({'image_size': imported.image_size, 'mean': tuple(imported.mean),
                               'std': tuple(imported.std)})
        config.eval.update({name: getattr(imported, name) for name in _EVAL})
    return config


def encoder_fields(config: ConfigDict) -> dict[str, Any]:
    """What files say of an encoder; of a ResNet its fields alone, as before there were others."""
    fields = config.encoder.to_dict()
    if fields.get('name', 'resnet') == 'resnet':
        fields = {name: value for name, value in fields.items() if name not in ('name', 'arguments')}
    return fields


def as_imported(pretrained: Pretrained, **changes: Any) -> Imported:
    """A pretrained encoder as a file of weights holds it; `changes` replace fields of `Imported`."""
    config = pretrained.config
    return Imported(**{
        'encoder': encoder_fields(config), 'head': config.head.to_dict(),
        'variables': {kind: dict(tree) for kind, tree in pretrained.variables.items()},
        'mean': tuple(config.augment.mean), 'std': tuple(config.augment.std),
        'image_size': config.augment.image_size,
        **{name: config.eval[name] for name in _EVAL if name in config.eval},       # older runs say less
        'source': pretrained.source, 'classifier': pretrained.classifier, 'card': dict(pretrained.card),
        **changes})


def _from_workdir(workdir: str, which: str, which_network: str, encoder: nn.Module | None) -> Pretrained:
    config = ConfigDict(load_config(workdir))
    which_network = which_network or config.eval.get('encoder', 'online')       # older runs do not say
    network, init, make_initial = _network(config, encoder)
    with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
        step = _find_step(checkpointer, which, workdir)
        variables = checkpointer.restore_encoder(step, network=which_network)
        assert step is not None         # or there was nothing to restore
    for part in variables.values():                     # batch_stats has those of the predictor
        for name in ('predictor', 'probe'):
            part.pop(name, None)
    return Pretrained(config, network, _with_own_keys(variables, init), make_initial, step, which_network,
                      f'{config.method.name}, step {step:,}', {})


def _with_own_keys(variables: Any, init: Callable[[], dict]) -> Any:
    """The variables under the keys of the module: layers that nnx counts by integers are strings on a disk."""
    def keyed(like, tree):
        if not isinstance(like, Mapping) or not isinstance(tree, Mapping):
            return tree
        keys = {str(key): key for key in like}
        return {keys.get(name, name): keyed(like.get(keys.get(name, name)), each) for name, each in tree.items()}

    paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(variables))
    return keyed(jax.eval_shape(init), variables) if any(str(key.key).isdigit() for path in paths for key in path
                                                         ) else variables


def _network(config: ConfigDict, encoder: nn.Module | None) -> tuple[Network, Callable[[], dict], Callable[[], dict]]:
    """Encoder and head of a config, and () -> their variables at step 0: to be traced, and computed once."""
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(), module=encoder,
                           mean=config.augment.mean, std=config.augment.std)

    def init():
        images = jnp.zeros((1, config.augment.image_size, config.augment.image_size, len(config.augment.mean)))
        return init_variables(network, jax.random.key(config.seed), images)

    return network, init, functools.cache(lambda: jax.device_get(jit_seldom(init)()))


def _find_step(checkpointer: checkpoint.Checkpointer, which: str, workdir: str) -> int | None:
    if which == 'last':
        return checkpointer.latest_step()
    if which == 'best':
        step = checkpointer.best_step()
        if step is None:
            raise FileNotFoundError(f"checkpoint is 'best': none in {workdir} has a kNN accuracy; ask for the last "
                                    'one, or for a step.')
        return step
    if not str(which).isdigit():
        raise ValueError(f'checkpoint is {which!r}: it takes \'last\', \'best\' or the number of a step.')
    return int(which)
