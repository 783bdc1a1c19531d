"""The linear probe on fixed features: multinomial logistic regression by L-BFGS, run to convergence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.evaluate.features import Features, check_features, take
from simclr_jax.evaluate.subsets import heldout_rows

# Chen et al. 2020, App. B.8. Here they weigh 0.5 |W|^2 beside the summed cross-entropy, as 1/C of
# scikit-learn does; the paper does not say which. Beside the mean, most of them would leave W at 0.
L2_VALUES = tuple(np.geomspace(1e-6, 1e5, 45))
_WIDEST = 4096          # features whose principal axes are worth their D^3
# Of each value of the sweep, begun where the last one ended: steps, and what a step must gain.
_SWEEP_STEPS, _SWEEP_TOLERANCE = 100, 1e-6


class Logistic(NamedTuple):
    """A linear classifier of features, and how it came to be."""

    mean: np.ndarray        # [D] of the training features, as the scale
    std: np.ndarray         # [D]
    weights: np.ndarray     # [D, C]
    bias: np.ndarray        # [C]
    l2: float               # weight of 0.5 |W|^2 beside the summed cross-entropy
    heldout: tuple[float, ...] = ()     # accuracy of each of L2_VALUES where it was chosen; () if given

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, C]."""
        return (features - self.mean) / self.std @ self.weights + self.bias


def logistic_accuracy(train: Features, test: Features, *, num_classes: int, l2: float = 1.0) -> float:
    """Top-1 accuracy on `test` of the classifier fitted to `train` (see `fit_standardised`)."""
    check_features(num_classes, training=train, test=test)
    classifier = fit_standardised(train, num_classes=num_classes, l2=l2)
    return float((classifier.logits(test.features).argmax(-1) == test.labels).mean())


def check_l2(field: str, value: str | float) -> float | None:
    """An l2 as a number, None for 'sweep'; ValueError for anything else."""
    if value == 'sweep':
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float('inf'):
        raise ValueError(f"{field} is {value!r}: it takes 'sweep' or a number of 0 or more.")
    return number


def fit_with_l2(train: Features, num_classes: int, l2: float | None, seed: int) -> Logistic:
    """Logistic regression by L-BFGS with this l2; None: the best on a held-out tenth of `train`."""
    if l2 is None:
        return fit_best_classifier(train, num_classes=num_classes, seed=seed)
    return fit_standardised(train, num_classes=num_classes, l2=l2)


def fit_standardised(train: Features, *, num_classes: int, l2: float) -> Logistic:
    """Logistic regression on features that are standardised with the statistics of `train`.

    So an encoder's scale, which says nothing of what it knows, does not decide how well the fit converges.

    Args:
        l2: weight of 0.5 |W|^2 beside the summed cross-entropy: 1/C of scikit-learn.

    Raises ValueError where a feature is not finite or a label none of the classes.
    """
    check_features(num_classes, training=train)
    mean, std = train.features.mean(0), train.features.std(0) + 1e-6
    weights, bias = fit_logistic((train.features - mean) / std, train.labels, num_classes=num_classes,
                                 l2=l2 / len(train.labels))
    return Logistic(mean, std, weights, bias, l2)


def fit_best_classifier(train: Features, *, num_classes: int, seed: int) -> Logistic:
    """`fit_standardised` to all of `train` with that of L2_VALUES that does best on a held-out tenth of it.

    The paper's protocol (App. B.8): no example outside `train` is looked at. Of equally good values the
    largest is taken. seed: of the choice of the held-out examples.
    """
    check_features(num_classes, training=train)
    fitted, held = (take(train, rows) for rows in heldout_rows(len(train.labels), seed))
    mean, std = fitted.features.mean(0), fitted.features.std(0) + 1e-6
    features, spread, axes = _along_principal_axes((fitted.features - mean) / std)
    held_features = (held.features - mean) / std
    held_features = held_features if axes is None else held_features @ axes
    accuracies, start = {}, (np.zeros((num_classes, len(spread))), np.zeros(num_classes))
    for l2 in reversed(L2_VALUES):
        start = _minimise(features, spread, fitted.labels, start, l2 / len(fitted.labels), _SWEEP_STEPS,
                          _SWEEP_TOLERANCE)
        logits = held_features @ start[0].T + start[1]
        accuracies[l2] = float((logits.argmax(-1) == held.labels).mean())
    best = max(reversed(L2_VALUES), key=accuracies.__getitem__)
    classifier = fit_standardised(train, num_classes=num_classes, l2=best)
    return classifier._replace(heldout=tuple(accuracies[l2] for l2 in L2_VALUES))


def fit_logistic(features: np.ndarray, labels: np.ndarray, *, num_classes: int, l2: float,
                 max_steps: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Minimises mean cross-entropy + l2/2 |W|^2; returns W [D, C] and b [C].

    features: [N, D] float32, of zero mean or near it; labels: [N] int. Computed in float64. Stops when a
    step gains less than 1e-10.
    """
    with jax.enable_x64(True):          # in float32 the last digits of the loss are noise
        rotated, spread, axes = _along_principal_axes(features.astype(np.float64))
        start = np.zeros((num_classes, len(spread))), np.zeros(num_classes)
        weights, bias = _minimise(rotated, spread, labels, start, l2, max_steps, 1e-10)
    weights = weights.T if axes is None else axes @ weights.T
    return weights.astype(np.float32), bias.astype(np.float32)


def _along_principal_axes(features: np.ndarray) -> tuple[jax.Array, np.ndarray, np.ndarray | None]:
    """Features [N, D] in the coordinates of their principal axes, where their curvature is near diagonal.

    Beside them their mean squares [D], and the axes [D, D], a column each; None: the features as they came.
    """
    if features.shape[1] > _WIDEST:
        return jnp.asarray(features), np.square(features).mean(0), None
    spread, axes = np.linalg.eigh(features.T @ features / len(features))
    return jnp.asarray(features @ axes), np.maximum(spread, 0), axes


def _minimise(features, spread, labels, start, l2, max_steps, tolerance):
    """W [C, D] and b [C] by L-BFGS, in coordinates scaled by the curvature where all classes are as likely.

    There it is spread / C + l2, and 1 / C of the bias.
    """
    import scipy.optimize  # only here: it takes half a second of every start

    num_classes = len(start[1])
    curvature = spread / num_classes + l2
    scale = np.append(1 / np.sqrt(np.maximum(curvature, 1e-6 * curvature.max() + 1e-12)), num_classes ** 0.5)
    labels, l2 = jnp.asarray(labels), jnp.asarray(l2, features.dtype)

    def value_and_gradient(flat):
        classifier = jnp.asarray(flat.reshape(num_classes, -1) * scale, features.dtype)
        value, gradient = _value_and_gradient(classifier, features, labels, l2)
        return float(value), (np.asarray(gradient, np.float64) * scale).ravel()

    flat = (np.column_stack(start) / scale).ravel()
    found = scipy.optimize.minimize(value_and_gradient, flat, jac=True, method='L-BFGS-B', options={
        'maxiter': max_steps, 'maxfun': 2 * max_steps, 'ftol': tolerance, 'gtol': 0.0})
    classifier = found.x.reshape(num_classes, -1) * scale
    return classifier[:, :-1], classifier[:, -1]


@jax.jit
@jax.value_and_grad
def _value_and_gradient(classifier, features, labels, l2):
    """Of [C, D + 1], the bias last: by [D, C] the gradient takes XLA three times as long."""
    weights, bias = classifier[:, :-1], classifier[:, -1]
    logits = jnp.matmul(features, weights.T, precision='highest') + bias                    # [N, C]
    is_label = labels[:, None] == jnp.arange(logits.shape[1])       # an index has XLA fold a scatter of N labels
    fit = (jax.nn.logsumexp(logits, axis=1) - jnp.where(is_label, logits, 0).sum(1)).mean()
    return fit + 0.5 * l2 * jnp.sum(weights ** 2)
