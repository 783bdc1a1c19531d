"""Every field of a config with its default, what recipes share, and how a command changes a field.

`base_config()` has every field (config/fields.py says what each is); `use_method` and the `..._augment`
functions set those of a method, and raise ValueError for a name that is none; `smoke` makes a recipe tiny.

>>> import simclr_jax
>>> config = simclr_jax.config.base_config()
>>> simclr_jax.config.use_method(config, 'moco_v2')
>>> config.augment = simclr_jax.config.moco_augment(image_size=32, blur=False)
>>> config.method.temperature, config.augment.crop.area
(0.2, (0.2, 1.0))
"""

from simclr_jax.config.arguments import (
    check_profile_steps,
    check_values,
    describe,
    flatten,
    kind_of,
    load_recipe,
    nearest_field,
    no_such_field,
    parse_argument,
    recipe_name,
    recipe_path,
    recipes_here,
    set_channels,
)
from simclr_jax.config.fields import ConfigDict, base_config, view_config
from simclr_jax.config.recipes import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    augment_config,
    byol_augment,
    for_short_runs,
    moco_augment,
    resize_as_torchvision,
    smoke,
    use_method,
    use_multi_crop,
)

__all__ = ['ConfigDict', 'IMAGENET_MEAN', 'IMAGENET_STD', 'augment_config',
           'base_config', 'byol_augment', 'check_profile_steps', 'check_values', 'describe', 'flatten',
           'for_short_runs', 'kind_of', 'load_recipe', 'moco_augment', 'nearest_field', 'no_such_field',
           'parse_argument', 'recipe_name', 'recipe_path', 'recipes_here', 'resize_as_torchvision',
           'set_channels', 'smoke', 'use_method', 'use_multi_crop', 'view_config']
