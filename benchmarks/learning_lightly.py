"""Lightly's side of learning.py, and what compares one step of both, and their views."""

import pathlib
import random
import tempfile

import jax
import numpy as np
import torch
from learning import (
    BATCH,
    CROP,
    ENCODER,
    JITTER,
    METHODS,
    SIZE,
    SOLARIZE,
    Ours,
    make_config,
    rate_at,
    start_of,
)
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    MoCoV2Transform,
    SimCLRTransform,
)
from lightly.utils.scheduler import cosine_schedule
from PIL import Image

from simclr_jax import two_views
from simclr_jax.data.pipeline import epoch_and_index
from simclr_jax.views.from_config import views_of
from simclr_jax.weights.torch_names import encoder_to_torch, head_to_torch
from simclr_jax.weights.tree import Imported
from simclr_jax.weights.write import torch_model
from simclr_jax.weights.write.torch import write_torch

HEADS = {'simclr': SimCLRProjectionHead, 'byol': BYOLProjectionHead,
         'moco_v2': lambda *widths: MoCoProjectionHead(*widths, batch_norm=True)}


def prepare(seed):
    torch.set_num_threads(1)
    for set_seed in (torch.manual_seed, random.seed, np.random.seed):
        set_seed(seed)


def make_transform(method, config):
    """Lightly's own, with the ranges of learning.py."""
    ranges = {'input_size': SIZE, 'cj_prob': config.augment.jitter.probability, 'cj_strength': 1.0,
              'cj_bright': JITTER['brightness'], 'cj_contrast': JITTER['contrast'], 'cj_sat': 0.0, 'cj_hue': 0.0,
              'min_scale': CROP['area'][0], 'random_gray_scale': 0.0, 'gaussian_blur': 0.0,
              'normalize': {'mean': list(config.augment.mean), 'std': list(config.augment.std)}}
    if method == 'byol':
        return BYOLTransform(BYOLView1Transform(**ranges),
                             BYOLView2Transform(**ranges, solarization_prob=SOLARIZE['byol']))
    return {'simclr': SimCLRTransform, 'moco_v2': MoCoV2Transform}[method](**ranges)


class Lightly:
    """The same steps from the same start: `start` is our state at step 0, as numpy arrays."""

    def __init__(self, config, start, images):
        method = 'moco_v2' if config.method.name == 'moco' else config.method.name
        self.config, self.images = config, images
        self.transform = make_transform(method, config)
        self.online, self.predictor, self.target = make_network(method, config, start.variables()), None, None
        if method != 'simclr':
            self.target = make_network(method, config, start.method_state['target'])
            deactivate_requires_grad(self.target)
        if method == 'byol':
            widths = config.predictor
            self.predictor = BYOLPredictionHead(widths.out_dim, widths.hidden_width, widths.out_dim)
            fill(self.predictor, widths, start.variables(), 'predictor')
        self.criterion = NegativeCosineSimilarity() if method == 'byol' else NTXentLoss(
            config.method.temperature, (config.method.queue_size, config.head.out_dim) if method == 'moco_v2' else 0)
        if method == 'moco_v2':
            self.criterion.memory_bank.bank = torch.tensor(start.method_state['queue'])
        self.loss_of = getattr(self, method)
        parameters = [each for module in (self.online, self.predictor) if module
                      for each in module.parameters() if each.requires_grad]
        self.optimizer = torch.optim.SGD(
            [{'params': [each for each in parameters if each.ndim > 1], 'weight_decay': config.optimizer.weight_decay},
             {'params': [each for each in parameters if each.ndim <= 1]}], lr=0.0, momentum=config.optimizer.momentum)

    def simclr(self, view1, view2):
        # One pass over both views: BatchNorm sees all 2N images, as ours does.
        return self.criterion(*self.online(torch.cat([view1, view2])).chunk(2))

    def moco_v2(self, view1, view2):
        query = self.online(view1)
        with torch.no_grad():
            key = self.target(view2)
        return self.criterion(query, key)

    def byol(self, view1, view2):
        first, second = (self.predictor(self.online(view)) for view in (view1, view2))
        with torch.no_grad():
            goal1, goal2 = self.target(view1), self.target(view2)
        # Lightly's example halves the sum of both directions and leaves out the constant of |p - z|^2 = 2 - 2 cos;
        # the paper's loss, as ours, is four times that.
        return 4 + 4 * 0.5 * (self.criterion(first, goal2) + self.criterion(second, goal1))

    def step(self, step):
        rows = epoch_and_index(self.config.seed, np.arange(step * BATCH, (step + 1) * BATCH),
                                     len(self.images))[1]
        views = [self.transform(Image.fromarray(self.images[row])) for row in rows]
        return self.step_on(step, *(torch.stack(view) for view in zip(*views)))

    def step_on(self, step, view1, view2):
        """Of normalised views [N, 3, S, S]; returns the loss."""
        method, num_steps = self.config.method, self.config.num_train_steps
        for group in self.optimizer.param_groups:
            group['lr'] = rate_at(step, self.config.optimizer.learning_rate, num_steps)
        loss = self.loss_of(view1, view2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.target is not None:     # Lightly's examples do so when the next step begins
            rate = (cosine_schedule(step, num_steps + 1, method.momentum, 1.0) if self.predictor else method.momentum)
            update_momentum(self.online, self.target, rate)
        return loss.detach()

    def features(self, images):
        encoder = self.online[0].eval()
        with torch.inference_mode():
            found = torch.cat([encoder(self.normalised(part)) for part in np.split(images, 10)]).numpy()
        encoder.train()
        return found

    def normalised(self, images):
        """uint8, or floats in [0, 1], [N, S, S, 3] -> [N, 3, S, S]."""
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        images = images / 255 if images.dtype == torch.uint8 else images
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.augment.mean,
                                                                        self.config.augment.std))
        return ((images - mean) / std).contiguous()


def make_network(method, config, variables):
    """Encoder (timm's class) and Lightly's projection head with these weights, in training mode."""
    with tempfile.TemporaryDirectory() as directory:
        parts = {kind: {'encoder': variables[kind]['encoder']} for kind in ('params', 'batch_stats')}
        write_torch(directory, Imported(
            ENCODER, {'mode': 'none'}, parts, mean=config.augment.mean, std=config.augment.std,
            image_size=SIZE, crop_proportion=1.0, source='learning.py'))
        encoder, _, _ = torch_model.load(pathlib.Path(directory) / 'encoder.safetensors')
    head = HEADS[method](encoder.num_features, config.head.hidden_width, config.head.out_dim)
    fill(head, config.head, variables, 'head')
    return torch.nn.Sequential(encoder, head).train()


def fill(head, fields, variables, name):
    """Our weights of the head `name` in Lightly's; the last BatchNorm has no offset in ours, and here learns none."""
    arrays = head_to_torch(fields.to_dict(), {kind: {'head': variables[kind][name]} for kind in variables})
    head.layers.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    if isinstance(head.layers[-1], torch.nn.BatchNorm1d):
        head.layers[-1].bias.requires_grad_(False)


# ---- one step, and the views, side by side ------------------------------------------------------------


def in_torch_names(config, variables):
    """{name: array} of all parts of {'params', 'batch_stats'}."""
    found = {f'0.{name}': array for name, array in encoder_to_torch(config.encoder.to_dict(), variables).items()}
    for part, place in (('head', '1.layers'), ('predictor', 'predictor.layers')):
        if part in variables['params']:
            arrays = head_to_torch(config[part].to_dict(),
                                   {kind: {'head': tree[part]} for kind, tree in variables.items()})
            found |= {f'{place}.{name}': array for name, array in arrays.items()}
    return found


def of_lightly(network, predictor=None):
    found = network.state_dict()
    if predictor is not None:
        found |= {f'predictor.{name}': value for name, value in predictor.state_dict().items()}
    return {name: value.numpy() for name, value in found.items()}


def furthest(ours, theirs, *, running=False):
    """The largest difference of an entry in shares of the largest of its array, or of a thousandth of that of all."""
    names = [name for name in theirs if 'num_batches' not in name and ('running' in name) == running]
    least = 1e-3 * max(np.abs(theirs[name]).max() for name in names)
    return max(float(np.abs(ours[name] - theirs[name]).max() / max(np.abs(theirs[name]).max(), least))
               for name in names)


def compare_steps(arrays, num_steps=5, rate=1e-3):
    """Rows of a method each: how far the sides are apart on the same views, weights and batches.

    The first step has the rate 0: it shows loss and gradient. Differences then grow, tenfold a step and more at the
    recipe's rate, so that `rate` is a small one; 'of itself' is how far Lightly is then from itself, begun with
    weights that differ by a ten-millionth. The gradients of both are compared with Lightly's in float64.
    """
    prepare(0)
    images, rows = arrays['train'][0], []
    for method in METHODS:
        config = make_config(method, 0, 60, len(images))
        config.optimizer.learning_rate = rate
        start = start_of(config)
        ours, (theirs, other, exact) = Ours(config, len(images)), (Lightly(config, start, images) for _ in range(3))
        with torch.no_grad():
            for each in other.online.parameters():
                each.mul_(1 + 1e-7 * torch.randn_like(each))
        for module in filter(None, (exact.online, exact.predictor, exact.target, exact.criterion)):
            module.double()
        row = {'method': method, 'features': gap(ours.features(images[:1000]), theirs.features(images[:1000]))}
        for step in range(num_steps):
            losses = one_step_of_all(ours, (theirs, other, exact)[:3 if step == 0 else 2], images, step)
            if step == 0:
                row |= {'loss': gap(*losses[:2]), 'gradient': furthest(
                    in_torch_names(config, momentum_of(ours.state)), gradient_of(exact)),
                    "Lightly's gradient": furthest(gradient_of(theirs), gradient_of(exact))}
        state = jax.device_get(ours.state)
        held, peers, itself = (in_torch_names(config, state.variables()),
                               *(of_lightly(each.online, each.predictor) for each in (theirs, other)))
        row |= {'steps': num_steps, 'last loss': gap(*losses[:2]), 'last loss of itself': gap(*losses[1:]),
                'weights': furthest(held, peers), 'weights of itself': furthest(itself, peers),
                'statistics': furthest(held, peers, running=True)}
        if theirs.target is not None:
            row['target'] = furthest(in_torch_names(config, state.method_state['target']), of_lightly(theirs.target))
        if method == 'moco_v2':
            row['queue'] = gap(state.method_state['queue'], theirs.criterion.memory_bank.bank.numpy())
        print(row, flush=True)
        rows.append(row)
    return rows


def one_step_of_all(ours, others, images, step):
    """The losses; the second view is the first one mirrored, and of more contrast."""
    view1 = np.random.default_rng(step).permutation(images)[:BATCH].astype(np.float32) / 255
    view2 = np.clip(1.2 * view1[:, :, ::-1] - 0.05, 0, 1)
    ours.state, metrics = ours.train_step(ours.state, {
        'view1': view1, 'view2': view2, 'label': np.zeros(BATCH, np.int32), 'index': np.arange(BATCH, dtype=np.int32)})
    losses = [float(metrics['loss'])]
    for other in others:
        views = [other.normalised(view).to(next(other.online.parameters()).dtype) for view in (view1, view2)]
        losses.append(float(other.step_on(step, *views)))
    return losses


def momentum_of(state):
    """SGD's buffer, after one step the gradient with its weight decay, as {'params', 'batch_stats'}."""
    state = jax.device_get(state)
    has_trace = lambda node: hasattr(node, 'trace')
    buffer, = (node.trace for node in jax.tree.leaves(state.opt_state, is_leaf=has_trace) if has_trace(node))
    return {'params': buffer, 'batch_stats': state.batch_stats}


def gradient_of(theirs):
    parameters = dict(theirs.online.named_parameters())
    if theirs.predictor is not None:
        parameters |= {f'predictor.{name}': each for name, each in theirs.predictor.named_parameters()}
    return {name: theirs.optimizer.state[each]['momentum_buffer'].numpy()
            for name, each in parameters.items() if each.requires_grad}


def gap(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def centred(x):
    return x - x.mean((1, 2), keepdims=True)


# Of grey views [N, S, S], and of both views of an image.
OF_A_VIEW = {'mean': lambda x: x.mean((1, 2)),
             'contrast': lambda x: x.std((1, 2)),
             'largest pixel': lambda x: x.max((1, 2)),
             'share of black': lambda x: (x < 0.02).mean((1, 2)),
             'sharpness': lambda x: np.abs(np.diff(x, axis=2)).mean((1, 2)),
             'left minus right': lambda x: (x[:, :, :SIZE // 2] - x[:, :, SIZE // 2:]).mean((1, 2))}
OF_A_PAIR = {'distance': lambda x, y: np.abs(x - y).mean((1, 2)),
             'product': lambda x, y: (centred(x) * centred(y)).mean((1, 2))}


def compare_views(arrays, count=5000):
    """Rows of a measure each: its mean on both sides, and the Kolmogorov distance of its distributions.

    `chance` is exceeded by one in twenty distances of equal distributions. Ours are rounded to Pillow's 8 bits.
    """
    prepare(0)
    images = arrays['train'][0][:count]
    config = make_config('byol', 0, 60, count)
    mean, std = config.augment.mean[0], config.augment.std[0]
    transform = make_transform('byol', config)
    theirs = [np.stack([view.numpy()[0] for view in views]) * std + mean
              for views in zip(*(transform(Image.fromarray(image)) for image in images))]
    ours = [np.round(255 * np.asarray(view)[..., 0]) / 255 for view in
            two_views(images, jax.random.key(0), views_of(config.augment), image_size=SIZE)]
    values = {f'{name} of view {number + 1}': (measure(ours[number]), measure(theirs[number]))
              for number in range(2) for name, measure in OF_A_VIEW.items()}
    values |= {f'{name} of the two': (measure(*ours), measure(*theirs)) for name, measure in OF_A_PAIR.items()}
    rows = []
    for name, (a, b) in values.items():
        both = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(np.sort(a), both, 'right') - np.searchsorted(np.sort(b), both, 'right'))
        rows.append({'measure': name, 'ours': float(a.mean()), 'lightly': float(b.mean()),
                     'distance': float(distance.max() / count), 'chance': 1.36 * (2 / count) ** 0.5})
        print(rows[-1], flush=True)
    return rows
