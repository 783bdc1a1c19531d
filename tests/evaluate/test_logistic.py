import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.logistic import fit_logistic, logistic_accuracy


def problem(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count).astype(np.int32)
    centres = np.random.default_rng(5).normal(size=(4, 10))
    features = (centres[labels] + 1.2 * rng.normal(size=(count, 10))) * np.geomspace(0.01, 100, 10) + 3
    return Features(features.astype(np.float32), labels)


def objective(features, labels, weights, bias, l2):
    logits = features.astype(np.float64) @ weights.astype(np.float64) + bias.astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean() + 0.5 * l2 * (weights.astype(np.float64) ** 2).sum()


def test_reaches_the_minimum_that_scikit_learn_finds():
    train = problem(400, 0)
    features = StandardScaler().fit_transform(train.features).astype(np.float32)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(features, train.labels)
    weights, bias = fit_logistic(features, train.labels, num_classes=4, l2=1 / 400)
    least = objective(features, train.labels, oracle.coef_.T, oracle.intercept_, 1 / 400)
    assert abs(objective(features, train.labels, weights, bias, 1 / 400) - least) < 1e-5


def test_accuracy_agrees_with_scikit_learn_whatever_the_scale_of_the_features():
    train, test = problem(400, 0), problem(500, 1)
    scaler = StandardScaler().fit(train.features)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    oracle.fit(scaler.transform(train.features), train.labels)
    expected = oracle.score(scaler.transform(test.features), test.labels)
    assert 0.6 < expected < 0.99
    assert abs(logistic_accuracy(train, test, num_classes=4) - expected) < 1.5 / 500


def test_constant_features_do_no_harm():
    train = Features(np.zeros((40, 3), np.float32), np.arange(40, dtype=np.int32) % 2)
    assert logistic_accuracy(train, train, num_classes=2) == 0.5
