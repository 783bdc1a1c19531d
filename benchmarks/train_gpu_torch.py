"""The PyTorch side of train_gpu.py: the same network, head, loss, optimiser and augmentation, in plain words.

What both sides share stands here, where it is read without jax, and without torch too.
"""

import math
import os

SIZE, AREA, ASPECT = 32, (0.5, 1.0), (3 / 4, 4 / 3)         # the crops of configs/fashion_mnist.py
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BRIGHTNESS = CONTRAST = SATURATION = 0.4                    # strength 0.5, as for CIFAR-10
HUE = 0.1
HEAD_LAYERS, OUT_DIM, TEMPERATURE = 3, 128, 0.2
RATE, MOMENTUM, DECAY = 0.06, 0.9, 5e-4                     # the rate per 256 images
KNN_K, KNN_TEMPERATURE = 200, 0.07


def warmup_of(options):
    return min(100, options.max_steps // 10)


def canonical(shapes):
    """Shapes in an order that does not depend on names and layouts."""
    return sorted(sorted(shape) for shape in shapes)


def torch_network(options):
    """images [N, 3, S, S] -> (features [N, D], projections [N, OUT_DIM]), as models/resnet.py, heads.py."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(inputs, outputs, size, stride=1):
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(layer.weight, nonlinearity='linear')
        return layer

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1, self.norm1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.norm2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            nn.init.zeros_(self.norm2.weight)
            self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
            return F.relu(y + self.shortcut(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            channels = int(64 * options.width)
            layers, inputs = [conv(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()], channels
            for stage, count in enumerate(BLOCKS[options.depth]):
                outputs = channels * 2 ** stage
                for block in range(count):
                    layers.append(Block(inputs, outputs, 2 if stage and not block else 1))
                    inputs = outputs
            self.encoder = nn.Sequential(*layers)
            widths = [inputs] * HEAD_LAYERS + [OUT_DIM]
            self.dense = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:]))
            self.norms = nn.ModuleList(map(nn.BatchNorm1d, widths[1:]))
            for layer in self.dense:
                nn.init.normal_(layer.weight, std=0.01)
            del self.norms[-1].bias                         # the last norm has no offset to learn
            self.norms[-1].register_buffer('bias', torch.zeros(OUT_DIM))

        def forward(self, images):
            features = self.encoder(images).float().mean((2, 3))
            x = features
            for index, (dense, norm) in enumerate(zip(self.dense, self.norms)):
                x = norm(dense(x).float())
                x = F.relu(x) if index < HEAD_LAYERS - 1 else x
            return features, x

    return Network()


def torch_crop(images, torch):
    """A random box of each of images [N, 3, H, W], by torchvision's law, resized, flipped: [N, 3, S, S]."""
    n, _, height, width = images.shape
    draws = torch.rand(5, n, 10, device=images.device)
    area = height * width * (AREA[0] + draws[0] * (AREA[1] - AREA[0]))
    low, high = map(math.log, ASPECT)
    aspect = torch.exp(low + draws[1] * (high - low))
    sizes = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()], -1)  # [N, 10, 2]
    limit = torch.tensor([height, width], device=images.device)
    fits = (sizes <= limit).all(-1)
    first = fits.float().argmax(1)
    chosen = torch.where(fits.any(1)[:, None], sizes[torch.arange(n, device=images.device), first], limit)
    begin = (draws[2:4, :, 0].T * (limit - chosen + 1)).floor()
    place = (torch.arange(SIZE, device=images.device) + 0.5) / SIZE
    spots = 2 * (begin[:, None] + place[:, None] * chosen[:, None]) / limit - 1                  # [N, S, 2]
    y, x = spots[..., 0], spots[..., 1]
    x = torch.where(draws[4, :, :1] < 0.5, x.flip(1), x)
    grid = torch.stack([x[:, None].expand(-1, SIZE, -1), y[:, :, None].expand(-1, -1, SIZE)], -1)
    return torch.nn.functional.grid_sample(images, grid, mode='bicubic', padding_mode='border',
                                           align_corners=False)


def torch_hue(x, delta, torch):
    """The hue of x [N, 3, S, S] turned by delta [N, 1, 1, 1] of a circle: the formula of device_ops.py."""
    red, green, blue = x.unbind(1)
    most, least = x.amax(1), x.amin(1)
    span = most - least
    sixths = torch.where(most == red, green - blue, torch.where(most == green, blue - red, red - green))
    sixths = sixths / torch.where(span > 0, span, 1)
    sixths = sixths + torch.where(most == red, 0.0, torch.where(most == green, 2.0, 4.0))
    offset = torch.tensor([0.0, 4.0, 2.0], device=x.device)[:, None, None]
    turned = (sixths[:, None] + 6 * delta + offset) % 6
    return least[:, None] + span[:, None] * ((turned - 3).abs() - 1).clamp(0, 1)


def torch_saturation(x, factor, torch):
    most, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    return most - (most - x) * torch.minimum(factor, most / torch.where(most > least, most - least, 1))


def torch_views(images, torch):
    """Views [N, 3, S, S] in [0, 1] of uint8 images [N, 3, H, W]: jitter with masks, in random order."""
    x = torch_crop(images.float() / 255, torch)
    draws = torch.rand(6, len(x), 1, 1, 1, device=x.device)
    order = torch.rand(len(x), 4, device=x.device).argsort(1)[..., None, None, None]
    brightness, contrast, saturation = (1 + strength * (2 * draw - 1) for strength, draw in
                                        zip((BRIGHTNESS, CONTRAST, SATURATION), draws))
    jittered = x
    for turn in range(4):
        mean = jittered.mean((2, 3), keepdim=True)
        results = (jittered * brightness, (jittered - mean) * contrast + mean,
                   torch_saturation(jittered, saturation, torch),
                   torch_hue(jittered, HUE * (2 * draws[3] - 1), torch))
        for operation, result in enumerate(results):
            jittered = torch.where(order[:, turn] == operation, result, jittered)
        jittered = jittered.clamp(0, 1)
    x = torch.where(draws[4] < 0.8, jittered, x)
    grey = (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand(-1, 3, -1, -1)
    return torch.where(draws[5] < 0.2, grey, x).clamp(0, 1)


def torch_nt_xent(projections, torch):
    """The mean over the 2N anchors; row i and row i + N are two views of an image."""
    z = torch.nn.functional.normalize(projections.float())
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-math.inf)
    positive = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return torch.nn.functional.cross_entropy(similarity, positive)


def torch_data(options, device, torch):
    """{split: (uint8 [N, 3, H, W], labels [N])} on the device."""
    import numpy as np

    arrays, data = np.load(options.data), {}
    for split in ('train', 'test'):
        images, labels = (arrays[f'{split}_{kind}'][:options.images or None]
                          for kind in ('images', 'labels'))
        images = torch.from_numpy(images.reshape(*images.shape[:3], -1)).to(device).permute(0, 3, 1, 2)
        data[split] = images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long().to(device)
    return data


def torch_trainer(options, compiled):
    import torch

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if device.type == 'cpu':
        torch.set_num_threads(len(os.sched_getaffinity(0)))     # as many as XLA takes
    data = torch_data(options, device, torch)
    images = data['train'][0]
    network = torch_network(options).to(device, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    shapes = canonical(p.shape for p in parameters)
    groups = [{'params': [p for p in parameters if p.ndim > 1], 'weight_decay': DECAY},
              {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, fused=device.type == 'cuda')
    wrap = torch.compile if compiled else lambda function: function
    autocast = torch.autocast(device.type, torch.bfloat16)
    views_of = wrap(lambda rows: torch_views(rows, torch).contiguous(memory_format=torch.channels_last))
    forward, loss_of = wrap(network), wrap(lambda projections: torch_nt_xent(projections, torch))
    rows, step = torch.empty(0, dtype=torch.long, device=device), 0

    def rate_at(step):
        warmup, peak = warmup_of(options), RATE * options.batch / 256
        progress = min(max((step - warmup) / max(options.max_steps - warmup, 1), 0), 1)
        return peak * (step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress)))

    def run(count):
        nonlocal rows, step
        network.train()
        for _ in range(count):
            if len(rows) < options.batch:
                rows = torch.cat([rows, torch.randperm(len(images), device=device)])
            index, rows = rows[:options.batch], rows[options.batch:]
            for group in optimizer.param_groups:
                group['lr'] = rate_at(step)
            both = views_of(images[index].repeat(2, 1, 1, 1))
            with autocast:
                projections = forward(both)[1]
            loss = loss_of(projections)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        return float(loss.detach())

    def facts():
        gpu = device.type == 'cuda'
        return {'gpu': gpu, 'device': torch.cuda.get_device_name() if gpu else 'cpu', 'shapes': shapes,
                'version': torch.__version__, 'peak': torch.cuda.max_memory_allocated() if gpu else None}

    return run, lambda: torch_knn(network, data, autocast, torch), facts


def torch_knn(network, data, autocast, torch):
    """The accuracy of evaluate/knn.py."""
    network.eval()
    features = {}
    with torch.inference_mode():
        for split, (images, _) in data.items():
            with autocast:
                parts = [network(torch.nn.functional.interpolate(
                    part.float() / 255, (SIZE, SIZE), mode='bicubic').clamp(0, 1).contiguous(
                        memory_format=torch.channels_last))[0] for part in images.split(2000)]
            features[split] = torch.nn.functional.normalize(torch.cat(parts).float())
        hits, labels = 0, data['train'][1]
        for part, truth in zip(features['test'].split(512), data['test'][1].split(512)):
            nearest, index = (part @ features['train'].T).topk(min(KNN_K, len(labels)))
            votes = torch.zeros(len(part), 10, device=part.device)
            votes.scatter_add_(1, labels[index], ((nearest - 1) / KNN_TEMPERATURE).exp())
            hits += int((votes.argmax(1) == truth).sum())
    return hits / len(features['test'])
