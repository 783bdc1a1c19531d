"""The views of a run by its config."""

from collections.abc import Callable

from simclr_jax.config import ConfigDict, view_config
from simclr_jax.config.names import resolve
from simclr_jax.views.fields import SmallViews, View


def views_of(fields: ConfigDict) -> tuple[View, View]:
    """Both views of a config's `augment` block; ValueError with one sentence where a field will not do."""
    extra = tuple(resolve(function, 'augment.extra') for function in fields.get('extra', ()))
    view1, view2 = (View(extra=extra).replace(**view_config(fields, name)) for name in ('view1', 'view2'))
    return view1, view2


def small_views_of(fields: ConfigDict, *, extra: tuple[Callable, ...]) -> SmallViews | None:
    """The small views of an `augment` block, with the further functions of the two; None where it has none.

    ValueError as `views_of`.
    """
    if not fields.get('small_views', 0):
        return None
    return SmallViews(View(extra=extra).replace(**view_config(fields, 'small_view')), fields.small_views,
                      fields.small_size)


def crop_and_flip_of(fields: ConfigDict) -> View:
    """The view of linear evaluation and fine-tuning: the crop and the flip of an `augment` block, no more."""
    return View().replace(crop=dict(fields.crop), flip=dict(fields.flip))
