"""Checkpoints of google-research/simclr, v1 and v2, as encoders of this package.

Read are TF2 object-based checkpoints, SavedModels and checkpoints with the TF1 variable names. A file is
taken whole: each variable fills its place, or is a known extra (optimizer, step, moving average of the
weights), or the file is refused. Names and order of creation are those of tf2/resnet.py, tf2/model.py,
resnet.py and model_util.py there.
"""

import collections
import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax import storage
from simclr_jax.models.resnet import DEPTHS, BottleneckBlock
from simclr_jax.weights.tree import CLASSIFIER, Imported, counted, feature_width, fit, refuse, resnet_depth

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
STEM = 'initial_conv_relu_max_pool'
_SK_RATIO = 0.0625      # the one that SimCLRv2 uses
# {layer of ours: where it stands in the TF2 model}, of the stem and of a block.
_STEM = {'conv': '0/conv2d', 'norm': '2/bn'}
_STEM_OF_RESNET_D = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '2/conv2d', 'norm2': '3/bn',
                     'conv3': '4/conv2d', 'norm3': '6/bn'}
_BASIC = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '2/conv2d', 'norm2': '3/bn'}
_BOTTLENECK = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2': '3/conv2d', 'norm2': '4/bn',
               'conv3': '6/conv2d', 'norm3': '7/bn'}
_SELECTIVE = {'conv1': '0/conv2d', 'norm1': '1/bn', 'conv2/conv': '3/conv2d_fixed_padding/conv2d',
              'conv2/norm': '3/batch_norm_relu/bn', 'conv2/squeeze_conv': '3/conv2d_0',
              'conv2/squeeze_norm': '3/batch_norm_relu_1/bn', 'conv2/mixing_conv': '3/conv2d_1',
              'conv3': '5/conv2d', 'norm3': '6/bn'}
_NORM_VARIABLES = {'params/{}/scale': 'gamma', 'params/{}/bias': 'beta',
                   'batch_stats/{}/mean': 'moving_mean', 'batch_stats/{}/var': 'moving_variance'}


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
    by_name = {name: tuple(shapes[key]) for name, key in ours.items()}
    encoder = infer_encoder(by_name, tf1, file)
    head, layers, norm = _infer_head(by_name, tf1, file)
    names = (encoder_names(encoder['depth'], encoder['stem'], encoder['sk_ratio'] > 0, tf1)
             | head_names(layers, norm))
    supervised = 'head_supervised' if tf1 else 'supervised_head'
    names |= {path: f'{supervised}/linear_layer/dense/{path.split("/")[1]}' for path in CLASSIFIER}
    small = encoder['stem'] == 'cifar'
    card = {'layout': 'TF1 names' if tf1 else 'TF2 objects', 'step': _step(reader, shapes, file)}
    width = by_name.get(names[CLASSIFIER[0]], ())[:1]
    if width and width != (feature_width(encoder),):        # fine-tuned with ft_proj_selector
        card['supervised_head'] = (f'reads {width[0]} values, not the {feature_width(encoder)} features: '
                                   'not imported')
        for path in CLASSIFIER:
            ours.pop(names[path], None)
    arrays = {path: _read(reader, ours[name], file) for path, name in names.items() if name in ours}
    known = set(names.values())
    arrays |= {name: np.zeros(0, np.float32) for name in ours if name not in known}       # for fit to refuse
    variables, classifier = fit(arrays, encoder=encoder, head=head, file=file,
                                name_of=lambda path: names.get(path, path))
    ignored = sorted({_kind(key) for key in shapes if extra.fullmatch(key)} - {''})
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


def _infer_head(shapes, tf1, file):
    """(fields of ProjectionHead, names of its layers, name of the BatchNorm in each)."""
    if tf1:
        linear = any(name.startswith('head_contrastive/l_0/') for name in shapes)
        base, norm = f'head_contrastive/{"" if linear else "n"}l_', 'batch_normalization'
    else:
        base, norm = '_projection_head/linear_layers/', 'bn_relu/bn'
    count = counted(shapes, re.escape(base) + r'(\d{1,3})/')
    if not count:
        return {'mode': 'none'}, [], norm
    layers = [f'{base}{index}' for index in range(count)]
    first, last = (shapes.get(f'{layer}/dense/kernel', ()) for layer in (layers[0], layers[-1]))
    missing = [f'{layer}/dense/kernel' for layer, shape in ((layers[0], first), (layers[-1], last))
               if len(shape) != 2]
    refuse(file, {'missing, or no matrix': sorted(set(missing))})
    head = {'mode': 'linear' if count == 1 else 'nonlinear', 'num_layers': count, 'hidden_width': 0,
            'out_dim': last[1], 'norm': True, 'final_norm': True, 'bias': False, 'final_bias': False}
    return head | ({'hidden_width': first[1]} if count > 1 and first[0] != first[1] else {}), layers, norm


def encoder_layers(depth: int, stem: str, sk: bool) -> dict[str, str]:
    """{layer here: layer in the TF2 model}, in the order in which the TF1 code creates and numbers them."""
    of_stem = _STEM_OF_RESNET_D if sk and stem == 'imagenet' else _STEM
    layers = {f'stem_{layer}': f'{STEM}/{place}' for layer, place in of_stem.items()}
    block_type, stage_sizes = DEPTHS[depth]
    if block_type is BottleneckBlock:
        shortcut, path, of_block = ('projection_layers', 'conv_relu_dropblock_layers',
                                    _SELECTIVE if sk else _BOTTLENECK)
    else:
        shortcut, path, of_block = 'shortcut_layers', 'conv2d_bn_layers', _BASIC
    for stage, num_blocks in enumerate(stage_sizes):
        first = (2 if stage else 1) if sk else 0        # of a shortcut, after padding and pooling
        for block in range(num_blocks):
            ours, official = f'stage{stage + 1}_block{block + 1}', f'block_groups/{stage}/layers/{block}'
            if block == 0:
                layers[f'{ours}/shortcut_conv'] = f'{official}/{shortcut}/{first}/conv2d'
                layers[f'{ours}/shortcut_norm'] = f'{official}/{shortcut}/{first + 1}/bn'
            layers |= {f'{ours}/{layer}': f'{official}/{path}/{place}' for layer, place in of_block.items()}
    return layers


def encoder_names(depth: int, stem: str, sk: bool, tf1: bool) -> dict[str, str]:
    """{path of weights.tree.expected: name of the variable in the file} of an encoder."""
    names, counts = {}, collections.Counter()
    for ours, official in encoder_layers(depth, stem, sk).items():
        name = f'resnet_model/{official}'
        if tf1:
            kind = 'batch_normalization' if _is_norm(ours) else 'conv2d'
            name = f'base_model/{kind}' + f'_{counts[kind]}' * (counts[kind] > 0)
            counts[kind] += 1
        names |= _variables(f'encoder/{ours}', name)
    return names


def head_names(layers: list[str], norm: str) -> dict[str, str]:
    """The same of a projection head, from the names of its layers and of the BatchNorm in each.

    The last BatchNorm is given a name for the offset that it does not have.
    """
    names = {}
    for index, layer in enumerate(layers, start=1):
        names |= _variables(f'head/dense{index}', f'{layer}/dense')
        names |= _variables(f'head/norm{index}', f'{layer}/{norm}')
    return names


def _is_norm(layer):
    return 'norm' in layer.rsplit('/', 1)[-1]


def _variables(ours, official):
    if not _is_norm(ours):
        return {f'params/{ours}/kernel': f'{official}/kernel'}
    return {path.format(ours): f'{official}/{name}' for path, name in _NORM_VARIABLES.items()}


def infer_encoder(shapes: Mapping[str, tuple[int, ...]], tf1: bool, file: str) -> dict[str, Any]:
    """The fields of models.resnet.ResNet for a file with variables of these shapes.

    Under TF1 names a ResNet-18 or 34 with the CIFAR stem has the same variables with and without SK: it is
    taken to be without.

    Raises:
        ValueError: it is none of the networks that there are, or one that this package does not have.
    """
    excited = [name for name in shapes if '/se_' in name or re.match(r'base_model/conv2d.*/bias', name)]
    if excited:
        raise ValueError(f'{file} has squeeze-and-excitation layers ({excited[0]}): '
                         'networks trained with se_ratio > 0 are not supported.')
    depth, sk, three_convs = _tf1_blocks(shapes, file) if tf1 else _tf2_blocks(shapes, file)
    first = 'base_model/conv2d/kernel' if tf1 else f'resnet_model/{STEM}/0/conv2d/kernel'
    last = first
    if three_convs:
        last = 'base_model/conv2d_2/kernel' if tf1 else f'resnet_model/{STEM}/4/conv2d/kernel'
    stem = 'imagenet' if three_convs or _shape(shapes, first, file)[0] != 3 else 'cifar'
    channels = _shape(shapes, last, file)[3]
    basic = DEPTHS[depth][0] is not BottleneckBlock
    if basic and sk and tf1:
        raise ValueError(f'{file} holds a ResNet-{depth} with selective kernels of the TF1 code, which feeds '
                         'the pooled map to its blocks too: only those of depth 50 and more are supported.')
    return {'depth': depth, 'width': channels / 64, 'stem': stem,
            'sk_ratio': _sk_ratio(shapes, depth, stem, tf1, channels, file) if sk else 0.0,
            'zero_init_last_gamma': True, 'max_pool': 'same', 'conv_padding': 'symmetric',
            'project_first': basic, 'norm_momentum': 0.9, 'norm_epsilon': 1e-5, 'dtype': 'float32'}


def _shape(shapes, name, file):
    if name not in shapes or len(shapes[name]) != 4:
        raise ValueError(f'{file} does not fit the network: {name} is missing, or is not a convolution. '
                         'Nothing was loaded.')
    return shapes[name]


def _tf2_blocks(shapes, file):
    """(depth, selective kernels, three convolutions in the stem)"""
    bottleneck = any('/conv_relu_dropblock_layers/' in name for name in shapes)
    depth = resnet_depth(shapes, r'resnet_model/block_groups/(\d)/layers/(\d{1,3})/', first=0,
                         bottleneck=bottleneck, file=file)
    shortcut = 'projection_layers' if bottleneck else 'shortcut_layers'
    three_convs = f'resnet_model/{STEM}/4/conv2d/kernel' in shapes
    pooled = f'resnet_model/block_groups/0/layers/0/{shortcut}/1/conv2d/kernel' in shapes
    return depth, three_convs or pooled, three_convs


def _tf1_blocks(shapes, file):
    """(depth, selective kernels, three convolutions in the stem), by the number of convolutions."""
    count = counted(shapes, r'base_model/conv2d(?:_(\d{1,4}))?/kernel$')
    for depth in DEPTHS:
        for sk, stem in ((False, 'imagenet'), (True, 'imagenet'), (True, 'cifar')):
            if count == sum(not _is_norm(layer) for layer in encoder_layers(depth, stem, sk)):
                return depth, sk, sk and stem == 'imagenet'
    raise ValueError(f'{file} holds {count} convolutions under base_model, which is not a ResNet of depth '
                     f'{", ".join(map(str, DEPTHS))}, with or without selective kernels.')


def _sk_ratio(shapes, depth, stem, tf1, channels, file):
    """A ratio that gives every squeeze its width, max(int(features * ratio), 32); SimCLRv2's if it does."""
    names = encoder_names(depth, stem, True, tf1)
    widths = {}     # features of a stage -> width of its squeeze
    for path, name in names.items():
        match = re.fullmatch(r'params/encoder/stage(\d)_block1/conv2/squeeze_conv/kernel', path)
        if match:
            widths[channels * 2 ** (int(match[1]) - 1)] = _shape(shapes, name, file)[3]
    for ratio in (_SK_RATIO, *((width + half) / features for features, width in widths.items()
                               for half in (0, 0.5))):
        if all(width == max(int(features * ratio), 32) for features, width in widths.items()):
            return ratio
    raise ValueError(f'{file} squeezes {list(widths)} channels to {list(widths.values())}, '
                     'which no sk_ratio gives.')
