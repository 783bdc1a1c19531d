"""Every field of a config with its default, and what all recipes share: arguments and `:smoke`.

The defaults are those of the official TF2 code (google-research/simclr, tf2/run.py), so that a recipe
in configs/ lists only what it changes. Nothing below main, train and evaluate ever sees a config.
"""

import difflib
from typing import Any

import ml_collections

ConfigDict = ml_collections.ConfigDict


def base_config() -> ConfigDict:
    """SimCLR with the official TF2 defaults: ResNet-50, 224 px, batch 512, 100 epochs, LARS."""
    config = ConfigDict()
    config.task = 'pretrain'            # pretrain, linear
    config.seed = 0                     # the only one: weights, data order and views follow from it
    config.batch_size = 512             # global, over all devices (tf2/run.py train_batch_size)
    config.num_epochs = 100.0           # tf2/run.py train_epochs
    config.num_train_steps = 0          # more than 0 overrides num_epochs (tf2/run.py train_steps)

    config.method = ConfigDict({
        'name': 'simclr',
        'temperature': 0.1,             # tf2/run.py; paper Table 5
        'normalize': True,              # l2-normalise z (tf2/run.py hidden_norm)
        'loss_weight': 1.0,             # 2.0 = the scale of the official code, see objectives/nt_xent.py
    })
    config.encoder = ConfigDict({
        'depth': 50,                    # 18, 34, 50, 101, 152, 200; 10 for smoke runs
        'width': 1.0,                   # multiplies the 64, 128, 256, 512 channels
        'stem': 'imagenet',             # imagenet: 7x7/2 and max-pool; cifar: 3x3/1
        'sk_ratio': 0.0,                # 0.0625 = selective kernels and ResNet-D (SimCLRv2)
        'zero_init_last_gamma': True,   # tf2/resnet.py
        'max_pool': 'torch',            # torch: pad 1; same: TensorFlow's, as in official weights
        'norm_groups': 1,               # BatchNorm statistics: 1 = of the global batch, G = of groups
        'norm_momentum': 0.9,           # tf2/run.py batch_norm_decay
        'norm_epsilon': 1e-5,           # tf2/resnet.py
        'dtype': 'bfloat16',            # activations; parameters, statistics and loss stay float32
    })
    config.head = ConfigDict({
        'mode': 'nonlinear',            # none, linear, nonlinear (tf2/run.py proj_head_mode)
        'num_layers': 3,                # tf2/run.py num_proj_layers; the 2020 paper uses 2
        'hidden_width': 0,              # 0: as wide as the features (tf2/model.py)
        'out_dim': 128,                 # tf2/run.py proj_out_dim
    })
    config.augment = augment_config(image_size=224, strength=1.0)
    config.data = ConfigDict({
        'source': 'imagenet2012',       # a TFDS name, folder:PATH, arrays:PATH.npz, or shapes
        'dir': '',                      # where TFDS data sets were prepared; '' = TFDS's own default
        'train_split': 'train',
        'test_split': '',               # measured on; '' = test, validation or val if there; or 'none'
        'download': False,              # True lets TFDS download and prepare the data set
        'num_threads': 0,               # of the input pipeline; 0 = tf.data decides
    })
    config.optimizer = ConfigDict({
        'name': 'lars',                 # lars, sgd, adamw
        'learning_rate': 0.3,           # before scaling (tf2/run.py, "per batch size of 256")
        'scaling': 'linear',            # linear: x B/256; sqrt: x sqrt(B); none
        'momentum': 0.9,
        'nesterov': False,              # for sgd; the official LARS has none
        'weight_decay': 1e-6,           # paper and tf2/run.py; the README's commands pass 1e-4
        'weight_decay_groups': (),      # ((regex over parameter paths, value), ...), the first match wins
        'b1': 0.9, 'b2': 0.999,         # adamw
        'trust_coefficient': 0.001,     # lars (tf2/lars_optimizer.py eeta)
        'exclude': ('(^|/)probe/',),    # from decay and trust ratio, as all scales and biases are
    })
    config.schedule = ConfigDict({'name': 'warmup_cosine', 'warmup_epochs': 10.0})
    config.eval = ConfigDict({
        'online_probe': True,           # a linear classifier on stop-gradient features, trained alongside
        'layer': 0,                     # 0: features h; k: output of head layer k; -1: projection z
        'batch_size': 256,              # tf2/run.py eval_batch_size
        'crop_proportion': 0.875,       # centre crop (tf2/data_util.py); 1.0 for 32 px and below
        'knn_every_epochs': 10.0,       # 0 = only at the end
        'knn_k': 200,                   # Wu et al. 2018, sec. 3.4
        'knn_temperature': 0.07,        # Wu et al. 2018, sec. 3.4
        'linear_at_end': True,          # the linear probe on the same features, beside the last kNN
        'pixel_floor': False,           # kNN of the raw pixels beside them; for sets that fit in memory
    })
    config.linear = linear_config()
    config.checkpoint = ConfigDict({'every_epochs': 1.0, 'keep_last': 5, 'keep_best': 1})
    config.log = ConfigDict({'every_steps': 50})
    return config


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
        'view1': {},
        'view2': {},
    })


def linear_config() -> ConfigDict:
    """The offline linear evaluation (README of the official code, 'linear evaluation' on ImageNet)."""
    return ConfigDict({
        'pretrained': '',               # the workdir of the encoder; '' = --workdir itself
        'checkpoint': 'last',           # last, best (by kNN), or a step
        'layer': 0,                     # as eval.layer; SimCLRv2 fine-tunes from 1
        'augment': True,                # crops and flips in training; False: centre crops, encoded once
        'num_epochs': 90.0,
        'batch_size': 4096,
        'learning_rate': 0.1,           # momentum SGD, linear scaling, cosine, no warm-up
        'momentum': 0.9,
        'nesterov': True,               # tf2/model.py builds momentum SGD with nesterov=True
        'weight_decay': 1e-6,
    })


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on embedded data with a tiny network and 12 steps, to see that it runs."""
    config.data.source = 'shapes'
    config.data.train_split, config.data.test_split = 'train[:512]', 'test[:256]'
    config.batch_size = 64
    config.num_train_steps = 12
    config.schedule.warmup_epochs = 0.25
    config.encoder.update({'depth': 10, 'width': 0.125, 'dtype': 'float32'})
    config.head.out_dim = 32
    config.augment.image_size = 32
    config.encoder.stem = 'cifar'
    config.eval.update({'crop_proportion': 1.0, 'batch_size': 64, 'knn_k': 20})
    config.linear.update({'batch_size': 64, 'num_epochs': 2.0})
    config.log.every_steps = 4
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


_POSITIVE = ('batch_size', 'method.temperature', 'encoder.depth', 'encoder.width', 'augment.image_size',
             'eval.batch_size', 'eval.crop_proportion', 'eval.knn_k', 'eval.knn_temperature',
             'linear.num_epochs', 'linear.batch_size', 'checkpoint.keep_last', 'log.every_steps')
_NOT_NEGATIVE = ('seed', 'num_epochs', 'num_train_steps', 'schedule.warmup_epochs', 'optimizer.weight_decay',
                 'eval.knn_every_epochs', 'checkpoint.every_epochs', 'checkpoint.keep_best')


def check_values(config: ConfigDict) -> None:
    """ValueError for a number that no run could use; the rest is checked where it is used."""
    fields = flatten(config)
    for name in _POSITIVE + _NOT_NEGATIVE:
        if fields[name] < 0 or name in _POSITIVE and fields[name] == 0:
            raise ValueError(f'{name} is {fields[name]}: it must be '
                             f'{"more than 0" if name in _POSITIVE else "0 or more"}.')
    if config.seed >= 1 << 31:
        raise ValueError(f'seed is {config.seed}: it must be less than 2**31.')


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
    """The whole config in a line a group: `encoder      depth=50, width=1.0, ...`."""
    fields = config.to_dict()
    plain = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    groups = {'run': plain} | {name: value for name, value in fields.items() if name not in plain}
    return '\n'.join(f'{name:<12}' + ', '.join(f'{field}={value}' for field, value in flatten(group).items())
                     for name, group in groups.items())


def nearest_field(config: ConfigDict, name: str) -> str:
    """The dotted field of `config` that `name` was most likely meant to be, or '' if none is near."""
    fields = list(flatten(config))
    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    same_leaf = [field for field in fields if field.rsplit('.', 1)[-1] == name.rsplit('.', 1)[-1]]
    return (close or same_leaf or [''])[0]


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
