"""Encoders of simclr_jax in PyTorch. Needs torch, timm and safetensors; nothing of simclr_jax and no JAX.

    from torch_model import load
    encoder, head, card = load('encoder.safetensors')
    mean, std = (torch.tensor(card[name]).reshape(3, 1, 1) for name in ('mean', 'std'))
    features = encoder((images - mean) / std)       # images [B, 3, H, W] in [0, 1] -> [B, D] float32
    projections = head(features)                    # where there is a head

The encoder is timm's own ResNet, ViT or ConvNeXt, in evaluation mode. What SimCLR does in another way holds
no parameters and is put in: TensorFlow's padding, where the card asks for it, and the pooling of ResNet-D's shortcuts.
Training mode differs from simclr_jax in one thing: torch keeps the running variance of n - 1 values,
simclr_jax (as TensorFlow) that of n. Outputs are the same.
"""

import json
import os
import pathlib
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.layers import Conv2dSame, create_pool2d
from timm.layers.selective_kernel import SelectiveKernelAttn
from timm.models.convnext import ConvNeXt
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_avg, downsample_conv
from timm.models.sknet import SelectiveKernelBottleneck
from timm.models.vision_transformer import VisionTransformer

Encoder = ResNet | VisionTransformer | ConvNeXt

_KEY = 'simclr_jax'


def load(path: str | os.PathLike) -> tuple[Encoder, torch.nn.Sequential | None, dict]:
    """(encoder, head, card) of an exported encoder.safetensors, both in evaluation mode.

    The encoder returns features [B, D], or logits where the file has a classifier: then
    `encoder.reset_classifier(0)` leaves the features. The head is None where no head.safetensors
    stands beside the file.

    Raises:
        ValueError: the file is no export, or the head is that of another encoder.
        RuntimeError: names or shapes do not fit (strict loading).
    """
    path = pathlib.Path(path)
    card = read_card(path)
    encoder = build(card)
    encoder.load_state_dict(safetensors.torch.load_file(path), strict=True)
    head, head_path = build_head(card), path.with_name('head.safetensors')
    if head is None or not head_path.exists():
        return encoder.eval(), None, card
    if read_card(head_path)['torch']['pair'] != card['torch']['pair']:
        raise ValueError(f'{head_path} and {path} come from different exports: put the head of this encoder '
                         'beside it, or take the other away.')
    head.load_state_dict(safetensors.torch.load_file(head_path), strict=True)
    return encoder.eval(), head.eval(), card


def save(path: str | os.PathLike, encoder: Encoder, card: dict,
         head: torch.nn.Sequential | None = None) -> None:
    """Writes what `load` gave and was trained on, so that simclr_jax reads it again: encoder.safetensors.

    The head goes to head.safetensors beside it. Without one that file, of an earlier encoder, goes away.
    """
    path, head_path = pathlib.Path(path), pathlib.Path(path).with_name('head.safetensors')
    card = {**card, 'torch': {**card['torch'], 'pair': os.urandom(8).hex(),
                              'num_classes': encoder.num_classes}}
    if head is None:
        head_path.unlink(missing_ok=True)
    else:
        _write(head_path, head, card)
    _write(path, encoder, card)


def read_card(path: str | os.PathLike) -> dict:
    """What an exported file says of itself: fields of the network, preprocessing, recipe."""
    with safetensors.safe_open(path, framework='pt') as file:
        text = (file.metadata() or {}).get(_KEY)
    card = json.loads(text) if text else {}
    if card.get('layout') != 'torch':
        raise ValueError(f'{path} is not an export of simclr_jax for PyTorch.')
    return card


def build(card: dict) -> Encoder:
    """timm's encoder with random weights, of the architecture in `card`; see `load` for trained ones.

    Raises:
        ValueError: the number of channels is odd, which timm's class cannot have.
    """
    fields, shape = card['encoder'], card['torch']
    if 'timm' in shape:
        kind = {'VisionTransformer': VisionTransformer, 'ConvNeXt': ConvNeXt}[shape['timm']['class']]
        arguments = shape['timm']['arguments'] | {'num_classes': shape['num_classes']}
        if kind is not ConvNeXt or arguments['patch_size'] != 2:
            return kind(**arguments)
        # Behind a patch of 2, timm's halves the image once more before its first stage.
        encoder = ConvNeXt(**arguments | {'patch_size': 4})
        encoder.stem[0] = torch.nn.Conv2d(3, arguments['dims'][0], 2, 2)
        return encoder
    channels, selective = shape['channels'], fields['sk_ratio'] > 0
    if channels % 2:
        raise ValueError(f'timm has no ResNet of {channels} channels: the width must give an even number.')
    of_bottlenecks = SelectiveKernelBottleneck if selective else Bottleneck
    block: Any = of_bottlenecks if shape['bottleneck'] else BasicBlock
    arguments = {'sk_kwargs': {'kernel_size': [3, 3], 'split_input': False}}
    # timm has stems of other widths than 64 among the deep ones alone.
    encoder: Any = ResNet(
        block, shape['blocks'], num_classes=shape['num_classes'], stem_type='deep', stem_width=channels // 2,
        channels=tuple(channels * 2 ** stage for stage in range(4)), avg_down=selective,
        zero_init_last=fields['zero_init_last_gamma'],
        block_args=arguments if block is SelectiveKernelBottleneck else None)
    if fields['stem'] == 'cifar':
        encoder.conv1 = torch.nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        encoder.maxpool = torch.nn.Identity()
    elif not selective:
        encoder.conv1 = torch.nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    if fields['max_pool'] == 'same' and fields['stem'] != 'cifar':
        encoder.maxpool = create_pool2d('max', 3, 2, padding='same')
    if not shape['bottleneck'] and fields.get('project_first', False):
        make = downsample_avg if selective else downsample_conv
        encoder.layer1[0].downsample = make(channels, channels, 1)
    if selective:
        _as_simclr(encoder, fields['sk_ratio'])
    if fields.get('conv_padding', 'symmetric') == 'same':
        _pad_as_tensorflow(encoder)
    _set_norms(encoder, fields)
    return encoder


def build_head(card: dict) -> torch.nn.Sequential | None:
    """The projection head with random weights: Linear, BatchNorm1d and ReLU; None where there is none."""
    layers, modules = card['torch']['head'], []
    for index, (name, shape) in enumerate(layers):
        dense = name.startswith('dense')
        last = not any(later.startswith('dense') for later, _ in layers[index + 1:])
        if dense and modules:
            modules.append(torch.nn.ReLU())
        if dense:
            modules.append(torch.nn.Linear(*shape, bias=card['head']['final_bias' if last else 'bias']))
        else:
            modules.append(torch.nn.BatchNorm1d(*shape))
            # SimCLR's last norm has no offset; here it is zero and stays so.
            modules[-1].bias.requires_grad_(not last)
    if not layers:
        return None
    head = torch.nn.Sequential(*modules)
    _set_norms(head, card['head'])
    return head


def _as_simclr(encoder, ratio):
    """ResNet-D's shortcuts and the squeeze of selective kernels as SimCLRv2 has them (tf2/resnet.py)."""
    for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in stage:
            if block.downsample is not None:
                # At stride 2 the padding is zero and counts; at stride 1 the average is over real pixels,
                # which repeating the last row and column gives.
                stride = 1 if stage is encoder.layer1 else 2
                pad = torch.nn.ReplicationPad2d if stride == 1 else torch.nn.ZeroPad2d
                block.downsample[0] = torch.nn.Sequential(pad((0, 1, 0, 1)), torch.nn.AvgPool2d(2, stride))
            if isinstance(block, SelectiveKernelBottleneck):
                channels: Any = block.conv3.conv.in_channels
                block.conv2.attn = SelectiveKernelAttn(channels, 2, max(int(channels * ratio), 32))


def _pad_as_tensorflow(encoder):
    for module in list(encoder.modules()):
        for name, conv in module.named_children():
            if isinstance(conv, torch.nn.Conv2d) and conv.stride != (1, 1):
                setattr(module, name, Conv2dSame(conv.in_channels, conv.out_channels, conv.kernel_size,
                                                 conv.stride, bias=False))


def _set_norms(network, fields):
    for module in network.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.eps, module.momentum = fields['norm_epsilon'], 1 - fields['norm_momentum']


def _write(path, module, card):
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    try:
        safetensors.torch.save_file(arrays, temporary, metadata={'format': 'pt', _KEY: json.dumps(card)})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
