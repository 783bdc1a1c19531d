"""Arguments of recipes and overrides of fields: parsing, checks, near misses, printing."""

import difflib
import inspect
import math
import pathlib
import re
import runpy
from collections.abc import Mapping
from typing import Any

from simclr_jax.config.config_dict import ConfigDict
from simclr_jax.config.tasks import task_configs

_PACKAGE = pathlib.Path(__file__).parents[1]
_CONFIGS = next(filter(pathlib.Path.is_dir, (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')), _PACKAGE)


def recipes_here() -> list[str]:
    """The names of the recipes of configs/, of the installed package or of the checkout."""
    return sorted(path.stem for path in _CONFIGS.glob('*.py'))


def recipe_path(named: str) -> str:
    """`FILE.py[:ARGUMENT]` of what `--config` names: a file, or a recipe such as 'smoke', 'studies/heads' or
    'configs/smoke.py', from anywhere.

    Raises:
        FileNotFoundError: if it is neither a file nor a recipe, naming the recipes that exist.
    """
    name, colon, argument = named.partition(':')
    for path in (pathlib.Path(name), _CONFIGS / f'{name}.py', _CONFIGS.parent / name):
        if path.is_file():
            return f'{path}{colon}{argument}'
    raise FileNotFoundError(f'No config file {name}, whose path is relative to the current directory, and no '
                            f'recipe of that name: there are {", ".join(recipes_here())}.')


def recipe_name(named: str) -> str:
    """NAME[:ARGUMENT] of what `recipe_path` returns: of a recipe of configs/ its name there, else the whole path."""
    path, colon, argument = named.partition(':')
    file, folder = pathlib.Path(path).resolve(), _CONFIGS.resolve()
    name = file.relative_to(folder).with_suffix('') if file.is_relative_to(folder) else file
    return f'{name}{colon}{argument}'


def load_recipe(named: str) -> ConfigDict:
    """The config that a recipe makes, `FILE.py[:ARGUMENT]` or by its name.

    Raises:
        FileNotFoundError: there is none, see `recipe_path`.
        ValueError: its file has no get_config, or that returns something else than a config.
    """
    path, _, argument = recipe_path(named).partition(':')
    get_config = runpy.run_path(path).get('get_config')
    if not callable(get_config):
        raise ValueError(f'{path} defines no get_config(argument): a recipe is a file with a function of this name '
                         'that returns a config (docs/recipes.md).')
    takes = inspect.signature(get_config).parameters
    if argument and not takes:
        raise ValueError(f"{path} takes no argument: its get_config() has none, and ':{argument}' was given.")
    config = get_config(*[argument] * bool(takes))
    if not isinstance(config, ConfigDict):
        raise ValueError(f'get_config of {path} returns {type(config).__name__}: it must return a config, as '
                         'simclr_jax.config.base_config() makes.')
    return config


_SWITCH = {'': True, '1': True, 'true': True, 'yes': True, '0': False, 'false': False, 'no': False}


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
            values[name] = _SWITCH[text.lower()] if kind is bool else kind(text)
        except KeyError:
            raise ValueError(f'The argument {name}={text!r} is neither true nor false.') from None
        except ValueError:
            raise ValueError(f'The argument {name} takes {kind_of(values[name])}, not {text!r}.') from None
    return values


def kind_of(value: Any) -> str:
    """Which values a field with this default takes, in words; '' where any will do."""
    return {bool: 'true or false', int: 'a whole number', float: 'a number'}.get(type(value), '')


_POSITIVE = ('batch_size', 'encoder_chunks', 'method.temperature', 'encoder.depth', 'encoder.width',
             'augment.image_size', 'eval.batch_size', 'eval.crop_proportion', 'eval.knn_k',
             'eval.knn_temperature', 'linear.num_epochs', 'linear.batch_size', 'finetune.num_epochs',
             'finetune.batch_size', 'distil.num_epochs', 'distil.batch_size', 'distil.temperature',
             'checkpoint.keep_last', 'log.every_steps', 'plan.chunks', 'plan.num_classes', 'plan.num_images',
             'bench_input.num_images')
_NOT_NEGATIVE = ('seed', 'num_epochs', 'num_train_steps', 'schedule.warmup_epochs', 'encoder.sk_ratio',
                 'eval.knn_every_epochs', 'eval.evaluators_every_epochs',
                 'eval.resize_to', 'checkpoint.every_epochs', 'checkpoint.keep_best',
                 'plan.memory_gib', 'plan.max_batch', 'data.pad_to', 'method.queue_size',
                 'bench_input.images_per_second')
# Fields of these names, in every block.
_RATES = ('learning_rate', 'weight_decay', 'trust_coefficient', 'norm_epsilon')
_SHARES = ('momentum', 'norm_momentum', 'memory_momentum', 'b1', 'b2', 'label_share', 'alpha', 'max_bad_share')
# Blocks with fields of any name; those of a part of the user's own are not checked either.
OPEN = re.compile(r'(method|study|encoder\.arguments|data\.arguments|augment\.(view1|view2|small_view))(\.|$)')


def check_values(config: ConfigDict) -> None:
    """ValueError for a number that no run could use, or a field that nothing reads; the rest is checked in its place.

    A field that `base_config` has not is an error in one of its blocks, and beside them where its name is near
    that of a field: it was meant to be that one. A recipe may have other blocks and fields of its own.
    """
    from simclr_jax.config.fields import base_config
    base, fields = base_config(), flatten(config)
    lacking = [name for name in base if name not in config]
    if lacking:
        raise ValueError(f'The config lacks {", ".join(lacking)}: begin with simclr_jax.config.base_config().')
    known = flatten(base)
    for name in fields:
        block, _, inner = name.partition('.')
        if name not in known and not OPEN.match(name) and (
                block in base if inner else difflib.get_close_matches(name, known, cutoff=0.8)):
            raise ValueError(no_such_field(base, name))
    is_own = not config.method.name or ':' in config.method.name
    for name, value in fields.items():
        allowed = '' if is_own and name.startswith('method.') else _range(name)
        if not _FITS[allowed](value):
            raise ValueError(f'{name} is {value}: it must be {allowed}.')
    if config.batch_size == 1 and config.task == 'pretrain':
        raise ValueError('batch_size is 1: a contrastive loss and BatchNorm need more than one image; take 2 '
                         'or more.')
    if config.seed >= 1 << 31:
        raise ValueError(f'seed is {config.seed}: it must be less than 2**31.')
    check_profile_steps(config.profile_steps)


def set_channels(config: ConfigDict, channels: int) -> None:
    """Gives `augment.mean` and `std` a number for each channel; ValueError where they have another number."""
    for field in ('mean', 'std'):
        values = tuple(config.augment[field])
        if len(values) != channels and len(set(values)) > 1:
            raise ValueError(f'augment.{field} is {values}, but the images have {channels} channels: give a '
                             'number for each.')
        config.augment[field] = values if len(values) == channels else values[:1] * channels


_FITS = {'more than 0': lambda value: 0 < value < math.inf, '0 or more': lambda value: 0 <= value < math.inf,
         'from 0 to 1': lambda value: 0 <= value <= 1, '': lambda value: True}


def _range(name: str) -> str:
    """Which numbers a field may hold, '' where nothing is known of it."""
    leaf = name.rpartition('.')[2]
    if name in _POSITIVE:
        return 'more than 0'
    return '0 or more' if name in _NOT_NEGATIVE or leaf in _RATES else 'from 0 to 1' if leaf in _SHARES else ''


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


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; an empty dict stays a value."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)) and value:
            flat |= flatten(value, f'{prefix}{name}.')
        else:
            flat[prefix + name] = value
    return flat


def describe(config: ConfigDict) -> str:
    """The fields that have not their defaults, a line a block, and all of the task's own: `encoder  depth=18, ...`.

    Of a task that takes what it evaluates from a run, the blocks that say how that is trained are left out.
    """
    from simclr_jax.config.fields import base_config
    defaults, lines = flatten(base_config().to_dict()), {'run': []}
    trains = config.task in ('pretrain', 'plan', 'bench_input', 'study')
    hidden = {'few_images', *task_configs()} | ({'predictor'} if config.predictor.mode == 'none' else set())
    hidden |= set() if trains else set(config) - {'data', 'eval'}
    for name, value in flatten(config.to_dict()).items():
        block, field = name.split('.', 1) if '.' in name else ('run', name)
        if block == config.task or block not in hidden and (name not in defaults or value != defaults[name]):
            lines.setdefault(block, []).append(f'{field}={value}')
    shown = [f'{block:<12}' + ', '.join(fields) for block, fields in lines.items() if fields]
    rest = ('All other fields have their defaults; config.json in the workdir has every one.' if trains else
            'How the encoder was trained is in the config.json of its run.')
    return '\n'.join([*shown, rest])


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


def no_such_field(config: ConfigDict, name: str) -> str:
    """The sentence for a field that `config` has not, with the one that was most likely meant."""
    near = 'init_from' if name == 'pretrained' else nearest_field(config, name)
    hint = f'did you mean {near!r}?' if near else 'simclr_jax/config/fields.py lists them.'
    return f'The config has no field {name!r}; {hint}'
