"""What every importer returns, and the check that a file fills the whole network and nothing else."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.models.building import ENCODERS, make_network
from simclr_jax.models.network import init_variables, outputs

CLASSIFIER = ('classifier/kernel', 'classifier/bias')        # paths beside those of `expected`
_SHOWN = 4      # names of each kind in a message


@dataclasses.dataclass(frozen=True)
class Imported:
    """An encoder from a file, with all that it takes to run it as where it came from.

    Attributes:
        encoder: fields of models.resnet.ResNet, dtype as a string; of an encoder of another make `name` and
            `arguments`, as models.building.make_encoder takes them.
        head: fields of models.network.ProjectionHead; {'mode': 'none'} where the file has none.
        variables: {'params', 'batch_stats'}, each {'encoder': ..., 'head': ...}: nested dicts of numpy
            float32 arrays, all of what the network needs (see `fit`).
        mean, std: of the pixels in [0, 1], per channel: what the weights were trained with.
        image_size, crop_proportion: the side of the images that the encoder is measured at, and of the
            central crop that they are resized from, as a share of the shorter side.
        resize, antialias, resize_to: how, see views.resize.Resize. The crop counts where resize_to is 0.
        source: what it is, in words, for tables: 'torchvision ResNet-50'.
        classifier: {'kernel' [D, C], 'bias' [C]} of a supervised head on h, or None.
        card: what else the file says of itself, JSON values: recipe, step, evaluation.
    """

    encoder: dict[str, Any]
    head: dict[str, Any]
    variables: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    crop_proportion: float
    source: str
    classifier: dict[str, np.ndarray] | None = None
    card: dict[str, Any] = dataclasses.field(default_factory=dict)
    resize: str = 'bicubic'
    antialias: bool = False
    resize_to: int = 0


def kind_of(encoder: Mapping[str, Any]) -> str:
    """'resnet', 'vit' or 'convnext'; '' for fields of an encoder of another make."""
    name = encoder.get('name', 'resnet')
    return name if name == 'resnet' or name in ENCODERS else ''


def is_resnet(encoder: Mapping[str, Any]) -> bool:
    """Whether these are fields of models.resnet.ResNet."""
    return kind_of(encoder) == 'resnet'


def size_step(encoder: Mapping[str, Any], image_size: int) -> int:
    """What divides height and width of the images that a traced program takes; 0 = it takes image_size alone.

    A ResNet takes any size. But how SAME pads a convolution with a stride depends on the size, and is known
    beforehand only for what all of the strides divide: 32.
    """
    if not is_resnet(encoder):
        return 0
    if encoder.get('conv_padding', 'symmetric') != 'same':
        return 1
    return 32 if image_size % 32 == 0 else 0


def expected(encoder: Mapping[str, Any], head: Mapping[str, Any], file: str = '',
             image_size: int = 32, channels: int = 3) -> dict[str, tuple[int, ...]]:
    """{path: shape} of all that a network needs, such as 'params/encoder/stem_conv/kernel'.

    Args:
        encoder, head: see `Imported`.
        file: where they come from, for messages.
        image_size: of the images, which parameters of an encoder of another make may depend on.
        channels: C, of the images.

    Raises:
        ValueError: no such network: an unknown depth, stem or head mode. `file` is named in front.
    """
    return _traced(encoder, head, file, image_size, channels)[0]


def _traced(encoder, head, file, image_size, channels):
    size = 32 if is_resnet(encoder) else image_size
    try:
        fields = json.dumps([dict(encoder), dict(head)], sort_keys=True, default=list)
        return _trace(fields, size, channels)
    except (ValueError, TypeError, OverflowError) as error:
        first_line = str(error).split('\n')[0]      # jax adds lines of its own
        raise ValueError(f'{file}: {first_line}' if file else first_line) from None


@functools.lru_cache(maxsize=8)
def _trace(fields: str, image_size: int, channels: int = 3
           ) -> tuple[dict[str, tuple[int, ...]], int, dict[str, tuple[Any, ...]]]:
    """(shapes by path, number of features, keys by path) of the network with these fields, as JSON."""
    encoder, head = json.loads(fields)
    network = make_network(encoder=encoder, head=head, mean=(0.0,) * channels, std=(1.0,) * channels)
    images = jnp.zeros((1, image_size, image_size, channels))

    def start():
        variables = init_variables(network, jax.random.key(0), images)
        return variables, outputs(network, variables, images).features

    tree, features = jax.eval_shape(start)
    leaves: dict[tuple, Any] = flax.traverse_util.flatten_dict(tree)
    keys = {'/'.join(map(str, path)): path for path in leaves}      # nnx counts layers by integers
    shapes = {path: leaves[keys[path]].shape for path in keys}
    kernels_first = sorted(shapes.items(), key=lambda item: not item[0].startswith('params/'))
    return dict(kernels_first), features.shape[1], keys


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{path: array} of a tree of variables, paths as in `expected`."""
    leaves = flax.traverse_util.flatten_dict(variables)
    return {'/'.join(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()}


def named_leaves(variables: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """[('encoder/stem_conv/kernel', array)] in the order of jax.tree.leaves, for files of programs."""
    return [('/'.join(str(key.key) for key in path[1:]), np.asarray(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables)]


def digest(arrays: Mapping[str, Any], about: str = '') -> str:
    """A hash of a text and of every bit of named arrays."""
    found = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.asarray(arrays[name]).tobytes())
    return found.hexdigest()


def all_arrays(imported: Imported) -> dict[str, np.ndarray]:
    """{path: array} of all that an encoder consists of, checked by `fit`."""
    arrays = flat({**imported.variables, 'classifier': imported.classifier or {}})
    fit(arrays, encoder=imported.encoder, head=imported.head, file=imported.source,
        image_size=imported.image_size, channels=len(imported.mean))
    return arrays


def fit(arrays: Mapping[str, np.ndarray], *, encoder: Mapping[str, Any], head: Mapping[str, Any], file: str,
        names: Mapping[str, str] | None = None, shape_of: Callable[[Sequence[int]], Sequence[int]] = list,
        image_size: int = 32, channels: int = 3) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """The variables of the network, each taken from `arrays`: none missing, none left over.

    Args:
        arrays: {path: array}, paths as in `expected`, and maybe the two of `CLASSIFIER`; axes in this
            project's order already.
        encoder, head, file, image_size, channels: see `expected`.
        names: {path: the name that it has in the file}, for messages; of a path that is not there its own.
        shape_of: a shape here -> the shape in the file's order of axes, for messages.

    Returns:
        {'params', 'batch_stats'}, nested dicts of float32 arrays; and the classifier, see `Imported`.

    Raises:
        ValueError: names are missing, unexpected or of another shape, dtype than float32, or hold a
            value that is not finite. One sentence names them.
    """
    name_of = lambda path: names[path] if names and path in names else path
    shapes_wanted, _, keys = _traced(encoder, head, file, image_size, channels)
    wanted = dict(shapes_wanted)
    if any(path in arrays for path in CLASSIFIER):
        classes = max(np.shape(arrays[path])[-1:] for path in CLASSIFIER if path in arrays)
        wanted |= zip(CLASSIFIER, ((feature_width(encoder, image_size), *classes), classes))
    missing = [name_of(path) for path in wanted if path not in arrays]
    unexpected = [name_of(path) for path in arrays if path not in wanted]
    both = {path: np.asarray(arrays[path]) for path in wanted if path in arrays}
    shapes = [f'{name_of(path)} {list(shape_of(array.shape))} instead of {list(shape_of(wanted[path]))}'
              for path, array in both.items() if array.shape != wanted[path]]
    refuse(file, {'missing': missing, 'unexpected': unexpected, 'of another shape': shapes})
    dtypes = [f'{name_of(path)} {array.dtype}' for path, array in both.items() if array.dtype != np.float32]
    broken = [name_of(path) for path, array in both.items()
              if array.dtype == np.float32 and not np.isfinite(array).all()]
    negative = [name_of(path) for path, array in both.items() if path.endswith('/var') and (array < 0).any()]
    refuse(file, {'not float32': dtypes, 'not finite': broken, 'negative variances': negative})
    tree = {'batch_stats': {}} | flax.traverse_util.unflatten_dict(
        {keys.get(path, tuple(path.split('/'))): array for path, array in both.items()})
    return tree, tree.pop('classifier', None)


def feature_width(encoder: Mapping[str, Any], image_size: int = 32) -> int:
    """D, the number of features of an encoder with these fields."""
    size = 32 if is_resnet(encoder) else image_size
    return _trace(json.dumps([dict(encoder), {'mode': 'none'}], sort_keys=True, default=list), size)[1]


def refuse(file: str, problems: Mapping[str, list[str]]) -> None:
    """ValueError in one sentence if any kind of problem has names."""
    found = [f'{kind}: {", ".join(names[:_SHOWN])}'
             + f' and {len(names) - _SHOWN} more' * bool(names[_SHOWN:])
             for kind, names in problems.items() if names]
    if found:
        raise ValueError(f'{file} does not fit the network: {"; ".join(found)}. Nothing was loaded.')
