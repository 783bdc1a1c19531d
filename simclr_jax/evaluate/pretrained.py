"""A trained encoder from its workdir alone, with the preprocessing that it was trained with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from simclr_jax import checkpoint
from simclr_jax.config import ConfigDict
from simclr_jax.models.network import Network, make_network
from simclr_jax.steps import jit_once


class Pretrained(NamedTuple):
    config: ConfigDict      # of the run that trained it
    network: Network        # encoder and head alone: no predictor, no online probe
    variables: dict         # {'params', 'batch_stats'} of the checkpoint
    initial: dict           # of the online network at step 0: the floor that results are compared with
    step: int
    encoder: str            # whose they are: 'online' or 'target'


def load_pretrained(workdir: str, which: str = 'last', encoder: str = '') -> Pretrained:
    """The encoder and head of `workdir`, as numpy arrays.

    `initial` is what the online network started from, also beside a target. MoCo's target starts as its
    copy; BYOL's has a start of its own, and this is another random network of the same kind.

    Args:
        which: 'last', 'best' (by kNN accuracy), or the number of a step that was kept.
        encoder: 'online', 'target' (the moving average of MoCo and BYOL), or '' for the one that the
            run itself measured, its eval.encoder.

    Raises:
        FileNotFoundError: `workdir` holds no run, or no such checkpoint.
        ValueError: `which` or `encoder` is none of the above, or the run has no target.
    """
    config = ConfigDict(checkpoint.load_config(workdir))
    encoder = encoder or config.eval.get('encoder', 'online')       # older runs do not say
    network = make_network(encoder=config.encoder.to_dict(), head=config.head.to_dict(),
                           mean=config.augment.mean, std=config.augment.std)
    with checkpoint.Checkpointer(workdir, read_only=True) as checkpointer:
        step = _find_step(checkpointer, which, workdir)
        variables = checkpointer.restore_encoder(step, network=encoder)
    for part in variables.values():                     # batch_stats has those of the predictor
        for name in ('predictor', 'probe'):
            part.pop(name, None)
    images = jnp.zeros((1, config.augment.image_size, config.augment.image_size, 3))
    initial = jit_once(lambda: network.init(jax.random.key(config.seed), images, train=False))()
    return Pretrained(config, network, variables, jax.device_get(initial), step, encoder)


def _find_step(checkpointer: checkpoint.Checkpointer, which: str, workdir: str) -> int | None:
    if which == 'last':
        return checkpointer.latest_step()
    if which == 'best':
        step = checkpointer.best_step()
        if step is None:
            raise FileNotFoundError(f'No checkpoint in {workdir} has a kNN accuracy: '
                                    'ask for the last one, or for a step.')
        return step
    if not str(which).isdigit():
        raise ValueError(f'linear.checkpoint is {which!r}: '
                         "it takes 'last', 'best' or the number of a step.")
    return int(which)
