import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from simclr_jax.evaluate.features import Features
from simclr_jax.evaluate.knn import knn_accuracy
from simclr_jax.evaluate.logistic import L2_VALUES, fit_best_classifier, fit_logistic, logistic_accuracy
from simclr_jax.evaluate.subsets import heldout_rows


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


@pytest.mark.parametrize('width', [10, 4100])       # too wide for the principal axes
def test_reaches_the_minimum_that_scikit_learn_finds(width):
    train = problem(400, 0)
    features = StandardScaler().fit_transform(train.features).astype(np.float32)
    oracle = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(features, train.labels)
    padded = np.pad(features, ((0, 0), (0, width - 10)))
    weights, bias = fit_logistic(padded, train.labels, num_classes=4, l2=1 / 400)
    least = objective(features, train.labels, oracle.coef_.T, oracle.intercept_, 1 / 400)
    assert abs(objective(padded, train.labels, weights, bias, 1 / 400) - least) < 1e-5


def test_features_that_say_nearly_the_same_take_no_more_steps():
    """As neighbouring pixels do: all ten columns are one and a hundredth of their own."""
    train = problem(400, 0)
    alike = StandardScaler().fit_transform(train.features) * 0.01
    features = (alike + np.random.default_rng(1).normal(size=(400, 1))).astype(np.float32)
    oracle = LogisticRegression(C=1e4, tol=1e-10, max_iter=500, solver='newton-cholesky')
    oracle.fit(features.astype(np.float64), train.labels)
    weights, bias = fit_logistic(features, train.labels, num_classes=4, l2=1e-4 / 400, max_steps=40)
    least = objective(features, train.labels, oracle.coef_.T, oracle.intercept_, 1e-4 / 400)
    assert abs(objective(features, train.labels, weights, bias, 1e-4 / 400) - least) < 1e-5


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


def scored(train, test, l2):
    """scikit-learn's accuracy and its classifier, on features standardised by `train`."""
    scaler = StandardScaler().fit(train.features)
    oracle = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(scaler.transform(train.features),
                                                                        train.labels)
    return oracle.score(scaler.transform(test.features), test.labels), oracle


def test_the_sweep_has_the_papers_values():
    """App. B.8: 45 logarithmically spaced values between 1e-6 and 1e5."""
    np.testing.assert_allclose(L2_VALUES, 10.0 ** np.linspace(-6, 5, 45), rtol=1e-12)


def test_the_sweep_scores_on_held_out_training_rows_and_fits_the_best_to_all():
    train, test = problem(400, 0), problem(500, 1)
    classifier = fit_best_classifier(train, num_classes=4, seed=7)
    fitted, held = (Features(train.features[rows], train.labels[rows]) for rows in heldout_rows(400, 7))
    for number in (0, 20, 30, 36, 44):
        expected = scored(fitted, held, L2_VALUES[number])[0]
        assert abs(classifier.heldout[number] - expected) < 1.5 / len(held.labels), L2_VALUES[number]
    best = max(classifier.heldout)
    assert classifier.l2 == max(l2 for l2, share in zip(L2_VALUES, classifier.heldout) if share == best)
    assert min(classifier.heldout) < best
    expected, oracle = scored(train, test, classifier.l2)
    actual = (classifier.logits(test.features).argmax(1) == test.labels).mean()
    assert abs(actual - expected) < 1.5 / 500
    features, l2 = (train.features - classifier.mean) / classifier.std, classifier.l2 / 400
    least = objective(features, train.labels, oracle.coef_.T, oracle.intercept_, l2)
    assert abs(objective(features, train.labels, classifier.weights, classifier.bias, l2) - least) < 1e-5


def test_a_fit_that_is_nearly_perfect_ends_at_scikit_learns_minimum():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 1500).astype(np.int32)
    features = 0.6 * rng.normal(size=(5, 128))[labels] + rng.normal(size=(1500, 128))
    features = StandardScaler().fit_transform(features).astype(np.float32)
    oracle = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000).fit(features.astype(np.float64), labels)
    least = objective(features, labels, oracle.coef_.T, oracle.intercept_, 1 / 1500)
    weights, bias = fit_logistic(features, labels, num_classes=5, l2=1 / 1500)
    assert least < 0.01
    np.testing.assert_allclose(objective(features, labels, weights, bias, 1 / 1500), least, rtol=1e-6)


@pytest.mark.parametrize('function', [
    lambda train, test: logistic_accuracy(train, test, num_classes=4),
    lambda train, test: fit_best_classifier(train, num_classes=4, seed=0),
    lambda train, test: knn_accuracy(train, test, num_classes=4, k=3, temperature=0.1)])
def test_features_that_are_no_numbers_and_labels_that_are_no_classes_are_refused(function):
    train = problem(40, 0)
    broken = train._replace(features=np.where(np.arange(40)[:, None] == 7, np.nan, train.features))
    with pytest.raises(ValueError, match='1 of the 40 training features are not finite.*row 7'):
        function(broken, train)
    with pytest.raises(ValueError, match=r'1 of the 40 training labels are not in \[0, 4\), the first is -1'):
        function(train._replace(labels=np.where(np.arange(40) == 7, -1, train.labels)), train)
