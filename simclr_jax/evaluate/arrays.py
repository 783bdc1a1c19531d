"""kNN and the linear probe as plain functions of arrays: features and labels in, accuracy out."""

import numbers

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike  # a list too

from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.knn import knn_accuracy
from simclr_jax.evaluate.logistic import logistic_accuracy


def knn(train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike,
        test_labels: ArrayLike, *, k: int = 200, temperature: float = 0.07) -> float:
    """Accuracy of weighted k-nearest-neighbour classification, exact (Wu et al. 2018, sec. 3.4).

    The k training features with the greatest cosine each vote for their class with weight
    exp(cosine / temperature). With several processes all must call it with the same arrays.

    Args:
        train_features, test_features: [N, D] and [M, D], any real type, of any length; computed in float32.
        train_labels, test_labels: integers [N] and [M], 0 or more; they need not be consecutive.
        k: from 1 to N.
        temperature: more than 0.

    Returns:
        The share of test features that are given their class, in [0, 1].

    Raises:
        ValueError: other shapes or types, features that are not finite, negative labels, k or temperature out
            of range.

    >>> import numpy as np, simclr_jax
    >>> features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    >>> simclr_jax.knn(features, [0, 0, 1, 1], features + 0.1, [0, 0, 1, 1], k=2)
    1.0
    """
    train, test, num_classes = _as_features(train_features, train_labels, test_features, test_labels)
    if not isinstance(k, numbers.Integral) or not 1 <= k <= len(train.labels):
        raise ValueError(f'knn: k is {k!r}, and there are {len(train.labels)} training features: it must be a '
                         'whole number from 1 to their number.')
    return knn_accuracy(train, test, num_classes=num_classes, k=int(k), temperature=temperature)


def linear_probe(train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike,
                 test_labels: ArrayLike, *, l2: float = 1.0) -> float:
    """Accuracy of multinomial logistic regression on fixed features, fitted by L-BFGS to convergence.

    Features are standardised by the mean and deviation of the training features.

    Args:
        train_features, test_features: [N, D] and [M, D], any real type; computed in float32.
        train_labels, test_labels: integers [N] and [M], 0 or more; they need not be consecutive.
        l2: at least 0; weight of 0.5 |W|^2 beside the summed cross-entropy, 1/C of scikit-learn.

    Returns:
        The share of test features that are given their class, in [0, 1].

    Raises:
        ValueError: other shapes or types, features that are not finite, negative labels, or a negative l2.

    >>> import numpy as np, simclr_jax
    >>> features = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    >>> simclr_jax.linear_probe(features, [0, 0, 1, 1], features + 0.1, [0, 0, 1, 1])
    1.0
    """
    train, test, num_classes = _as_features(train_features, train_labels, test_features, test_labels)
    if not (isinstance(l2, numbers.Real) and l2 >= 0):
        raise ValueError(f'linear_probe: l2 is {l2!r}: it must be a number of at least 0.')
    return logistic_accuracy(train, test, num_classes=num_classes, l2=float(l2))


def _as_features(train_features, train_labels, test_features, test_labels) -> tuple[Features, Features, int]:
    """Both parts, their classes numbered from 0 on, and the number of classes."""
    parts = [_checked('training', train_features, train_labels), _checked('test', test_features, test_labels)]
    widths = [features.shape[1] for features, _ in parts]
    if widths[0] != widths[1]:
        raise ValueError(f'The training features are {widths[0]} wide, the test features {widths[1]}.')
    classes, labels = np.unique(np.concatenate([labels for _, labels in parts]), return_inverse=True)
    train, test = (Features(features, part.astype(np.int32)) for (features, _), part in zip(
        parts, np.split(labels, [len(parts[0][0])])))
    return train, test, len(classes)


def _checked(what, features, labels):
    features, labels = np.asarray(features), np.asarray(labels)
    is_real = features.dtype.kind in 'iub' or jnp.issubdtype(features.dtype, jnp.floating)
    if features.ndim != 2 or not features.size or not is_real:
        raise ValueError(f'The {what} features are {features.dtype} {list(features.shape)}: they must be real '
                         'numbers [N, D], and there must be some.')
    if labels.shape != features.shape[:1] or labels.dtype.kind not in 'iu':
        raise ValueError(f'The {what} labels are {labels.dtype} {list(labels.shape)}: they must be integers '
                         f'[{len(features)}], one for each feature.')
    if labels.min() < 0:
        raise ValueError(f'{(labels < 0).sum()} of the {len(labels)} {what} labels are negative, the first '
                         f'is {labels[labels < 0][0]}: leave examples without a class out.')
    return features.astype(np.float32), labels
