"""What an evaluation task loads: the encoder that it evaluates, and labelled splits to fit and to test on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from simclr_jax.config import ConfigDict
from simclr_jax.data import loading
from simclr_jax.data.source import Source, Streamed
from simclr_jax.evaluate.accuracies import is_labelled, unchanged
from simclr_jax.evaluate.features import Encode, Features, encode_source, raw_pixels
from simclr_jax.evaluate.pretrained import Pretrained, load_of_task, naming_fields, path_of
from simclr_jax.models.folding import fold, folded
from simclr_jax.runtime import sharding
from simclr_jax.training.steps import make_encode
from simclr_jax.training.workdir import data_changes

_PIXEL_BYTES = 1 << 30      # of raw pixels as float32, at most, that are measured as a floor


class Evaluated(NamedTuple):
    """A pretrained encoder on the devices."""

    pretrained: Pretrained
    mesh: jax.sharding.Mesh
    encode: Callable[[Any, jax.Array], jax.Array]       # (`fold`ed variables, images) -> features
    width: int                                          # of the features
    path: str                                           # workdir or file that it came from

    @property
    def config(self) -> ConfigDict:
        """That of the run that trained it: it says how images are preprocessed."""
        return self.pretrained.config

    def encoders(self, *splits: Source, pixel_floor: bool = False,
                 note: Callable[[str], None] = lambda text: None) -> dict[str, Encode]:
        """{'random', 'pretrained': images -> features}, of the network before and after training.

        With `pixel_floor` 'raw pixels' before them, or a note where those of `splits` do not fit in memory.
        """
        found: dict[str, Encode] = {}
        if pixel_floor:
            needed = sum(split.num_examples for split in splits) * self.config.augment.image_size ** 2 * 3 * 4
            if needed <= _PIXEL_BYTES:
                found['raw pixels'] = raw_pixels
            else:
                note('Raw pixels are not measured: they do not fit in memory.')
        return found | {'random': self.encode_with(self.pretrained.initial),
                        'pretrained': self.encode_with(self.pretrained.variables)}

    def encode_with(self, variables: Any) -> Encode:
        """images -> features of fixed variables, a functools.partial that holds them."""
        variables = fold(self.pretrained.network, variables)
        return functools.partial(self.encode, jax.device_put(variables, sharding.replicated(self.mesh)))

    def features(self, encode: Encode, *splits: Source) -> list[Features]:
        """Of the labelled images of each split; RuntimeError if the encoder changes meanwhile."""
        with unchanged(encode):
            return [encode_source(encode, split, self.config, self.mesh)[0] for split in splits]

    def embed(self, source: Source, *, num_threads: int | None = None,
              advance: Callable[[], None] = lambda: None) -> tuple[Features, np.ndarray]:
        """Of all readable images, labelled or not, and their rows: see `features.encode_source`.

        Raises:
            ValueError: too many images cannot be read, or a stream would be read by several processes.
            FloatingPointError: a feature is not finite.
        """
        if isinstance(source, Streamed) and jax.process_count() > 1:
            raise ValueError(f'{source.name} is streamed from its files, which embed reads in one process: '
                             'run it without --multihost.')
        found, rows = encode_source(
            self.encode_with(self.pretrained.variables), source, self.config, self.mesh, labelled=False,
            batch_size=min(self.config.eval.batch_size, source.num_examples), num_threads=num_threads,
            advance=advance)
        source.check_bad_share()
        if not np.isfinite(found.features).all():
            raise FloatingPointError(f'Some features of {self.pretrained.source} are not finite: nothing was '
                                     'written.')
        return found, rows

    def provenance(self, train_source: Source, test_source: Source, num_train: int, num_test: int
                   ) -> dict[str, Any]:
        """What every line of results says of the encoder and of the data."""
        return {'pretrained': self.path, 'step': self.pretrained.step, 'network': self.pretrained.whose,
                'data': test_source.name, 'train_split': train_source.split, 'split': test_source.split,
                'num_train': num_train, 'num_test': num_test}


def load_evaluated(settings: ConfigDict, workdir: str, block: str, module: nn.Module | None = None
                   ) -> Evaluated:
    """The encoder that a task's block names: `pretrained` (or the workdir), `checkpoint`, `encoder`, `layer`.

    module: the encoder itself, where the config of its run cannot name it.

    Raises:
        FileNotFoundError, ValueError: no such encoder, checkpoint or layer.
    """
    path = path_of(settings, workdir)
    with naming_fields(block):
        return make_evaluated(load_of_task(settings, path, block, module), layer=settings.layer, path=path)


def make_evaluated(pretrained: Pretrained, *, layer: int, mesh: jax.sharding.Mesh | None = None, path: str = ''
                 ) -> Evaluated:
    """An encoder on the devices of `mesh`, by default on all; ValueError for a layer that it has not."""
    encode = jax.jit(folded(pretrained.network, make_encode(pretrained.network, layer=layer)))
    fields = pretrained.config.augment
    image = jax.ShapeDtypeStruct((1, fields.image_size, fields.image_size, len(fields.mean)), np.float32)
    width = jax.eval_shape(encode, pretrained.variables, image).shape[1]
    return Evaluated(pretrained, mesh or sharding.make_mesh(), encode, width, path)


def load_splits(config: ConfigDict, evaluated: Evaluated, what: str, *, by_name: bool = False,
                unlabelled: bool = False) -> tuple[Source, Source]:
    """The labelled splits to train and to test on: `config`'s, and where it is empty those of the run.

    Args:
        what: the evaluation, for the message: 'a linear evaluation'.
        evaluated: what is evaluated; a note says so if the data of its run have changed since.
        by_name: keep the names of files: a folder of small images is then not read into memory.
        unlabelled: the training split needs no labels.

    Raises:
        FileNotFoundError, ValueError: no such data or splits, or without labels.
    """
    trained = evaluated.config
    data = {name: config.data[name] or trained.data[name] for name in ('source', 'train_split', 'test_split')}
    is_of_run = all(trained.data[name] == value for name, value in data.items())
    where = data_options(config, trained) | ({'decode_once': False} if by_name else {})
    if is_of_run and not config.data.cache:
        where |= cache_of_run(trained)
    train_source, test_source = loading.load_pair(data['source'], data['train_split'], data['test_split'],
                                                  **where)
    for source, field in ((train_source, 'train_split'), (test_source, 'test_split')):
        if not is_labelled(source) and not (unlabelled and source is train_source):
            raise ValueError(f'{data["source"]} has no labels in data.{field} {data[field]!r}: '
                             f'{what} needs them to {"" if unlabelled else "train and to "}test on.')
    assert test_source is not None
    changes = data_changes(evaluated.path, train_source) if is_of_run and not by_name else ''
    if changes:
        train_source.notes.append(f'The training data of {evaluated.path} have changed since its run: '
                                  f'{changes}.')
    return train_source, test_source


def data_options(config: ConfigDict, trained: ConfigDict) -> dict[str, Any]:
    """The keywords of `loading.load_source`: where data lie by `config`, or else by the run's own."""
    where = loading.options(config.data, image_size=trained.augment.image_size, is_lead=sharding.is_lead(),
                            begun_with=trained.data)
    return where | {'data_dir': where['data_dir'] or trained.data.dir}


def cache_of_run(trained: ConfigDict) -> dict[str, Any]:
    """The keywords by which the run's own images come from the cache of the run, while it is there."""
    return {name: trained.data.get(name, '') for name in ('cache', 'cache_dir')} | {'builds_cache': False}
