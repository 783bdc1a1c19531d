"""Arguments of recipes and overrides of fields: parsing, checks, near misses, printing."""

import difflib
import pathlib
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
    """`FILE.py[:ARGUMENT]` of what `--config` names: a file, or a recipe such as 'smoke' or 'studies/heads'.

    Raises:
        FileNotFoundError: if it is neither a file nor a recipe, naming the recipes that exist.
    """
    name, colon, argument = named.partition(':')
    for path in (pathlib.Path(name), _CONFIGS / f'{name}.py'):
        if path.is_file():
            return f'{path}{colon}{argument}'
    raise FileNotFoundError(f'No config file {name}, whose path is relative to the current directory, and no '
                            f'recipe of that name: there are {", ".join(recipes_here())}.')


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
            raise ValueError(f'The argument {name}={text!r} is not a valid {kind.__name__}.') from None
    return values


_POSITIVE = ('batch_size', 'encoder_chunks', 'method.temperature', 'encoder.depth', 'encoder.width',
             'augment.image_size', 'eval.batch_size', 'eval.crop_proportion', 'eval.knn_k',
             'eval.knn_temperature', 'linear.num_epochs', 'linear.batch_size', 'checkpoint.keep_last',
             'log.every_steps', 'plan.chunks', 'plan.num_classes', 'plan.num_images', 'bench_input.num_images')
_NOT_NEGATIVE = ('seed', 'num_epochs', 'num_train_steps', 'schedule.warmup_epochs', 'optimizer.weight_decay',
                 'eval.knn_every_epochs', 'eval.resize_to', 'checkpoint.every_epochs', 'checkpoint.keep_best',
                 'plan.memory_gib', 'plan.max_batch', 'data.pad_to', 'data.max_bad_share',
                 'bench_input.images_per_second')


def check_values(config: ConfigDict) -> None:
    """ValueError for a number that no run could use; the rest is checked where it is used."""
    fields = flatten(config)
    for name in _POSITIVE + _NOT_NEGATIVE:
        if name in fields and (fields[name] < 0 or name in _POSITIVE and fields[name] == 0):
            raise ValueError(f'{name} is {fields[name]}: it must be '
                             f'{"more than 0" if name in _POSITIVE else "0 or more"}.')
    if config.batch_size == 1 and config.task == 'pretrain':
        raise ValueError('batch_size is 1: a contrastive loss and BatchNorm need more than one image; take 2 '
                         'or more.')
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
