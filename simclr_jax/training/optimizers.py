"""Optimisers as functions of the learning rate, with exclusions chosen by parameter path.

The train step computes the learning rate from its step number and builds the transformation
with it: `make_optimizer('lars', ...)(learning_rate).update(grads, opt_state, params)`. The state
does not depend on the learning rate, so any value serves for `init`.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from simclr_jax.training.leaves import Leaves, OneByOne

Optimizer = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
EXCLUDE = ('(^|/)probe/',)      # by default: the probe has its own optimiser, so no trust ratio is logged for it


def make_optimizer(
    name: str,
    *,
    momentum: float = 0.9,
    rate_in_momentum: bool = True,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    weight_decay_groups: Sequence[tuple[str, float]] = (),
    exclude: Sequence[str] = EXCLUDE,
    frozen: Sequence[str] = (),
    trust_coefficient: float = 0.001,
    b1: float = 0.9,
    b2: float = 0.999,
    leaves: Leaves = OneByOne(),
) -> Optimizer:
    """An optimiser by name, as a function of the learning rate.

    'lars'   v = momentum * v + lr * trust * (g + decay * w); w -= v, with the learning rate inside
             the buffer and trust = trust_coefficient * |w| / |g + decay * w|, or 1 if either
             norm is 0 (You et al. 2017; google-research/simclr tf2/lars_optimizer.py). With
             rate_in_momentum=False it stays outside: v = momentum * v + trust * (g + decay * w);
             w -= lr * v (byol/utils/optimizers.py, moco-v3 moco/optimizer.py). While the rate
             changes, the two are different optimisers.
    'sgd'    v = momentum * v + g + decay * w; w -= lr * v.
    'adamw'  Adam with b1, b2 and decoupled weight decay (Loshchilov & Hutter 2019).

    Excluded parameters get neither weight decay nor LARS's trust ratio. They are all scales and
    biases (at most one axis) and everything whose path, such as 'probe/kernel', matches a regex
    of `exclude`. The online probe is not trained by this, see steps.py.

    Args:
        nesterov: Nesterov instead of classic momentum, for 'lars' and 'sgd'.
        weight_decay: of every parameter that is not excluded.
        weight_decay_groups: (path regex, decay) pairs; the first that matches a parameter
            overrides both `weight_decay` and the exclusion from it.
        exclude: path regexes; they may match nothing.
        frozen: path regexes of parameters that stay as they are, whatever their gradient and decay.
        leaves: how norms are taken, see leaves.py.

    Raises:
        ValueError: an unknown name; at `init`, a group or a frozen pattern that matches no parameter.
    """
    is_excluded = functools.partial(_is_excluded, exclude=exclude)

    decay = _add_weight_decay(weight_decay, weight_decay_groups, is_excluded)
    trace = optax.trace(momentum, nesterov=nesterov)
    adapt = _scale_by_trust_ratio(trust_coefficient, is_excluded, leaves)

    def lars(learning_rate):
        last = (optax.scale_by_learning_rate(learning_rate), trace)
        return optax.chain(decay, adapt, *(last if rate_in_momentum else reversed(last)))

    def sgd(learning_rate):
        return optax.chain(decay, trace, optax.scale_by_learning_rate(learning_rate))

    def adamw(learning_rate):
        return optax.chain(
            optax.scale_by_adam(b1, b2), decay, optax.scale_by_learning_rate(learning_rate))

    optimizers = {'lars': lars, 'sgd': sgd, 'adamw': adamw}
    if name not in optimizers:
        raise ValueError(f'There is no optimizer {name!r}: optimizer.name (and finetune.optimizer, distil.optimizer) '
                         f'takes {", ".join(optimizers)}.')
    if not frozen:
        return optimizers[name]
    freeze = optax.masked(optax.set_to_zero(), functools.partial(_matched, 'optimizer.frozen', frozen))
    return lambda learning_rate: optax.chain(optimizers[name](learning_rate), freeze)


def _matched(field, patterns, params):
    """A tree of whether the path of each parameter matches; ValueError for a pattern that matches none."""
    paths = jax.tree.leaves(_map_with_path(lambda path, _: path, params))
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(f"{field}: '{pattern}' matches no parameter; the paths look like '{paths[0]}'.")
    return _map_with_path(lambda path, _: any(re.search(pattern, path) for pattern in patterns), params)


def lars(learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 0.0,
         trust_coefficient: float = 0.001, exclude: Sequence[str] = (), rate_in_momentum: bool = True
         ) -> optax.GradientTransformation:
    """LARS (You et al. 2017) as an optax transformation, by default as SimCLR's official code has it.

    See `make_optimizer` for its formula. Scales and biases (at most one axis) get neither weight decay nor the
    trust ratio. Parameters, gradients and state are float32 trees of one structure.

    Args:
        learning_rate: a number of at least 0, a scalar array, or an optax schedule, step -> rate.
        momentum: in [0, 1).
        weight_decay: at least 0; the official commands pass 1e-4, the paper 1e-6.
        trust_coefficient: more than 0.
        exclude: regular expressions; parameters whose path, such as 'Dense_0/kernel', matches one are left out
            too.
        rate_in_momentum: False keeps the rate out of the momentum's buffer, as BYOL and MoCo v3.

    Raises:
        ValueError: a number out of its range.

    >>> import functools, jax.numpy as jnp, optax, simclr_jax
    >>> params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    >>> schedule = functools.partial(simclr_jax.warmup_cosine, peak=4.8, warmup_steps=10, total_steps=100)
    >>> optimizer = simclr_jax.lars(schedule, weight_decay=1e-4)
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)        # here the gradients are the parameters
    >>> optax.apply_updates(params, updates)['kernel'].shape            # the rate of step 0 is 0
    (2, 2)
    """
    for name, value, is_valid, wanted in (
            ('momentum', momentum, 0 <= momentum < 1, 'in [0, 1)'),
            ('weight_decay', weight_decay, weight_decay >= 0, 'at least 0'),
            ('trust_coefficient', trust_coefficient, trust_coefficient > 0, 'more than 0'),
            ('learning_rate', learning_rate, not isinstance(learning_rate, (int, float)) or learning_rate >= 0,
             'at least 0')):
        if not is_valid:
            raise ValueError(f'lars: {name} is {value!r}: it must be {wanted}.')
    return make_optimizer('lars', momentum=momentum, weight_decay=weight_decay, exclude=exclude,
                          trust_coefficient=trust_coefficient, rate_in_momentum=rate_in_momentum)(learning_rate)


def make_trust_ratios(*, weight_decay: float = 0.0, weight_decay_groups: Sequence[tuple[str, float]] = (),
                      exclude: Sequence[str] = EXCLUDE, trust_coefficient: float = 0.001,
                      leaves: Leaves = OneByOne(), **_) -> tuple[Callable, Callable]:
    """What LARS multiplies each layer's update by, for a log; arguments as of `make_optimizer`.

    Returns:
        (params, gradients) -> [L] float32, |w| / |g + decay * w| times trust_coefficient, or 1 where
        either norm is 0; and params -> the paths of these L parameters, those that are not excluded.
    """
    is_excluded = functools.partial(_is_excluded, exclude=exclude)
    decay = _add_weight_decay(weight_decay, weight_decay_groups, is_excluded)

    def trust_ratios(params, gradients):        # what the optimiser computes too: XLA does it once
        gradients, _ = decay.update(gradients, optax.EmptyState(), params)
        return jnp.stack(_trust_ratios(params, gradients, trust_coefficient, is_excluded, leaves))

    def names(params):
        return _adapted(_map_with_path(lambda path, _: path, params), params, is_excluded)

    return trust_ratios, names


def make_update_metrics(name: str, *, gradient_norms: Sequence[str] = (), **settings: Any) -> Callable:
    """(params, gradients) -> what a log says of an update.

    'trust_ratios' [L] of LARS, and for each regex of `gradient_norms` 'gradient_norm/REGEX', the norm of the
    gradient in the parameters whose path it matches; ValueError where it matches none.
    """
    trust_ratios, _ = make_trust_ratios(**settings)

    def update_metrics(params, gradients):
        metrics = {'trust_ratios': trust_ratios(params, gradients)} if name == 'lars' else {}
        for pattern in gradient_norms:
            matched = _matched('log.gradient_norms', (pattern,), gradients)
            metrics[f'gradient_norm/{pattern}'] = optax.tree.norm(
                [leaf for leaf, counts in zip(*map(jax.tree.leaves, (gradients, matched))) if counts])
        return metrics

    return update_metrics


def notes_on_probe(weight_decay_groups: Sequence[tuple[str, float]], exclude: Sequence[str], params: Any
                   ) -> list[str]:
    """A sentence for each pattern, of those of `make_optimizer`, that matches nothing but the online probe."""
    paths = jax.tree.leaves(_map_with_path(lambda path, _: path, params))
    given = [('weight_decay_groups', pattern) for pattern, _ in weight_decay_groups]
    given += [('exclude', pattern) for pattern in exclude if pattern not in EXCLUDE]
    return [f"optimizer.{field}: '{pattern}' has no effect: it matches the online probe alone, which has its own "
            'optimiser.' for field, pattern in given
            if {path.split('/')[0] for path in paths if re.search(pattern, path)} == {'probe'}]


def _is_excluded(path: str, param: Any, *, exclude: Sequence[str]) -> bool:
    return param.ndim <= 1 or any(re.search(pattern, path) for pattern in exclude)


def _scale_by_trust_ratio(coefficient, is_excluded, leaves):
    """`optax.masked(optax.scale_by_trust_ratio(...))` of the same values and state, all norms together."""

    def update(updates, state, params=None):
        ratios = iter(_trust_ratios(params, updates, coefficient, is_excluded, leaves))
        return _map_with_path(lambda path, update, param: (
            update if is_excluded(path, param) else update * next(ratios)), updates, params), state

    return optax.GradientTransformation(lambda params: optax.MaskedState(optax.EmptyState()), update)


def _trust_ratios(params, updates, coefficient, is_excluded, leaves):
    """L scalars, one for each parameter that is not excluded."""
    norms = [leaves.norms(_adapted(tree, params, is_excluded)) for tree in (params, updates)]
    return [jnp.where((of_param == 0) | (of_update == 0), 1.0, coefficient * of_param / of_update)
            for of_param, of_update in zip(*norms)]


def _adapted(tree, params, is_excluded):
    """The leaves of `tree` whose parameter is not excluded."""
    return jax.tree.leaves(_map_with_path(
        lambda path, leaf, param: None if is_excluded(path, param) else leaf, tree, params))


def _add_weight_decay(default, groups, is_excluded):
    """g + decay * w with the decay of each parameter: its first group, else the default."""

    def decay_of(path, param):
        for pattern, value in groups:
            if re.search(pattern, path):
                return value
        return 0.0 if is_excluded(path, param) else default

    def init(params):
        _matched('weight_decay_groups', [pattern for pattern, _ in groups], params)
        return optax.EmptyState()

    def update(grads, state, params=None):
        def decayed(path, grad, param):
            value = decay_of(path, param)
            return grad + value * param if value else grad

        return _map_with_path(decayed, grads, params), state

    return optax.GradientTransformation(init, update)


def _map_with_path(function, tree, *rest):
    """`jax.tree.map_with_path` with paths such as 'encoder/stem/kernel'."""
    return jax.tree.map_with_path(
        lambda path, *leaves: function(
            jax.tree_util.keystr(path, simple=True, separator='/'), *leaves),
        tree, *rest)
