"""The operations of an encoder one after the other, for formats that have operations of their own.

`features` walks the network once and asks for each operation of `Operations` in turn. ONNX and TensorFlow
each give these twelve, so that there is one description of the network beside `models.resnet`.
What a format computes is compared with `models.resnet` itself before it is published (`weights.export`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from simclr_jax.models.resnet import DEPTHS


class Operations(Protocol):
    """What a format must be able to do. Values are its own: names in a graph, symbolic tensors.

    Maps are [B, H, W, C] or [B, C, H, W] as the format likes: nothing here depends on it.
    """

    def convolve(self, x: Any, kernel: np.ndarray, stride: int, padding: int | str, name: str) -> Any:
        """By kernel [K, K, C, D]; padding: pixels on every side, or 'same' as TensorFlow and XLA."""

    def normalize(self, x: Any, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray,
                  epsilon: float, name: str) -> Any:
        """(x - mean) / sqrt(var + epsilon) * scale + bias per channel, of maps or of vectors [B, C]."""

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""

    def max_pool(self, x: Any, padding: int | str) -> Any:
        """Over 3x3 with stride 2; x is never negative."""

    def average_pool(self, x: Any, stride: int) -> Any:
        """Over 2x2 with one zero row below and one column right; they count at stride 2 alone."""

    def mean_pixels(self, x: Any) -> Any:
        """Over height and width, which stay as axes of length 1."""

    def flatten(self, x: Any) -> Any:
        """Maps of 1x1 pixel -> vectors [B, C]."""

    def multiply_matrix(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None, name: str) -> Any:
        """Vectors [B, C] by kernel [C, D], plus bias [D]."""

    def halves(self, x: Any) -> tuple[Any, Any]:
        """The first and the second half of the channels."""

    def add(self, x: Any, y: Any) -> Any:
        """x + y."""

    def subtract(self, x: Any, y: Any) -> Any:
        """x - y."""

    def blend(self, x: Any, y: Any, logit: Any) -> Any:
        """y + sigmoid(logit) * (x - y), the logit being one for all pixels of a channel."""


class _Part(NamedTuple):
    """The parameters and statistics of a module, and where it stands."""

    params: Mapping[str, Any]
    stats: Mapping[str, Any]
    path: str

    def __getitem__(self, name: str) -> '_Part':
        return _Part(self.params[name], self.stats.get(name, {}), f'{self.path}/{name}'.lstrip('/'))


def features(operations: Operations, images: Any, variables: Mapping[str, Any], *,
             encoder: Mapping[str, Any], head: Mapping[str, Any], layer: int = 0) -> Any:
    """Normalised images -> [B, D]: the encoder's features, or the output of a layer of the head.

    Args:
        variables: {'params', 'batch_stats'}, each {'encoder', 'head'}; numpy float32.
        encoder, head: fields of `models.resnet.ResNet` and `models.heads.ProjectionHead`; of a dtype no
            notice is taken: everything is float32.
        layer: 0 for h, k for head layer k, -1 for the projection.

    Raises:
        ValueError: the head has no such layer.
    """
    stats = variables.get('batch_stats', {})
    whole = _Part(variables['params'], stats, '')
    x = _encode(operations, images, whole['encoder'], dict(encoder))
    count = head_layers(head)
    if not -count - 1 <= layer <= count:
        raise ValueError(f'layer is {layer}: the head has layers 0 (features) to {count} (projection), '
                         'which is also -1.')
    epsilon = head.get('norm_epsilon', encoder.get('norm_epsilon', 1e-5))       # as make_network shares it
    for index in range(1, layer % (count + 1) + 1):
        x = _head_layer(operations, x, whole['head'], index, epsilon, last=index == count)
    return x


def head_layers(head: Mapping[str, Any]) -> int:
    """How many layers a head has beyond the features."""
    return {'none': 0, 'linear': 1}.get(head.get('mode', 'nonlinear'), head.get('num_layers', 3))


def normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, std) as float32 [3]; None where they change nothing."""
    if not np.any(mean) and np.all(np.equal(std, 1)):
        return None
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


# ---- the network -----------------------------------------------------------------------------------


def _encode(operations, x, part, fields):
    convolve, normalize = _layers(operations, fields)
    if 'stem_conv' in part.params:
        cifar = fields.get('stem') == 'cifar'
        x = convolve(x, part['stem_conv'], 1 if cifar else 2)
        x = operations.relu(normalize(x, part['stem_norm']))
    else:                                   # ResNet-D
        cifar = False
        for index in (1, 2, 3):
            x = convolve(x, part[f'stem_conv{index}'], 2 if index == 1 else 1)
            x = operations.relu(normalize(x, part[f'stem_norm{index}']))
    if not cifar:
        x = operations.max_pool(x, 1 if fields.get('max_pool', 'torch') == 'torch' else 'same')
    for stage, num_blocks in enumerate(DEPTHS[fields['depth']][1]):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(operations, x, part[f'stage{stage + 1}_block{block + 1}'], stride, fields)
    return operations.flatten(operations.mean_pixels(x))


def _layers(operations, fields):
    """Convolution and BatchNorm of a part, with the conventions of the encoder."""
    def convolve(x, part, stride=1):
        kernel = np.asarray(part.params['kernel'])
        symmetric = stride == 1 or fields.get('conv_padding', 'symmetric') == 'symmetric'
        padding = kernel.shape[0] // 2 if symmetric else 'same'
        return operations.convolve(x, kernel, stride, padding, part.path)

    def normalize(x, part):
        return _normalize(operations, x, part, fields.get('norm_epsilon', 1e-5))

    return convolve, normalize


def _normalize(operations, x, part, epsilon):
    params, stats = part.params, part.stats
    bias = params.get('bias', np.zeros_like(params['scale']))
    return operations.normalize(x, *(np.asarray(array) for array in (
        params['scale'], bias, stats['mean'], stats['var'])), epsilon, part.path)


def _block(operations, x, part, stride, fields):
    convolve, normalize = _layers(operations, fields)
    relu = operations.relu
    if 'conv3' in part.params:              # a bottleneck
        y = relu(normalize(convolve(x, part['conv1']), part['norm1']))
        if fields.get('sk_ratio', 0) > 0:
            y = _selective_kernel(operations, y, part['conv2'], stride, fields)
        else:
            y = relu(normalize(convolve(y, part['conv2'], stride), part['norm2']))
        y = normalize(convolve(y, part['conv3']), part['norm3'])
    else:
        y = relu(normalize(convolve(x, part['conv1'], stride), part['norm1']))
        y = normalize(convolve(y, part['conv2']), part['norm2'])
    if 'shortcut_conv' in part.params:
        if fields.get('sk_ratio', 0) > 0:   # ResNet-D
            x, stride = operations.average_pool(x, stride), 1
        x = normalize(convolve(x, part['shortcut_conv'], stride), part['shortcut_norm'])
    return relu(operations.add(y, x))


def _selective_kernel(operations, x, part, stride, fields):
    convolve, normalize = _layers(operations, fields)
    x = operations.relu(normalize(convolve(x, part['conv'], stride), part['norm']))
    first, second = operations.halves(x)
    pooled = operations.mean_pixels(operations.add(first, second))
    pooled = operations.relu(normalize(convolve(pooled, part['squeeze_conv']), part['squeeze_norm']))
    logits = operations.halves(convolve(pooled, part['mixing_conv']))
    # A softmax over two is the sigmoid of their difference.
    return operations.blend(first, second, operations.subtract(*logits))


def _head_layer(operations, x, part, index, epsilon, *, last):
    params, path = part[f'dense{index}'].params, part[f'dense{index}'].path
    x = operations.multiply_matrix(x, np.asarray(params['kernel']), params.get('bias'), path)
    if f'norm{index}' in part.params:
        x = _normalize(operations, x, part[f'norm{index}'], epsilon)
    return x if last else operations.relu(x)
