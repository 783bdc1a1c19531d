"""Every field of a config with its default, what recipes share, and how a command changes a field."""

from simclr_jax.config.arguments import (check_profile_steps, check_values, describe, flatten, nearest_field,
                                         parse_argument, recipe_path, recipes_here)
from simclr_jax.config.fields import ConfigDict, base_config, view_config
from simclr_jax.config.recipes import (IMAGENET_MEAN, IMAGENET_STD, augment_config, byol_augment, for_short_runs,
                                       moco_augment, smoke, use_method)

__all__ = ['ConfigDict', 'IMAGENET_MEAN', 'IMAGENET_STD', 'augment_config', 'base_config', 'byol_augment',
           'check_profile_steps', 'check_values', 'describe', 'flatten', 'for_short_runs', 'moco_augment',
           'nearest_field', 'parse_argument', 'recipe_path', 'recipes_here', 'smoke', 'use_method', 'view_config']
