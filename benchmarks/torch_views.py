"""The views of SimCLR and the kNN accuracy in PyTorch, on the device: for train_step.py's augmented cells.

The views differ from ours in the crop alone: torch's grid_sample has a cubic of a = -0.75 where ours has
-0.5, and sees the pixels beside the box. The images of kNN come from F.interpolate, of a = -0.75 too.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F


def load(path, device):
    """{split: (uint8 [N, 3, H, W], labels [N])} of a .npz file, on the device."""
    arrays, data = np.load(path), {}
    for split in ('train', 'test'):
        images = arrays[f'{split}_images']
        images = torch.from_numpy(images.reshape(*images.shape[:3], -1)).to(device).permute(0, 3, 1, 2)
        labels = torch.from_numpy(arrays[f'{split}_labels']).long().to(device)
        data[split] = images.expand(-1, 3, -1, -1).contiguous(), labels
    return data


def crop(images, spec):
    """A random box of each of images [N, 3, H, W], by torchvision's law, resized, flipped: [N, 3, S, S]."""
    n, _, height, width = images.shape
    (least, most), size, device = spec['area'], spec['size'], images.device
    draws = torch.rand(5, n, 10, device=device)
    area = height * width * (least + draws[0] * (most - least))
    low, high = map(math.log, spec['aspect'])
    aspect = torch.exp(low + draws[1] * (high - low))
    sizes = torch.stack([(area / aspect).sqrt().round(), (area * aspect).sqrt().round()], -1)  # [N, 10, 2]
    limit = torch.tensor([height, width], device=device)
    fits = (sizes <= limit).all(-1)
    first = fits.float().argmax(1)
    chosen = torch.where(fits.any(1)[:, None], sizes[torch.arange(n, device=device), first], limit)
    begin = (draws[2:4, :, 0].T * (limit - chosen + 1)).floor()
    place = (torch.arange(size, device=device) + 0.5) / size
    spots = 2 * (begin[:, None] + place[:, None] * chosen[:, None]) / limit - 1                  # [N, S, 2]
    y, x = spots[..., 0], spots[..., 1]
    x = torch.where(draws[4, :, :1] < 0.5, x.flip(1), x)
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], -1)
    return F.grid_sample(images, grid, mode='bicubic', padding_mode='border', align_corners=False)


def turn_hue(x, delta):
    """The hue of x [N, 3, S, S] turned by delta [N, 1, 1, 1] of a circle: the formula of views/ops.py."""
    red, green, blue = x.unbind(1)
    most, least = x.amax(1), x.amin(1)
    span = most - least
    sixths = torch.where(most == red, green - blue, torch.where(most == green, blue - red, red - green))
    sixths = sixths / torch.where(span > 0, span, 1)
    sixths = sixths + torch.where(most == red, 0.0, torch.where(most == green, 2.0, 4.0))
    offset = torch.tensor([0.0, 4.0, 2.0], device=x.device)[:, None, None]
    turned = (sixths[:, None] + 6 * delta + offset) % 6
    return least[:, None] + span[:, None] * ((turned - 3).abs() - 1).clamp(0, 1)


def saturate(x, factor):
    most, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    return most - (most - x) * torch.minimum(factor, most / torch.where(most > least, most - least, 1))


def views(images, spec):
    """Views [N, 3, S, S] in [0, 1] of uint8 images [N, 3, H, W]: jitter with masks, in random order."""
    x = crop(images.float() / 255, spec)
    draws = torch.rand(6, len(x), 1, 1, 1, device=x.device)
    order = torch.rand(len(x), 4, device=x.device).argsort(1)[..., None, None, None]
    brightness, contrast, saturation = (1 + spec[name] * (2 * draw - 1) for name, draw in
                                        zip(('brightness', 'contrast', 'saturation'), draws))
    jittered = x
    for turn in range(4):
        mean = jittered.mean((2, 3), keepdim=True)
        results = (jittered * brightness, (jittered - mean) * contrast + mean,
                   saturate(jittered, saturation), turn_hue(jittered, spec['hue'] * (2 * draws[3] - 1)))
        for operation, result in enumerate(results):
            jittered = torch.where(order[:, turn] == operation, result, jittered)
        jittered = jittered.clamp(0, 1)
    x = torch.where(draws[4] < 0.8, jittered, x)
    grey = (0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand(-1, 3, -1, -1)
    return torch.where(draws[5] < 0.2, grey, x).clamp(0, 1)


def knn_accuracy(encoder, data, autocast, spec):
    """The accuracy of evaluate/knn.py on the test images."""
    encoder.eval()
    features = {}
    with torch.inference_mode():
        for split, (images, _) in data.items():
            with autocast:
                parts = [encoder(F.interpolate(
                    part.float() / 255, 2 * (spec['size'],), mode='bicubic').clamp(0, 1).contiguous(
                        memory_format=torch.channels_last)) for part in images.split(2000)]
            features[split] = F.normalize(torch.cat(parts).float())
        hits, labels = 0, data['train'][1]
        for part, truth in zip(features['test'].split(512), data['test'][1].split(512)):
            nearest, index = (part @ features['train'].T).topk(min(spec['knn_k'], len(labels)))
            votes = torch.zeros(len(part), int(labels.max()) + 1, device=part.device)
            votes.scatter_add_(1, labels[index], ((nearest - 1) / spec['knn_temperature']).exp())
            hits += int((votes.argmax(1) == truth).sum())
    return hits / len(features['test'])
