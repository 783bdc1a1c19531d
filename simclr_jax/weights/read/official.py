"""Checkpoints of google-research/simclr, v1 and v2, as encoders of this package.

Read are TF2 object-based checkpoints, SavedModels and checkpoints with the TF1 variable names. A file is
taken whole: each variable fills its place, or is a known extra (optimizer, step, moving average of the
weights), or the file is refused. Names and order of creation are those of tf2/resnet.py, tf2/model.py,
resnet.py and model_util.py there.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax import storage
from simclr_jax.models.resnet import DEPTHS, BasicBlock, BottleneckBlock
from simclr_jax.weights.naming import (
    ANY_SIZES,
    by_path,
    counted,
    head_fields,
    is_norm,
    resnet_fields,
    resnet_layers,
    tensor_names,
)
from simclr_jax.weights.tree import CLASSIFIER, Imported, feature_width, fit

_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
_VALUE = '/.ATTRIBUTES/VARIABLE_VALUE'
# Attributes by which tf2/model.py and tf2/resnet.py reach their variables.
_ATTRIBUTE = re.compile(
    r'\d+|block_groups|layers|(conv2d_bn|conv_relu_dropblock|projection|shortcut|linear)_layers|linear_layer'
    r'|initial_conv_relu_max_pool|conv2d(_\d+|_fixed_padding)?|batch_norm_relu(_1)?|bn|bn_relu|dense'
    r'|se_layer|se_reduce|se_expand|kernel|bias|gamma|beta|moving_mean|moving_variance')
_PARTS = ('resnet_model', '_projection_head', 'supervised_head')
_MAX_ATTRIBUTES = 12    # from the model to a variable; official ones have at most nine
# What a checkpoint holds beside the model.
_TF2_EXTRA = re.compile(rf'{_GRAPH}|(global_step|save_counter|optimizer)/.*|.*/\.OPTIMIZER_SLOT/.*')
_TF1_EXTRA = re.compile(r'global_step|beta[12]_power|ema_model/.*'
                        r'|.*/(Momentum|Adam|Adam_1|LARSOptimizer|ExponentialMovingAverage)')
_STEPS = ('global_step', f'global_step{_VALUE}', f'optimizer/iter{_VALUE}', f'optimizer/_iterations{_VALUE}')
# {layer of ours: where it stands in the TF2 model}, of the stem and of a block.
_STEM = {'stem_conv': '0/conv2d', 'stem_norm': '2/bn'}
_STEM_OF_RESNET_D = {'stem_conv1': '0/conv2d', 'stem_norm1': '1/bn', 'stem_conv2': '2/conv2d',
                     'stem_norm2': '3/bn', 'stem_conv3': '4/conv2d', 'stem_norm3': '6/bn'}
_BASIC = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '2/conv2d', 'norm2': '3/bn'}
_BOTTLENECK = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '3/conv2d', 'norm2': '4/bn',
               'conv3': '6/conv2d', 'norm3': '7/bn'}
_SELECTIVE = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2/conv': '3/conv2d_fixed_padding/conv2d',
              'conv2/norm': '3/batch_norm_relu/bn', 'conv2/squeeze_conv': '3/conv2d_0',
              'conv2/squeeze_norm': '3/batch_norm_relu_1/bn', 'conv2/mixing_conv': '3/conv2d_1',
              'conv3': '5/conv2d', 'norm3': '6/bn'}
_NORM_VARIABLES = {'scale': '/gamma', 'bias': '/beta', 'mean': '/moving_mean', 'var': '/moving_variance'}


class _NotInstalled(ImportError, ValueError):
    """A package is missing; to the command an error of the user's, as every ValueError."""


def is_official(path: str | os.PathLike) -> bool:
    """Whether `path` is a TensorFlow checkpoint or a SavedModel, of whatever model."""
    try:
        return bool(_checkpoint_prefix(os.fspath(path)))
    except ImportError:     # there is a file `checkpoint`, which read_official cannot read either
        return True
    except (OSError, ValueError):
        return False


def read_official(path: str | os.PathLike) -> Imported:
    """An official SimCLR checkpoint: ResNet of any width, with or without SK, heads included.

    Args:
        path: 'DIR/ckpt-N' or one of its files, a directory with a `checkpoint` file (its latest), or that
            of a SavedModel (TF2's, or TF1's hub module).

    Returns:
        The encoder, its projection head ({'mode': 'none'} if there is none) and, where there is a
        supervised head on the features, the classifier. Images are in [0, 1] as they are; `image_size` is
        224, or 32 with the CIFAR stem. `card` holds the step, the layout and what was left unread.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ImportError: tensorflow is not installed.
        ValueError: it cannot be read, or is not such a network; see `weights.tree.fit`.
    """
    file = os.fspath(path)
    reader, shapes = _open(_checkpoint_prefix(file), file)
    tf1 = _GRAPH not in shapes
    keys = {name: name for name in shapes} if tf1 else _object_keys(_read(reader, _GRAPH, file), shapes, file)
    extra = _TF1_EXTRA if tf1 else _TF2_EXTRA
    ours = {name: key for name, key in keys.items() if not extra.fullmatch(key)}
    if not any(name.startswith(('resnet_model/', 'base_model/')) for name in ours):
        raise ValueError(f'{file} is a TensorFlow checkpoint, but not one of google-research/simclr: it has '
                         f'neither base_model/... nor a resnet_model, but {_some(ours)}.')
    arrays = {name: np.asarray(_read(reader, key, file)) for name, key in ours.items()}
    encoder, names = infer_encoder(arrays, tf1, file)
    of_head, num_layers = _head_names(arrays, tf1)
    supervised = 'head_supervised' if tf1 else 'supervised_head'
    names |= of_head | {path: f'{supervised}/linear_layer/dense/{path.split("/")[1]}' for path in CLASSIFIER}
    card = {'layout': 'TF1 names' if tf1 else 'TF2 objects', 'step': _step(reader, shapes, file)}
    arrays = by_path(arrays, names)
    width = arrays[CLASSIFIER[0]].shape[:1] if CLASSIFIER[0] in arrays else ()
    if width and width != (feature_width(encoder),):        # fine-tuned with ft_proj_selector
        card['supervised_head'] = (f'reads {width[0]} values, not the {feature_width(encoder)} features: '
                                   'not imported')
        arrays = {path: array for path, array in arrays.items() if path not in CLASSIFIER}
    head = head_fields(arrays, num_layers, norm=True, final_norm=True, bias=False, final_bias=False)
    variables, classifier = fit(arrays, encoder=encoder, head=head, file=file, names=names)
    ignored = sorted({_kind(key) for key in shapes if extra.fullmatch(key)} - {''})
    small = encoder['stem'] == 'cifar'
    return Imported(encoder=encoder, head=head, variables=variables,
                    mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), image_size=32 if small else 224,
                    crop_proportion=1.0 if small else 0.875,
                    source=f'official SimCLR ResNet-{encoder["depth"]} ({encoder["width"]:g}x'
                           f'{", SK" if encoder["sk_ratio"] else ""})',
                    classifier=classifier, card=card | ({'not_read': ignored} if ignored else {}))


def _some(names):
    return ', '.join(sorted(names)[:4]) or 'no variables'


def _kind(key):
    """A word for the card on what a variable beside the model is."""
    if key.startswith('ema_model/') or key.endswith('ExponentialMovingAverage'):
        return 'moving average of the weights'
    return '' if key == _GRAPH or key in _STEPS or key.startswith('save_counter') else 'optimizer'


# ---- files -----------------------------------------------------------------------------------------


def _checkpoint_prefix(path):
    """The path of the checkpoint's files without their endings."""
    if os.path.isdir(path):
        if os.path.exists(inner := os.path.join(path, 'variables', 'variables.index')):
            return inner.removesuffix('.index')
        indices = sorted(name for name in os.listdir(path) if name.endswith('.index'))
        if os.path.exists(os.path.join(path, 'checkpoint')):
            latest = _tensorflow().train.latest_checkpoint(path)
            if latest:
                return latest
            raise ValueError(f'{path}/checkpoint does not name a checkpoint that is there; give the path of '
                             f'one of {_some(indices)}.')
        if len(indices) > 1:
            raise ValueError(f'{path} holds several checkpoints and no file `checkpoint` that names one; '
                             f'give the path of one: {_some(indices)}.')
        if not indices:
            raise FileNotFoundError(f'{path} holds no TensorFlow checkpoint: neither variables/, nor a file '
                                    'that ends in .index.')
        return os.path.join(path, indices[0].removesuffix('.index'))
    prefix = re.sub(r'\.(index|meta|data-\d{5}-of-\d{5})$', '', path)
    if not os.path.exists(f'{prefix}.index'):
        raise FileNotFoundError(f'there is no TensorFlow checkpoint {prefix}: {prefix}.index is not there.')
    return prefix


def _tensorflow():
    try:
        import tensorflow
    except ImportError as error:
        raise _NotInstalled('Official SimCLR checkpoints are read with tensorflow, which is not installed: '
                            "pip install 'simclr_jax[tfds]'.") from error
    return tensorflow


def _open(prefix, file):
    with _readable(file):
        reader = _tensorflow().train.load_checkpoint(prefix)
        return reader, reader.get_variable_to_shape_map()


def _read(reader, key, file):
    with _readable(f'{file}, variable {key.removesuffix(_VALUE)},'):
        return reader.get_tensor(key)


@contextlib.contextmanager
def _readable(what):
    """Turns what the readers of TensorFlow raise into one sentence."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:      # TensorFlow's own, those of C++ and protobuf's, which has no public home
        raise ValueError(f'{what} cannot be read: it is damaged or incomplete '
                         f'({storage.first_line(error)}).') from error


def _step(reader, shapes, file):
    for key in _STEPS:
        if key in shapes and not shapes[key]:
            return int(_read(reader, key, file))
    return None


# ---- names -----------------------------------------------------------------------------------------


def _object_keys(graph: bytes, shapes: Mapping[str, Any], file: str) -> dict[str, str]:
    """{path of attributes from the model: key} of all variables in a TF2 checkpoint.

    The key of a variable is one of several paths to it, in a SavedModel its place in a list: the names
    are in the graph of objects that the checkpoint holds. What the model does not reach by attributes
    of the official code has its key for a name.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2
    with _readable(f'{file}, graph of objects,'):
        nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(graph).nodes
        children = [{child.local_name: child.node_id for child in node.children} for node in nodes]
        keys = [next((value.checkpoint_key for value in node.attributes
                      if value.name == 'VARIABLE_VALUE'), '') for node in nodes]
        if any(not 0 <= target < len(nodes) for names in children for target in names.values()):
            raise ValueError('it refers to objects that are not there')
    named, seen = {}, set()
    models = [names for names in children if 'resnet_model' in names]
    stack = [(part, model[part]) for model in models[:1] for part in _PARTS if part in model]
    while stack:
        path, index = stack.pop()
        if index in seen or path.count('/') > _MAX_ATTRIBUTES:
            continue
        seen.add(index)
        if keys[index] in shapes:
            named[path] = keys[index]
        stack += [(f'{path}/{name}', target) for name, target in children[index].items()
                  if _ATTRIBUTE.fullmatch(name)]
    rest = set(shapes) - set(named.values())
    return named | {key.removesuffix(_VALUE): key for key in rest}


def encoder_names(block_type: type, sizes: Sequence[int], stem: str, sk: bool, tf1: bool) -> dict[str, str]:
    """{path of weights.tree.expected: name of the variable in the file} of an encoder; see `DEPTHS`."""
    bottleneck = block_type is BottleneckBlock
    path, shortcut = (('conv_relu_dropblock_layers', 'projection_layers') if bottleneck else
                      ('conv2d_bn_layers', 'shortcut_layers'))
    of_block = (_SELECTIVE if sk else _BOTTLENECK) if bottleneck else _BASIC

    def block(stage, index):
        first = (2 if stage else 1) if sk else 0        # of a shortcut, after padding and pooling
        places = {} if index else {'shortcut_conv': f'{shortcut}/{first}/conv2d',
                                   'shortcut_norm': f'{shortcut}/{first + 1}/bn'}
        places |= {layer: f'{path}/{place}' for layer, place in of_block.items()}
        return {layer: f'resnet_model/block_groups/{stage}/layers/{index}/{place}' for layer, place in places.items()}

    of_stem = _STEM_OF_RESNET_D if sk and stem == 'imagenet' else _STEM
    layers = resnet_layers({layer: f'resnet_model/initial_conv_relu_max_pool/{place}'
                            for layer, place in of_stem.items()}, block, sizes)
    if tf1:         # numbered as they are made, in this order
        numbers = {'conv2d': itertools.count(), 'batch_normalization': itertools.count()}
        for layer in layers:
            kind = 'batch_normalization' if is_norm(layer) else 'conv2d'
            layers[layer] = f'base_model/{kind}_{next(numbers[kind])}'.removesuffix('_0')
    return tensor_names(layers, {'kernel': '/kernel'}, _NORM_VARIABLES)


def infer_encoder(arrays: Mapping[str, np.ndarray], tf1: bool, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of models.resnet.ResNet for a file with these variables, and its names as `encoder_names`.

    Under TF1 names a ResNet-18 or 34 with the CIFAR stem has the same variables with and without SK: it is
    taken to be without.

    Raises:
        ValueError: it is none of the networks that there are, or one that this package does not have.
    """
    excited = [name for name in arrays if '/se_' in name or re.match(r'base_model/conv2d.*/bias', name)]
    if excited:
        raise ValueError(f'{file} has squeeze-and-excitation layers ({excited[0]}): '
                         'networks trained with se_ratio > 0 are not supported.')
    names, sk = _tf1_names(arrays, file) if tf1 else _tf2_names(arrays)
    fields = resnet_fields(by_path(arrays, names), names, file, averaged=sk)
    return fields | {'zero_init_last_gamma': True, 'max_pool': 'same', 'conv_padding': 'symmetric',
                     'project_first': DEPTHS[fields['depth']][0] is not BottleneckBlock, 'norm_momentum': 0.9,
                     'norm_epsilon': 1e-5, 'dtype': 'float32'}, names


def _tf2_names(arrays):
    """(names, selective kernels)"""
    bottleneck = any('/conv_relu_dropblock_layers/' in name for name in arrays)
    three_convs = any('/initial_conv_relu_max_pool/4/' in name for name in arrays)
    pooled = any(re.match(r'resnet_model/block_groups/0/layers/0/\w+_layers/1/conv2d/kernel', name) for name in arrays)
    sk = three_convs or pooled
    return encoder_names(BottleneckBlock if bottleneck else BasicBlock, ANY_SIZES,
                         'imagenet' if three_convs else 'cifar', sk, tf1=False), sk


def _tf1_names(arrays, file):
    """(names, selective kernels), by the number of convolutions."""
    count = counted(arrays, r'base_model/conv2d(?:_(\d{1,4}))?/kernel$')
    for depth, (block_type, sizes) in DEPTHS.items():
        for sk, stem in ((False, 'imagenet'), (True, 'imagenet'), (True, 'cifar')):
            names = encoder_names(block_type, sizes, stem, sk, tf1=True)
            if count != sum(path.endswith('/kernel') for path in names):
                continue
            if sk and block_type is not BottleneckBlock:
                raise ValueError(f'{file} holds a ResNet-{depth} with selective kernels of the TF1 code, which feeds '
                                 'the pooled map to its blocks too: only those of depth 50 and more are supported.')
            return names, sk
    raise ValueError(f'{file} holds {count} convolutions under base_model, which is not a ResNet of depth '
                     f'{", ".join(map(str, DEPTHS))}, with or without selective kernels.')


def _head_names(arrays, tf1):
    """(names, number of layers) of a projection head. Its last norm has a name for the offset that it has not."""
    if tf1:
        linear = any(name.startswith('head_contrastive/l_0/') for name in arrays)
        base, norm = f'head_contrastive/{"" if linear else "n"}l_', 'batch_normalization'
    else:
        base, norm = '_projection_head/linear_layers/', 'bn_relu/bn'
    count = counted(arrays, re.escape(base) + r'(\d{1,3})/')
    layers = {f'head/{kind}{index + 1}': f'{base}{index}/{place}'
              for index in range(count) for kind, place in (('dense', 'dense'), ('norm', norm))}
    return tensor_names(layers, {'kernel': '/kernel'}, _NORM_VARIABLES), count
