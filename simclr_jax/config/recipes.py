"""What recipes share: the settings of a method, the augmentations of the papers, and `:smoke`."""

import dataclasses
from typing import Any

from simclr_jax.config.config_dict import ConfigDict
from simclr_jax.views.fields import View

_HEAD = {
    'mode': 'nonlinear',                # none, linear, nonlinear (tf2/run.py proj_head_mode)
    'num_layers': 3,                    # tf2/run.py num_proj_layers; the 2020 paper uses 2
    'hidden_width': 0,                  # 0: as wide as the features (tf2/model.py)
    'out_dim': 128,                     # tf2/run.py proj_out_dim
    'norm': True, 'final_norm': True,   # BatchNorm after the hidden, and after the last, layers
    'bias': False, 'final_bias': False,
    'init_stddev': 0.01,                # of the kernels (tf2/model.py); 0: 1 / sqrt(input width)
}
# method name -> its losses' settings, and where its projector and predictor differ from _HEAD.
_METHODS = {
    'simclr': ({'name': 'simclr',
                'temperature': 0.1,     # tf2/run.py; paper Table 5
                'normalize': True,      # l2-normalise z (tf2/run.py hidden_norm)
                'decoupled': False,     # True: DCL, the positive is left out of the denominator
                'loss': 'nt_xent',      # or nt_logistic, margin (paper Table 4), sup_con
                'margin': 0.8,          # of the loss of this name; the paper tried 0 to 1.6 (App. B.10)
                'mining': 'none',       # semi_hard: one negative for each anchor, of the last two
                'loss_weight': 1.0},    # 2.0 = the scale of the official code, see objectives/nt_xent.py
               {}, {'mode': 'none'}),
    # facebookresearch/moco README, main_moco.py and moco/builder.py with --mlp --moco-t 0.2
    'moco_v2': ({'name': 'moco', 'temperature': 0.2, 'momentum': 0.999, 'momentum_rises': False,
                 'queue_size': 65536, 'symmetric': False, 'key_groups': 'strided'},
                {'num_layers': 2, 'norm': False, 'final_norm': False, 'bias': True, 'final_bias': True,
                 'init_stddev': 0.0}, {'mode': 'none'}),
    # facebookresearch/moco-v3 main_moco.py, moco/builder.py and CONFIG.md
    'moco_v3': ({'name': 'moco', 'temperature': 1.0, 'momentum': 0.99, 'momentum_rises': True,
                 'queue_size': 0, 'symmetric': True, 'key_groups': 'strided'},
                {'num_layers': 2, 'hidden_width': 4096, 'out_dim': 256, 'init_stddev': 0.0},
                {'num_layers': 2, 'hidden_width': 4096, 'out_dim': 256, 'final_norm': False,
                 'init_stddev': 0.0}),
    # deepmind-research byol/configs/byol.py and utils/networks.py
    'byol': ({'name': 'byol', 'momentum': 0.996, 'momentum_rises': True, 'stop_gradient': True},
             *2 * ({'num_layers': 2, 'hidden_width': 4096, 'out_dim': 256, 'bias': True,
                    'final_norm': False, 'init_stddev': 0.0},)),
    # facebookresearch/simsiam simsiam/builder.py
    'simsiam': ({'name': 'simsiam'}, {'out_dim': 2048, 'init_stddev': 0.0},
                {'num_layers': 2, 'hidden_width': 512, 'out_dim': 2048, 'final_norm': False, 'final_bias': True,
                 'init_stddev': 0.0}),
    # facebookresearch/barlowtwins main.py, facebookresearch/vicreg main_vicreg.py
    'barlow_twins': ({'name': 'barlow_twins', 'off_diagonal': 0.0051},
                     {'hidden_width': 8192, 'out_dim': 8192, 'final_norm': False, 'init_stddev': 0.0},
                     {'mode': 'none'}),
    'vicreg': ({'name': 'vicreg', 'invariance': 25.0, 'variance': 25.0, 'covariance': 1.0},
               {'hidden_width': 8192, 'out_dim': 8192, 'bias': True, 'final_norm': False, 'init_stddev': 0.0},
               {'mode': 'none'}),
    # Dwibedi et al. 2021, sec. 4.1
    'nnclr': ({'name': 'nnclr', 'temperature': 0.1, 'queue_size': 98304},
              {'hidden_width': 2048, 'out_dim': 256, 'init_stddev': 0.0},
              {'num_layers': 2, 'hidden_width': 4096, 'out_dim': 256, 'final_norm': False, 'final_bias': True,
               'init_stddev': 0.0}),
    # zhirongw/lemniscate.pytorch main.py; paper, sec. 3.2 and 4
    'instance_discrimination': ({'name': 'instance_discrimination', 'temperature': 0.07, 'negatives': 4096,
                                 'memory_momentum': 0.5},
                                {'mode': 'linear', 'final_norm': False, 'final_bias': True, 'init_stddev': 0.0},
                                {'mode': 'none'}),
}
# HobbitLong/SupContrast networks/resnet_big.py; README, temp 0.1
_METHODS['sup_con'] = ({**_METHODS['simclr'][0], 'loss': 'sup_con'},
                       {'num_layers': 2, 'norm': False, 'final_norm': False, 'bias': True, 'final_bias': True,
                        'init_stddev': 0.0}, {'mode': 'none'})
# SimCLRv2's momentum memory: Chen et al. 2020b, sec. 2 and 3.1; the two directions are added, as loss_weight 2 does
_METHODS['simclr_memory'] = ({**_METHODS['moco_v2'][0], 'temperature': 0.1, 'symmetric': True, 'batch_negatives': True},
                             {}, {'mode': 'none'})
METHODS = tuple(_METHODS)


def use_method(config: ConfigDict, name: str, **head: Any) -> None:
    """Sets method, head and predictor of `config` to those of a method, and nothing else.

    name: one of `METHODS`. `head`: values of both heads that the recipe changes,
    such as hidden_width. ValueError for an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(f'There is no method {name!r}; there are {", ".join(_METHODS)}.')
    method, projector, predictor = _METHODS[name]
    config.method = ConfigDict(method)
    config.head = ConfigDict(_HEAD | projector | head)
    config.predictor = ConfigDict(_HEAD | predictor | head)


def for_short_runs(config: ConfigDict) -> None:
    """Settings for small data sets and minutes instead of days, where the recipe has given its own.

    Chosen here, on `shapes`, MoCo v2's by the search of benchmarks/equal_compute.py. A target that is to be
    followed within some hundred steps must move fast, and MoCo's keys then age fast: older ones are those of
    another network. So its queue holds the keys of two steps, and the steps are small and many. Its own head has no
    BatchNorm, so that old keys lie elsewhere than new ones: the network tells its key by its age (contrastive
    accuracy 99 %, projections of rank 1). Heads with BatchNorm prevent that.
    """
    method = config.method
    if 'temperature' in method:
        method.temperature = 0.2
    if 'momentum' in method:
        method.momentum = 0.9 if method.name == 'byol' else 0.95
    if method.get('queue_size'):
        method.queue_size = 1024
        config.head.update({'norm': True, 'final_norm': True, 'bias': False, 'final_bias': False,
                            'init_stddev': 0.01})
    if method.name == 'moco' and method.queue_size and not method.symmetric:
        config.batch_size //= 4
        config.num_train_steps *= 4
        config.optimizer.learning_rate /= 2         # as the square root of the batch
        method.update({'momentum': 0.5, 'queue_size': 2 * config.batch_size})


def augment_config(*, image_size: int, strength: float, blur: bool = True) -> ConfigDict:
    """The augmentation of the official code, `View.simclr`: crop, flip, jitter of `strength`, grey, blur.

    `view1` and `view2` override single values for one view, for example
    `config.augment.view2 = {'blur': {'probability': 0.1}}`. Rotate, Sobel, noise and cutout,
    which the paper studied in its Fig. 5, and BYOL's solarize are off, at probability 0.
    """
    return ConfigDict({
        'image_size': image_size,
        'mean': (0.0, 0.0, 0.0),        # none beyond [0, 1] (tf2/data_util.py)
        'std': (1.0, 1.0, 1.0),
        **_operations(View.simclr(strength=strength, blur=blur)),
        'sequence': (),                 # view 2 is made of view 1 by these operations, in this order (Fig. 5)
        'extra': (),                    # then functions of (image, key): 'package.module:function'
        'view1': {},
        'view2': {},
        # Multi-crop: so many further views of each image, small ones (facebookresearch/swav main_swav.py has 6).
        'small_views': 0,
        'small_size': 96,               # scripts/swav_200ep_pretrain.sh, as the area
        'small_view': {'crop': {'area': (0.05, 0.14)}},     # overrides, as those of view1
    })


def _operations(view: View) -> dict[str, dict]:
    return {name: dataclasses.asdict(operation) for name, operation in view.operations().items()}


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def moco_augment(*, image_size: int, area: tuple[float, float] = (0.2, 1.0), blur: bool = True) -> ConfigDict:
    """MoCo v2's augmentation (facebookresearch/moco main_moco.py --aug-plus), `View.moco` twice."""
    augment = augment_config(image_size=image_size, strength=0.5)
    augment.update(_operations(View.moco(area=area, blur=blur)))
    augment.update({'mean': IMAGENET_MEAN, 'std': IMAGENET_STD})
    return augment


def byol_augment(*, image_size: int, blur: bool = True) -> ConfigDict:
    """BYOL's augmentation (byol/utils/augmentations.py), `View.byol`."""
    view1, view2 = View.byol(blur=blur)
    augment = augment_config(image_size=image_size, strength=0.5, blur=blur)
    augment.update({'crop': dataclasses.asdict(view1.crop), 'jitter': dataclasses.asdict(view1.jitter),
                    'mean': IMAGENET_MEAN, 'std': IMAGENET_STD})
    augment.view1 = ConfigDict({'blur': {'probability': view1.blur.probability}})
    augment.view2 = ConfigDict({'blur': {'probability': view2.blur.probability},
                                'solarize': {'probability': view2.solarize.probability}})
    return augment


def resize_as_torchvision(config: ConfigDict, method: str = 'bilinear') -> None:
    """Antialiased crops, in training and in evaluation, as torchvision makes of Pillow's images."""
    for block in (config.augment.crop, config.eval):
        block.update({'resize': method, 'antialias': True})


def use_multi_crop(config: ConfigDict) -> None:
    """Six small views beside the two, whose crops begin at 14 % of the area (scripts/swav_200ep_pretrain.sh)."""
    config.augment.small_views, config.augment.crop.area = 6, (0.14, 1.0)


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on embedded data with a tiny network and 12 steps, to see that it runs."""
    config.data.source = 'shapes'
    config.data.train_split, config.data.test_split = 'train[:512]', 'test[:256]'
    config.batch_size = 64
    config.num_train_steps = 12
    config.schedule.warmup_epochs = min(config.schedule.warmup_epochs, 0.25)
    config.encoder.update({'depth': 10, 'width': 0.125, 'dtype': 'float32'})
    if config.encoder.name == 'vit':
        config.encoder.arguments.update({'width': 32, 'depth': 2, 'heads': 2, 'patch': 8})
    config.head.update({'out_dim': 32, 'hidden_width': 64})
    config.predictor.update({'out_dim': 32, 'hidden_width': 64})
    if config.method.get('queue_size'):
        config.method.queue_size = 256
    if 'negatives' in config.method:
        config.method.negatives = 64
    config.encoder.norm_groups = min(config.encoder.norm_groups, 4)
    config.augment.image_size = 32
    if config.augment.small_views:
        config.augment.update({'small_size': 16, 'small_views': 2})
    config.encoder.stem = 'cifar'
    config.eval.update({'crop_proportion': 1.0, 'batch_size': 64, 'knn_k': 20})
    config.linear.update({'batch_size': 64, 'num_epochs': 2.0})
    config.log.update({'every_steps': 4, 'step_breakdown': False})
    return config
