"""Checkpoints of google-research/simclr, v1 and v2, as encoders of this package.

Read are TF2 object-based checkpoints, SavedModels and checkpoints with the TF1 variable names. A file is
taken whole: each variable fills its place, or is a known extra (optimizer, step, moving average of the
weights), or the file is refused.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.weights.read.official_layout import encoder_names, head_names, infer_encoder
from simclr_jax.weights.tree import CLASSIFIER, Imported, feature_width, fit, refuse

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


def _some(names, count=4):
    return ', '.join(sorted(names)[:count]) or 'no variables'


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
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'{what} cannot be read: it is damaged or incomplete ({lines[0][:200]}).') from error


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
    matches = [re.match(re.escape(base) + r'(\d{1,3})/', name) for name in shapes]
    count = max((int(match[1]) + 1 for match in matches if match), default=0)
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
