"""The official TF2 model in plain TensorFlow operations, and its checkpoints: an oracle for the importer.

Transcribed from google-research/simclr tf2/resnet.py, tf2/model.py and tf2/run.py (evaluation mode). It
shares nothing with simclr_jax. The attributes of the modules are those of the official Keras layers, so that
a checkpoint of `OfficialModel` has the official paths; `tf1_variables` gives the names of the TF1 code, which
numbers layers in the order in which a forward pass meets them. The forward pass computes in float64.
"""

import functools

import numpy as np
import tensorflow as tf

SIZES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 14: (2, 1, 1, 1)}      # the last one of bottlenecks, for the tests


class Weights:
    """Draws the variables of a model: of no entry is there a special value."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def kernel(self, *shape):
        scale = np.sqrt(1.0 / np.prod(shape[:-1]))
        return tf.Variable(self.rng.normal(0, scale, shape).astype(np.float32))

    def uniform(self, low, high, size):
        return tf.Variable(self.rng.uniform(low, high, size).astype(np.float32))


class Conv2D(tf.Module):
    def __init__(self, weights, size, inputs, outputs, strides=1, padding='SAME'):
        self.kernel = weights.kernel(size, size, inputs, outputs)
        self._strides, self._padding = strides, padding

    def __call__(self, x, calls):
        calls.append((self, 'conv2d'))
        return tf.nn.conv2d(x, tf.cast(self.kernel, x.dtype), self._strides, self._padding)


class Conv2dFixedPadding(tf.Module):
    def __init__(self, weights, size, inputs, outputs, strides):
        self.conv2d = Conv2D(weights, size, inputs, outputs, strides, 'SAME' if strides == 1 else 'VALID')
        self._size, self._strides = size, strides

    def __call__(self, x, calls):
        if self._strides > 1:
            x = fixed_padding(x, self._size)
        return self.conv2d(x, calls)


def fixed_padding(x, size):
    before = (size - 1) // 2
    after = size - 1 - before
    return tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])


class BatchNormalization(tf.Module):
    def __init__(self, weights, channels, center=True):
        self.gamma = weights.uniform(0.5, 1.5, channels)
        self.beta = weights.uniform(-0.3, 0.3, channels) if center else None
        self.moving_mean = weights.uniform(-0.3, 0.3, channels)
        self.moving_variance = weights.uniform(0.5, 1.5, channels)

    def __call__(self, x):
        cast = lambda variable: tf.cast(variable, x.dtype)
        y = (x - cast(self.moving_mean)) / tf.sqrt(cast(self.moving_variance) + 1e-5) * cast(self.gamma)
        return y if self.beta is None else y + cast(self.beta)


class BatchNormRelu(tf.Module):
    def __init__(self, weights, channels, relu=True, center=True):
        self.bn = BatchNormalization(weights, channels, center)
        self._relu = relu

    def __call__(self, x, calls):
        calls.append((self.bn, 'batch_normalization'))
        x = self.bn(x)
        return tf.nn.relu(x) if self._relu else x


class Plain(tf.Module):
    """A layer without variables: padding, pooling, identity, DropBlock."""

    def __init__(self, function=lambda x: x):
        self._function = function

    def __call__(self, x, calls):
        return self._function(x)


class SK_Conv2D(tf.Module):
    def __init__(self, weights, inputs, filters, strides, sk_ratio):
        self.conv2d_fixed_padding = Conv2dFixedPadding(weights, 3, inputs, 2 * filters, strides)
        self.batch_norm_relu = BatchNormRelu(weights, 2 * filters)
        middle = max(int(filters * sk_ratio), 32)
        self.conv2d_0 = Conv2D(weights, 1, filters, middle)
        self.batch_norm_relu_1 = BatchNormRelu(weights, middle)
        self.conv2d_1 = Conv2D(weights, 1, middle, 2 * filters)

    def __call__(self, x, calls):
        x = self.batch_norm_relu(self.conv2d_fixed_padding(x, calls), calls)
        x = tf.stack(tf.split(x, 2, axis=3))
        pooled = tf.reduce_mean(tf.reduce_sum(x, axis=0), [1, 2], keepdims=True)
        pooled = self.batch_norm_relu_1(self.conv2d_0(pooled, calls), calls)
        mixing = tf.stack(tf.split(self.conv2d_1(pooled, calls), 2, axis=3))
        return tf.reduce_sum(x * tf.nn.softmax(mixing, axis=0), axis=0)


def shortcut_layers(weights, inputs, filters, strides, sk_ratio):
    layers = []
    if sk_ratio > 0:
        if strides > 1:
            layers.append(Plain(lambda x: fixed_padding(x, 2)))
        layers.append(Plain(lambda x: tf.nn.avg_pool2d(x, 2, strides, 'SAME' if strides == 1 else 'VALID')))
    layers.append(Conv2dFixedPadding(weights, 1, inputs, filters, 1 if sk_ratio > 0 else strides))
    layers.append(BatchNormRelu(weights, filters, relu=False))
    return layers


def run(layers, x, calls):
    for layer in layers:
        x = layer(x, calls)
    return x


class ResidualBlock(tf.Module):
    def __init__(self, weights, inputs, filters, strides, use_projection, sk_ratio):
        self.shortcut_layers = (shortcut_layers(weights, inputs, filters, strides, sk_ratio)
                                if use_projection else [])
        self.conv2d_bn_layers = [
            Conv2dFixedPadding(weights, 3, inputs, filters, strides), BatchNormRelu(weights, filters),
            Conv2dFixedPadding(weights, 3, filters, filters, 1), BatchNormRelu(weights, filters, relu=False)]

    def __call__(self, x, calls):
        shortcut = run(self.shortcut_layers, x, calls)
        return tf.nn.relu(run(self.conv2d_bn_layers, x, calls) + shortcut)


class BottleneckBlock(tf.Module):
    def __init__(self, weights, inputs, filters, strides, use_projection, sk_ratio):
        self.projection_layers = (shortcut_layers(weights, inputs, 4 * filters, strides, sk_ratio)
                                  if use_projection else [])
        if sk_ratio > 0:
            middle = [SK_Conv2D(weights, filters, filters, strides, sk_ratio)]
        else:
            middle = [Conv2dFixedPadding(weights, 3, filters, filters, strides),
                      BatchNormRelu(weights, filters)]
        self.conv_relu_dropblock_layers = [
            Conv2dFixedPadding(weights, 1, inputs, filters, 1), BatchNormRelu(weights, filters), Plain(),
            *middle, Plain(),
            Conv2dFixedPadding(weights, 1, filters, 4 * filters, 1),
            BatchNormRelu(weights, 4 * filters, relu=False), Plain()]

    def __call__(self, x, calls):
        shortcut = run(self.projection_layers, x, calls)
        return tf.nn.relu(run(self.conv_relu_dropblock_layers, x, calls) + shortcut)


class BlockGroup(tf.Module):
    def __init__(self, weights, block, expansion, inputs, filters, blocks, strides, sk_ratio):
        self.layers = [block(weights, inputs, filters, strides, True, sk_ratio)]
        for _ in range(1, blocks):
            self.layers.append(block(weights, expansion * filters, filters, 1, False, sk_ratio))

    def __call__(self, x, calls):
        return run(self.layers, x, calls)


class Resnet(tf.Module):
    def __init__(self, weights, depth, channels, cifar_stem, sk_ratio):
        block, expansion = (ResidualBlock, 1) if depth != 14 else (BottleneckBlock, 4)
        conv = functools.partial(Conv2dFixedPadding, weights)
        if cifar_stem:
            stem = [conv(3, 3, channels, 1), Plain(), BatchNormRelu(weights, channels), Plain()]
        else:
            if sk_ratio > 0:
                half = channels // 2
                stem = [conv(3, 3, half, 2), BatchNormRelu(weights, half), conv(3, half, half, 1),
                        BatchNormRelu(weights, half), conv(3, half, channels, 1)]
            else:
                stem = [conv(7, 3, channels, 2)]
            stem += [Plain(), BatchNormRelu(weights, channels),
                     Plain(lambda x: tf.nn.max_pool2d(x, 3, 2, 'SAME')), Plain()]
        self.initial_conv_relu_max_pool = stem
        self.block_groups = []
        inputs = channels
        for index, blocks in enumerate(SIZES[depth]):
            filters = channels * 2 ** index
            self.block_groups.append(BlockGroup(weights, block, expansion, inputs, filters, blocks,
                                                2 if index else 1, sk_ratio))
            inputs = expansion * filters
        self.width = inputs

    def __call__(self, x, calls):
        x = run(self.initial_conv_relu_max_pool, x, calls)
        return tf.reduce_mean(run(self.block_groups, x, calls), [1, 2])


class Dense(tf.Module):
    def __init__(self, weights, inputs, outputs, use_bias):
        self.kernel = weights.kernel(inputs, outputs)
        self.bias = weights.uniform(-0.3, 0.3, outputs) if use_bias else None

    def __call__(self, x):
        x = x @ tf.cast(self.kernel, x.dtype)
        return x if self.bias is None else x + tf.cast(self.bias, x.dtype)


class LinearLayer(tf.Module):
    def __init__(self, weights, inputs, outputs, use_bias=True, use_bn=False):
        self.dense = Dense(weights, inputs, outputs, use_bias and not use_bn)
        if use_bn:
            self.bn_relu = BatchNormRelu(weights, outputs, relu=False, center=use_bias)

    def __call__(self, x, calls):
        x = self.dense(x)
        return self.bn_relu(x, calls) if hasattr(self, 'bn_relu') else x


class ProjectionHead(tf.Module):
    def __init__(self, weights, inputs, outputs, num_layers):
        self.linear_layers = [LinearLayer(weights, inputs, inputs, True, True) for _ in range(num_layers - 1)]
        self.linear_layers += [LinearLayer(weights, inputs, outputs, False, True)]

    def __call__(self, x, calls):
        hiddens = [x]
        for index, layer in enumerate(self.linear_layers):
            x = layer(x, calls)
            x = x if index == len(self.linear_layers) - 1 else tf.nn.relu(x)
            hiddens.append(x)
        return hiddens


class SupervisedHead(tf.Module):
    def __init__(self, weights, inputs, num_classes):
        self.linear_layer = LinearLayer(weights, inputs, num_classes)

    def __call__(self, x, calls):
        return self.linear_layer(x, calls)


class OfficialModel(tf.Module):
    """channels: of the first stage, 64 * width_multiplier."""

    def __init__(self, depth, channels, *, cifar_stem=False, sk_ratio=0.0, num_proj_layers=3, proj_out_dim=6,
                 num_classes=0, seed=0):
        weights = Weights(seed)
        self.resnet_model = Resnet(weights, depth, channels, cifar_stem, sk_ratio)
        width = self.resnet_model.width
        self._projection_head = ProjectionHead(weights, width, proj_out_dim, num_proj_layers)
        if num_classes:
            self.supervised_head = SupervisedHead(weights, width, num_classes)

    def __call__(self, images):
        """[h, head layer 1, ..., z] and logits (None without a supervised head), float64 numpy arrays."""
        hidden = self.resnet_model(tf.constant(images, tf.float64), [])
        hiddens = [layer.numpy() for layer in self._projection_head(hidden, [])]
        logits = self.supervised_head(hidden, []).numpy() if hasattr(self, 'supervised_head') else None
        return hiddens, logits


def tf1_variables(model):
    """{name of the TF1 code: array}: layers are numbered as a forward pass meets them."""
    calls, named, counts = [], {}, {}
    model.resnet_model(tf.zeros((1, 32, 32, 3)), calls)
    for layer, kind in calls:
        count = counts.get(kind, 0)
        counts[kind] = count + 1
        named |= of_module(layer, f'base_model/{kind}' + (f'_{count}' if count else ''))
    for index, layer in enumerate(model._projection_head.linear_layers):
        named |= of_module(layer.dense, f'head_contrastive/nl_{index}/dense')
        named |= of_module(layer.bn_relu.bn, f'head_contrastive/nl_{index}/batch_normalization')
    if hasattr(model, 'supervised_head'):
        named |= of_module(model.supervised_head.linear_layer.dense, 'head_supervised/linear_layer/dense')
    momentum = {f'{name}/Momentum': np.zeros_like(array) for name, array in named.items()
                if 'moving' not in name}
    ema = {f'ema_model/{name}': 2 * array for name, array in named.items() if name.startswith('base_model/')}
    return named | momentum | ema | {'global_step': np.int64(250228)}


def of_module(module, prefix):
    names = ('kernel', 'bias', 'gamma', 'beta', 'moving_mean', 'moving_variance')
    variables = {name: getattr(module, name, None) for name in names}
    return {f'{prefix}/{name}': variable.numpy() for name, variable in variables.items()
            if variable is not None}


def write_tf1(variables, prefix):
    names = sorted(variables)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[''] * len(names),
                      tensors=[variables[name] for name in names])


def write_tf2(model, prefix):
    """As tf2/run.py does: model, global_step and an optimizer with its momentum for every variable."""
    optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
    kernel = model.resnet_model.initial_conv_relu_max_pool[0].conv2d.kernel
    optimizer.apply_gradients([(tf.zeros_like(kernel), kernel)])
    step = tf.Variable(31279, dtype=tf.int64)
    return tf.train.Checkpoint(model=model, global_step=step, optimizer=optimizer).write(str(prefix))


def write_saved_model(model, directory):
    """As tf2/run.py build_saved_model does: the list of the variables gives most of them their keys."""
    module = tf.Module()
    module.model = model
    module.trainable_variables_list = list(model.variables)
    tf.saved_model.save(module, str(directory))
