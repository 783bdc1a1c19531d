"""The PyTorch side of train_step.py, a program that takes turns: `train_step_torch.py '{"task": ...}'`.

The same network, head, loss and optimiser as ours in plain words; eager, channels-last, compiled, or with
Lightly's head and loss. Needs torch alone, Lightly for the last, and timm for a ViT.
"""

import importlib.util
import json
import math
import os
import sys
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F
from turns import keep_freed_memory, peak_resident, reset_peak, seconds_a_call, serve, timed

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def conv(inputs, outputs, size, stride=1):
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity='linear')
    return layer


def downsample(inputs, outputs, stride):
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.downsample = downsample(inputs, channels, stride)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, 4 * channels, 1), nn.BatchNorm2d(4 * channels)
        self.downsample = downsample(inputs, 4 * channels, stride)
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """images [N, 3, S, S] -> features [N, D] float32, as models/resnet.py."""

    def __init__(self, depth, width, stem):
        super().__init__()
        channels = int(64 * width)
        self.conv1 = conv(3, channels, 3) if stem == 'cifar' else conv(3, channels, 7, 2)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if stem == 'cifar' else nn.MaxPool2d(3, 2, 1)
        block, blocks, inputs = BasicBlock if depth < 50 else Bottleneck, [], channels
        for stage, count in enumerate(BLOCKS[depth]):
            for number in range(count):
                blocks.append(block(inputs, channels * 2 ** stage, 2 if stage and not number else 1))
                inputs = channels * 2 ** stage * block.expansion
        self.blocks, self.features = nn.Sequential(*blocks), inputs

    def forward(self, images):
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        return self.blocks(x).float().mean((2, 3))


def make_encoder(spec):
    if not spec['vit']:
        return ResNet(spec['depth'], spec['width'], spec['stem'])
    import timm

    encoder = timm.create_model(f'vit_{spec["vit"]}_patch16_224', img_size=spec['size'], num_classes=0)
    encoder.pos_embed.requires_grad_(False)                 # MoCo v3's, as ours, are fixed
    encoder.features = encoder.embed_dim
    return encoder


class Head(nn.Module):
    """features [N, D] -> projections [N, out_dim] float32, as models/network.py."""

    def __init__(self, features, num_layers, out_dim):
        super().__init__()
        widths = [features] * num_layers + [out_dim]
        self.dense = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(map(nn.BatchNorm1d, widths[1:]))
        for layer in self.dense:
            nn.init.normal_(layer.weight, std=0.01)
        del self.norms[-1].bias                             # the last norm has no offset to learn
        self.norms[-1].register_buffer('bias', torch.zeros(out_dim))

    def forward(self, x):
        for index, (dense, norm) in enumerate(zip(self.dense, self.norms)):
            x = F.relu(x) if index else x
            x = norm(dense(x).float())
        return x


def nt_xent(projections, temperature):
    """The mean over the 2N anchors; row i and row i + N are two views of an image."""
    z = F.normalize(projections.float())
    similarity = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    positive = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similarity, positive)


def lightly_parts(features, spec):
    """(head, loss of two projections) as in Lightly's SimCLR example: the views go through one by one."""
    if importlib.util.find_spec('torchvision') is None:     # Lightly imports it, and does not need it here
        for name in ('', '.ops', '.models', '.models.vision_transformer', '.transforms'):
            sys.modules[f'torchvision{name}'] = mock.MagicMock()
    from lightly.loss.ntx_ent_loss import NTXentLoss
    from lightly.models.modules.heads import SimCLRProjectionHead

    head = SimCLRProjectionHead(features, features, spec['out_dim'])
    return head, NTXentLoss(temperature=spec['temperature'])


class Training:
    """Steps on prepared views, or with a data set and its views made on the device."""

    def __init__(self, spec):
        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.spec, self.step = spec, 0
        self.layout = (torch.contiguous_format if spec['contender'] in ('eager', 'lightly')
                       else torch.channels_last)
        wrap = torch.compile if spec['contender'] == 'compiled' else lambda function: function
        self.encoder = make_encoder(spec)
        self._set_up_loss(wrap)
        self.network.to(DEVICE, memory_format=self.layout)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        groups = [{'params': [p for p in parameters if p.ndim > 1], 'weight_decay': spec['decay']},
                  {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=spec['momentum'], fused=True)
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=spec['dtype'] == 'bfloat16')
        self.views_of = self._prepared_views() if not spec['augmented'] else self._views_of_data(wrap)

    def _set_up_loss(self, wrap):
        spec = self.spec
        if spec['contender'] == 'lightly':
            head, loss = lightly_parts(self.encoder.features, spec)
            self.network = nn.Sequential(self.encoder, head)
            self.loss_of = lambda views: loss(*(self.network(part) for part in views.chunk(2)))
            return
        self.network = nn.Sequential(
            self.encoder, Head(self.encoder.features, spec['head_layers'], spec['out_dim']))
        project = wrap(self.network)
        contrast = wrap(lambda projections: nt_xent(projections, spec['temperature']))

        def loss_of(views):
            projections = project(views)
            with torch.autocast(DEVICE.type, enabled=False):
                return contrast(projections)

        self.loss_of = loss_of

    def _prepared_views(self):
        views = torch.rand(2 * self.spec['batch'], 3, *2 * [self.spec['size']], device=DEVICE)
        views = views.contiguous(memory_format=self.layout)
        return lambda: views

    def _views_of_data(self, wrap):
        import torch_views

        self.data = torch_views.load(self.spec['data'], DEVICE)
        images, rows = self.data['train'][0], torch.empty(0, dtype=torch.long, device=DEVICE)
        make = wrap(lambda images: torch_views.views(images, self.spec).contiguous(
            memory_format=self.layout))

        def views_of():
            nonlocal rows
            if len(rows) < self.spec['batch']:
                rows = torch.cat([rows, torch.randperm(len(images), device=DEVICE)])
            index, rows = rows[:self.spec['batch']], rows[self.spec['batch']:]
            return make(images[index].repeat(2, 1, 1, 1))

        return views_of

    def _rate(self):
        spec, peak = self.spec, self.spec['rate'] * self.spec['batch'] / 256
        if self.step < spec['warmup']:
            return peak * self.step / spec['warmup']
        progress = (self.step - spec['warmup']) / max(spec['max_steps'] - spec['warmup'], 1)
        return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))

    def run(self, count):
        """The loss of the last of `count` steps."""
        self.network.train()
        for _ in range(count):
            for group in self.optimizer.param_groups:
                group['lr'] = self._rate()
            views = self.views_of()
            with self.autocast:
                loss = self.loss_of(views)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
        return float(loss.detach())

    def turn(self, count):
        answer = timed(lambda: self.run(count))
        if DEVICE.type == 'cuda':
            answer['peak'] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()                        # the others need the memory, too
        else:
            answer['peak'] = peak_resident()
        return answer

    def accuracy(self):
        import torch_views

        return {'knn': torch_views.knn_accuracy(self.encoder, self.data, self.autocast, self.spec)}


def matmul(side, dtype):
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=getattr(torch, dtype)) for _ in range(2))
    repeat(lambda: a @ b, 1)
    return {'flops': 2 * side ** 3 / seconds_a_call(lambda count: repeat(lambda: a @ b, count), 0.3)}


def repeat(function, count):
    for _ in range(count):
        function()
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def layer(kind, images, kernel, stride, dtype, budget):
    """Seconds of one convolution, or of one of its gradients; shapes as ours: [N, H, W, C], [k, k, C, F]."""
    n, height, width, channels = images
    size, _, _, features = kernel
    dtype, padding = getattr(torch, dtype), size // 2
    x = torch.randn(n, channels, height, width, device=DEVICE, dtype=dtype)
    w = 0.1 * torch.randn(features, channels, size, size, device=DEVICE, dtype=dtype)
    x, w = (array.contiguous(memory_format=torch.channels_last) for array in (x, w))
    with torch.no_grad():
        def forward():
            return F.conv2d(x, w, stride=stride, padding=padding)

        g = torch.randn_like(forward())

        def gradient():
            return torch.ops.aten.convolution_backward(
                g, x, w, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
                [kind == 'input gradient', kind == 'kernel gradient', False])

        function = forward if kind == 'forward' else gradient
        repeat(function, 1)
        return {'seconds': seconds_a_call(lambda count: repeat(function, count), budget)}


def main():
    spec = json.loads(sys.argv[1])
    keep_freed_memory()
    if DEVICE.type == 'cpu':
        torch.set_num_threads(len(os.sched_getaffinity(0)))     # as many as XLA takes
    versions = {'torch': torch.__version__}
    ready = {'backend': 'gpu' if DEVICE.type == 'cuda' else 'cpu', 'versions': versions,
             'device': torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'cpu'}
    if spec['task'] == 'probe':
        return serve(ready | {'lightly': importlib.util.find_spec('lightly') is not None}, {})
    if spec['task'] == 'layers':
        return serve(ready, {'layer': layer})
    training = Training(spec)
    training.run(1)
    if spec['contender'] == 'lightly':
        versions['lightly'] = sys.modules['lightly'].__version__
    if spec['vit']:
        versions['timm'] = sys.modules['timm'].__version__
    reset_peak()
    shapes = [parameter.shape for parameter in training.network.parameters() if parameter.requires_grad]
    serve(ready | {'shapes': sorted(map(sorted, shapes))}, {
        'steps': training.turn, 'matmul': matmul, 'accuracy': training.accuracy})


if __name__ == '__main__':
    main()
