"""Every field of a config with its default, and what all recipes share: arguments and `:smoke`.

The defaults are those of the official TF2 code (google-research/simclr, tf2/run.py), so that a recipe
in configs/ lists only what it changes. Nothing below main, train and evaluate ever sees a config.
"""

import difflib
from typing import Any

import ml_collections

from simclr_jax.task_configs import task_configs

ConfigDict = ml_collections.ConfigDict


def base_config() -> ConfigDict:
    """SimCLR with the official TF2 defaults: ResNet-50, 224 px, batch 512, 100 epochs, LARS."""
    config = ConfigDict()
    config.task = 'pretrain'            # see main.TASKS
    config.seed = 0                     # the only one: weights, data order and views follow from it
    config.batch_size = 512             # global, over all devices (tf2/run.py train_batch_size)
    config.num_epochs = 100.0           # tf2/run.py train_epochs
    config.num_train_steps = 0          # more than 0 overrides num_epochs (tf2/run.py train_steps)

    config.shard_state = False          # split parameters and optimizer state over the devices
    config.encoder_chunks = 1           # k: the encoder sees 1/k of the batch at a time, the loss all of it
    config.profile_steps = ()           # 10,20: steps 10 to 19 are traced into workdir/profile
    config.compile_cache = ''           # directory of compiled programs; '' = a default one, off = none

    config.encoder = ConfigDict({
        'depth': 50,                    # 18, 34, 50, 101, 152, 200; 10 for smoke runs
        'width': 1.0,                   # multiplies the 64, 128, 256, 512 channels
        'stem': 'imagenet',             # imagenet: 7x7/2 and max-pool; cifar: 3x3/1
        'sk_ratio': 0.0,                # 0.0625 = selective kernels and ResNet-D (SimCLRv2)
        'zero_init_last_gamma': True,   # tf2/resnet.py
        'remat': False,                 # recompute each block in the backward pass: less memory, more time
        'max_pool': 'torch',            # torch: pad 1; same: TensorFlow's, as in official weights
        'conv_padding': 'symmetric',    # of strides; same: TensorFlow's, as in BYOL's Haiku weights
        'project_first': False,         # depth 18, 34: True as official weights, False as torchvision
        'norm_groups': 1,               # BatchNorm statistics: 1 = of the global batch, G = of groups
        'norm_momentum': 0.9,           # tf2/run.py batch_norm_decay
        'norm_epsilon': 1e-5,           # tf2/resnet.py
        'dtype': 'bfloat16',            # activations; parameters, statistics and loss stay float32
    })
    use_method(config, 'simclr')        # config.method, config.head, config.predictor
    config.augment = augment_config(image_size=224, strength=1.0)
    config.data = ConfigDict({
        'source': 'imagenet2012',       # a TFDS name, folder:PATH, arrays:PATH.npz, or shapes
        'dir': '',                      # where TFDS data sets were prepared; '' = TFDS's own default
        'train_split': 'train',
        'test_split': '',               # measured on; '' = test, validation or val if there; or 'none'
        'download': False,              # True lets TFDS download and prepare the data set
        'augment_on': 'device',         # device: all that can be done there; host: everything there
        'pad_to': 0,                    # P > 0: files are decoded and padded to P x P on the host, and
                                        # cropped on the device; P is at least twice the image size
        'transfer': 'uint8',            # views of the host cross as uint8 (rounded), bfloat16 or float32
        'cache': '',                    # decoded, or resized:256 (short side): kept on disk, data/cache.py
        'cache_dir': '',                # where; needed where there is a cache
        'max_bad_share': 0.05,          # a larger share of unreadable files stops the run
        'num_threads': 0,               # that decode; 0 = a few more than there are processors
    })
    config.optimizer = ConfigDict({
        'name': 'lars',                 # lars, sgd, adamw
        'learning_rate': 0.3,           # before scaling (tf2/run.py, "per batch size of 256")
        'scaling': 'linear',            # linear: x B/256; sqrt: x sqrt(B); none
        'momentum': 0.9,
        'rate_in_momentum': True,       # lars: SimCLR's, lr inside the buffer; False: BYOL's and MoCo v3's
        'nesterov': False,              # for sgd; the official LARS has none
        'weight_decay': 1e-6,           # paper and tf2/run.py; the README's commands pass 1e-4
        'weight_decay_groups': (),      # ((regex over parameter paths, value), ...), the first match wins
        'b1': 0.9, 'b2': 0.999,         # adamw
        'trust_coefficient': 0.001,     # lars (tf2/lars_optimizer.py eeta)
        'exclude': ('(^|/)probe/',),    # from decay and trust ratio, as all scales and biases are
    })
    # warmup_cosine; epoch_cosine, which changes between epochs only (MoCo); constant
    config.schedule = ConfigDict({'name': 'warmup_cosine', 'warmup_epochs': 10.0})
    config.eval = ConfigDict({
        'online_probe': True,           # a linear classifier on stop-gradient features, trained alongside
        'layer': 0,                     # 0: features h; k: output of head layer k; -1: projection z
        'encoder': 'online',            # online, or target: the moving average of MoCo and BYOL
        'batch_size': 256,              # tf2/run.py eval_batch_size
        'crop_proportion': 0.875,       # centre crop (tf2/data_util.py); 1.0 for 32 px and below
        'knn_every_epochs': 10.0,       # 0 = only at the end
        'knn_k': 200,                   # Wu et al. 2018, sec. 3.4
        'knn_temperature': 0.07,        # Wu et al. 2018, sec. 3.4
        'linear_at_end': True,          # the linear probe on the same features, beside the last kNN
        'pixel_floor': False,           # kNN of the raw pixels beside them; for sets that fit in memory
    })
    config.update(task_configs())       # linear, finetune, ..., one block for each other task
    config.checkpoint = ConfigDict({'every_epochs': 1.0, 'keep_last': 5, 'keep_best': 1})
    config.log = ConfigDict({
        'every_steps': 50,
        'step_breakdown': True,         # a table of where a step's time goes, from a trace of steps 11 to 13
    })
    return config


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
                'loss': 'nt_xent',      # or nt_logistic, margin (paper Table 4)
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
}


def use_method(config: ConfigDict, name: str, **head: Any) -> None:
    """Sets method, head and predictor of `config` to those of a method, and nothing else.

    name: simclr, moco_v2, moco_v3 or byol. `head`: values of both heads that the recipe changes,
    such as hidden_width. ValueError for an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(f'There is no method {name!r}; there are {", ".join(_METHODS)}.')
    method, projector, predictor = _METHODS[name]
    config.method = ConfigDict(method)
    config.head = ConfigDict(_HEAD | projector | head)
    config.predictor = ConfigDict(_HEAD | predictor | head)


def for_short_runs(config: ConfigDict) -> None:
    """Method settings for small data sets and minutes instead of days: chosen here, on `shapes`.

    A target that is to be followed within some hundred steps must move fast, and MoCo's keys then age
    fast. Its head has no BatchNorm, so that old keys lie elsewhere than new ones: the network tells its
    key by its age (contrastive accuracy 99 %, projections of rank 1). Heads with BatchNorm, and a short
    queue, prevent that.
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


def augment_config(*, image_size: int, strength: float, blur: bool = True) -> ConfigDict:
    """The augmentation of the official code: crop, flip, jitter of `strength`, grey, blur.

    `view1` and `view2` override single values for one view, for example
    `config.augment.view2 = {'blur': {'probability': 0.1}}`. The last five operations are the ones
    that the paper studied in its Fig. 5 (and BYOL's solarize); they are off at probability 0.
    """
    return ConfigDict({
        'image_size': image_size,
        'mean': (0.0, 0.0, 0.0),        # none beyond [0, 1] (tf2/data_util.py)
        'std': (1.0, 1.0, 1.0),
        'crop': {'probability': 1.0, 'law': 'tf', 'area': (0.08, 1.0), 'aspect': (3 / 4, 4 / 3)},
        'flip': {'probability': 0.5},
        'jitter': {
            'probability': 0.8, 'brightness': 0.8 * strength, 'contrast': 0.8 * strength,
            'saturation': 0.8 * strength, 'hue': 0.2 * strength, 'brightness_mode': 'multiply',
        },
        'grey': {'probability': 0.2},
        'blur': {'probability': 0.5 if blur else 0.0, 'sigma': (0.1, 2.0), 'kernel_fraction': 0.1},
        'rotate': {'probability': 0.0},
        'sobel': {'probability': 0.0},
        'noise': {'probability': 0.0, 'std': 0.1},
        'solarize': {'probability': 0.0, 'threshold': 0.5},
        'cutout': {'probability': 0.0, 'size': 0.5},
        'sequence': (),                 # view 2 is made of view 1 by these operations, in this order (Fig. 5)
        'view1': {},
        'view2': {},
    })


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def moco_augment(*, image_size: int, area: tuple[float, float] = (0.2, 1.0), blur: bool = True) -> ConfigDict:
    """MoCo v2's augmentation (facebookresearch/moco main_moco.py --aug-plus), both views alike.

    Its operations are torchvision's: crops of uniform area, brightness, contrast and saturation in
    [0.6, 1.4]. Saturation here scales that of HSV, contrast is about the mean of each channel.
    """
    augment = augment_config(image_size=image_size, strength=0.5, blur=blur)
    augment.crop.update({'law': 'uniform', 'area': area})
    augment.jitter.update({'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1})
    augment.update({'mean': IMAGENET_MEAN, 'std': IMAGENET_STD})
    return augment


def byol_augment(*, image_size: int, blur: bool = True) -> ConfigDict:
    """BYOL's augmentation (byol/utils/augmentations.py): view 1 blurred, view 2 seldom but solarized.

    Brightness is additive. `blur=False` for small images, as solo-learn's CIFAR recipe.
    """
    augment = augment_config(image_size=image_size, strength=0.5, blur=blur)
    augment.crop.law = 'uniform'
    augment.jitter.update({'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.2, 'hue': 0.1,
                           'brightness_mode': 'add'})
    augment.view1 = ConfigDict({'blur': {'probability': 1.0 if blur else 0.0}})
    augment.view2 = ConfigDict({'blur': {'probability': 0.1 if blur else 0.0},
                                'solarize': {'probability': 0.2}})
    augment.update({'mean': IMAGENET_MEAN, 'std': IMAGENET_STD})
    return augment


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on embedded data with a tiny network and 12 steps, to see that it runs."""
    config.data.source = 'shapes'
    config.data.train_split, config.data.test_split = 'train[:512]', 'test[:256]'
    config.batch_size = 64
    config.num_train_steps = 12
    config.schedule.warmup_epochs = min(config.schedule.warmup_epochs, 0.25)
    config.encoder.update({'depth': 10, 'width': 0.125, 'dtype': 'float32'})
    config.head.update({'out_dim': 32, 'hidden_width': 64})
    config.predictor.update({'out_dim': 32, 'hidden_width': 64})
    if config.method.get('queue_size'):
        config.method.queue_size = 256
    config.encoder.norm_groups = min(config.encoder.norm_groups, 4)
    config.augment.image_size = 32
    config.encoder.stem = 'cifar'
    config.eval.update({'crop_proportion': 1.0, 'batch_size': 64, 'knn_k': 20})
    config.linear.update({'batch_size': 64, 'num_epochs': 2.0})
    config.log.update({'every_steps': 4, 'step_breakdown': False})
    return config


def parse_argument(argument: str, **defaults: Any) -> ConfigDict:
    """Reads what follows the colon of `--config=FILE.py:depth=101,width=2` or `--config=FILE.py:smoke`.

    Args:
        argument: comma-separated `name=value`, or a bare `name` for a switch.
        **defaults: every name that the recipe takes, with its default; values take the default's type.

    Returns:
        The values, with `smoke` (False unless named) added.

    Raises:
        ValueError: for an unknown name or a value of the wrong type, naming the ones that exist.
    """
    values = ConfigDict({'smoke': False, **defaults})
    for item in filter(None, (argument or '').split(',')):
        name, _, text = item.partition('=')
        if name not in values:
            raise ValueError(f'The recipe takes no argument {name!r}; it takes {", ".join(sorted(values))}.')
        kind = type(values[name])
        try:
            values[name] = text.lower() in ('', '1', 'true', 'yes') if kind is bool else kind(text)
        except ValueError:
            raise ValueError(f'The argument {name}={text!r} is no {kind.__name__}.') from None
    return values


_POSITIVE = ('batch_size', 'encoder_chunks', 'method.temperature', 'encoder.depth', 'encoder.width',
             'augment.image_size', 'eval.batch_size', 'eval.crop_proportion', 'eval.knn_k',
             'eval.knn_temperature', 'linear.num_epochs', 'linear.batch_size', 'checkpoint.keep_last',
             'log.every_steps', 'plan.chunks', 'plan.num_classes', 'bench_input.num_images')
_NOT_NEGATIVE = ('seed', 'num_epochs', 'num_train_steps', 'schedule.warmup_epochs', 'optimizer.weight_decay',
                 'eval.knn_every_epochs', 'checkpoint.every_epochs', 'checkpoint.keep_best',
                 'plan.memory_gib', 'plan.max_batch', 'data.pad_to', 'data.max_bad_share',
                 'bench_input.images_per_second')


def check_values(config: ConfigDict) -> None:
    """ValueError for a number that no run could use; the rest is checked where it is used."""
    fields = flatten(config)
    for name in _POSITIVE + _NOT_NEGATIVE:
        if name in fields and (fields[name] < 0 or name in _POSITIVE and fields[name] == 0):
            raise ValueError(f'{name} is {fields[name]}: it must be '
                             f'{"more than 0" if name in _POSITIVE else "0 or more"}.')
    if config.seed >= 1 << 31:
        raise ValueError(f'seed is {config.seed}: it must be less than 2**31.')
    check_profile_steps(config.profile_steps)


def check_profile_steps(steps: Any, num_steps: int | None = None) -> None:
    """ValueError unless `steps` is () or (first, last) with 1 <= first < last, of a run of `num_steps`."""
    if steps == ():
        return
    given = ','.join(map(str, steps)) if isinstance(steps, tuple) else steps
    if (not isinstance(steps, tuple) or len(steps) != 2 or any(type(step) is not int for step in steps)
            or not 1 <= steps[0] < steps[1]):
        raise ValueError(f'profile_steps is {given}: it must be two step numbers from 1, the first one the '
                         'smaller; 10,20 traces the steps 10 to 19.')
    if num_steps is not None and steps[1] > num_steps + 1:
        raise ValueError(f'profile_steps is {given}: the run has {num_steps} steps; the second number can '
                         f'be {num_steps + 1} at most.')


def flatten(config: dict, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; an empty dict stays a value."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)) and value:
            flat |= flatten(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def describe(config: ConfigDict) -> str:
    """The config, a line a group, but for the blocks of other tasks: `encoder      depth=50, ...`."""
    fields = {name: value for name, value in config.to_dict().items()
              if name not in task_configs() or name == config.task}
    plain = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    groups = {'run': plain} | {name: value for name, value in fields.items() if name not in plain}
    return '\n'.join(f'{name:<12}' + ', '.join(f'{field}={value}' for field, value in flatten(group).items())
                     for name, group in groups.items())


def nearest_field(config: ConfigDict, name: str) -> str:
    """The dotted field of `config` that `name` was most likely meant to be, or '' if none is near."""
    def likeness(field):
        block = field.partition('.')[0]
        of_another_task = block in task_configs() and block not in (config.task, name.partition('.')[0])
        same_leaf = field.rsplit('.', 1)[-1] == name.rsplit('.', 1)[-1]
        alike = difflib.SequenceMatcher(a=field, b=name).ratio()
        return max(alike, 0.5 if same_leaf else 0.0) - (0.1 if of_another_task else 0.0)

    best = max(flatten(config), key=likeness)
    return best if likeness(best) >= 0.5 else ''


def view_config(augment: ConfigDict, view: str) -> dict[str, dict]:
    """The operations of 'view1' or 'view2' as plain dicts: the shared ones with the view's overrides."""
    operations = {name: dict(value) for name, value in augment.items()
                  if isinstance(value, ConfigDict) and name not in ('view1', 'view2')}
    for name, overrides in augment[view].items():
        if name not in operations:
            raise ValueError(f'augment.{view} overrides {name!r}, which is no operation; '
                             f'the operations are {", ".join(operations)}.')
        operations[name] |= dict(overrides)
    return operations
