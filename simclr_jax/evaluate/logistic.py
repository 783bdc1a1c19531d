"""The linear probe on fixed features: multinomial logistic regression by L-BFGS, run to convergence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.evaluate.features import Features


def logistic_accuracy(train: Features, test: Features, *, num_classes: int, l2: float | None = None,
                      max_steps: int = 500) -> float:
    """Top-1 accuracy on `test` of the classifier fitted to `train`.

    Features are standardised with the statistics of `train`, so that an encoder's scale, which
    says nothing of what it knows, does not decide how well the fit converges.

    Args:
        l2: weight of 0.5 |W|^2 beside the mean cross-entropy; None = 1/N, scikit-learn's C = 1.
    """
    mean, std = train.features.mean(0), train.features.std(0) + 1e-6
    weights, bias = fit_logistic((train.features - mean) / std, train.labels, num_classes=num_classes,
                                 l2=1 / len(train.labels) if l2 is None else l2, max_steps=max_steps)
    logits = (test.features - mean) / std @ weights + bias
    return float((logits.argmax(-1) == test.labels).mean())


def fit_logistic(features: np.ndarray, labels: np.ndarray, *, num_classes: int, l2: float,
                 max_steps: int = 500, tolerance: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """Minimises mean cross-entropy + l2/2 |W|^2 from zero; returns W [D, C] and b [C].

    features: [N, D] float32; labels: [N] int. Stops when the gradient's norm is below `tolerance`.
    """
    weights, bias = _minimise(jnp.asarray(features), jnp.asarray(labels), num_classes, l2, max_steps,
                              tolerance)
    return np.asarray(weights), np.asarray(bias)


@functools.partial(jax.jit, static_argnums=(2, 4))
def _minimise(features, labels, num_classes, l2, max_steps, tolerance):
    def loss(classifier):
        weights, bias = classifier
        logits = jnp.matmul(features, weights, precision='highest') + bias       # [N, C]
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + 0.5 * l2 * jnp.sum(weights ** 2)

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(carry):
        classifier, state, _, count = carry
        value, gradient = value_and_gradient(classifier, state=state)
        updates, state = solver.update(gradient, state, classifier, value=value, grad=gradient,
                                       value_fn=loss)
        return optax.apply_updates(classifier, updates), state, optax.tree.norm(gradient), count + 1

    def unfinished(carry):
        return (carry[2] > tolerance) & (carry[3] < max_steps)

    start = (jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes))
    return jax.lax.while_loop(unfinished, step, (start, solver.init(start), jnp.inf, 0))[0]
