"""Fields that a set of few images has instead of a recipe's: the block `few_images` of a config.

`below` is the number of training images that are no longer few (0: there is no such number), and `instead`
holds (dotted field, the recipe's value, the value for few images). A field that has another value than the
recipe's was set by the user, and stays; who wants the recipe's values all the same sets `below` to 0.
"""

from collections.abc import Mapping
from typing import Any

from simclr_jax.config.arguments import flatten
from simclr_jax.config.config_dict import ConfigDict

NONE = {'below': 0, 'instead': ()}


def fit_to(config: ConfigDict, num_examples: int) -> tuple[ConfigDict, list[str]]:
    """`config` for so many training images, and the sentence that says what it has instead, if anything."""
    chosen = _open_fields(config) if num_examples < config.few_images.below else {}
    if not chosen:
        return config, []
    fields = flatten(config)
    changes = ', '.join(f'{name} {value} instead of {fields[name]}' for name, value in chosen.items())
    return _with_fields(config, chosen), [f'{num_examples:,} training images are few, so that other defaults are '
                                          f'used: {changes}. --config.few_images.below=0 turns this off.']


def as_begun(config: ConfigDict, begun: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with what it leaves open as a run has it already; `begun`: the run's config.json.

    A run from before there was such a block has the recipe's values.
    """
    kept = {name: _tuples(value) for name, value in flatten({'few_images': NONE} | dict(begun)).items()}
    config = _with_fields(config, {f'few_images.{field}': kept[f'few_images.{field}'] for field in NONE})
    return _with_fields(config, {name: kept[name] for name in _open_fields(config) if name in kept})


def _open_fields(config: ConfigDict) -> dict[str, Any]:
    """{field: its value for few images} of those that the user did not set."""
    fields = flatten(config)
    return {name: few for name, usual, few in config.few_images.instead
            if fields[name] == usual and usual != few and not _is_of_no_view(config.augment, name)}


def _is_of_no_view(augment: ConfigDict, name: str) -> bool:
    """Whether both views override an `augment.OPERATION.FIELD`, as those that Python code gives do."""
    if not name.startswith('augment.') or name.count('.') != 2:
        return False
    _, operation, field = name.split('.')
    return all(field in augment[view].get(operation, ()) for view in ('view1', 'view2'))


def _with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return config


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
