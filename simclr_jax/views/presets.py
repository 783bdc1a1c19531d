"""The views of a run by its config."""

from simclr_jax.config import ConfigDict, view_config
from simclr_jax.config.names import resolve
from simclr_jax.views.fields import View


def views_of(fields: ConfigDict) -> tuple[View, View]:
    """Both views of a config's `augment` block; ValueError with one sentence where a field will not do."""
    extra = tuple(resolve(name, 'augment.extra') for name in fields.get('extra', ()))
    first, second = (View(extra=extra).replace(**view_config(fields, name)) for name in ('view1', 'view2'))
    return first, second


def crop_and_flip_of(fields: ConfigDict) -> View:
    """The view of linear evaluation and fine-tuning: the crop and the flip of an `augment` block, no more."""
    return View().replace(crop=dict(fields.crop), flip=dict(fields.flip))
