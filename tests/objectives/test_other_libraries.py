"""Our losses have the values of other libraries, which the tests do not need: their results stand here.

Computed in float32 by Lightly 1.6.0 (NTXentLoss, DCLLoss, NegativeCosineSimilarity), pytorch-metric-learning 2.9.0
(SelfSupervisedLoss(NTXentLoss)) with torch 2.14.1, and optax 0.2.8 (losses.ntxent), for inputs that numpy draws:
`default_rng(seed).normal(size=(2, N, D))`, the two views.
"""

import jax
import numpy as np
import pytest

from simclr_jax.objectives.cosine_regression import cosine_regression
from simclr_jax.objectives.info_nce import info_nce
from simclr_jax.objectives.nt_xent import nt_xent, nt_xent_dense

LOSSES = [jax.jit(f, static_argnames='decoupled') for f in (nt_xent, nt_xent_dense)]
# (seed, N, D), temperature: Lightly's and pytorch-metric-learning's NTXentLoss, optax's ntxent, Lightly's DCLLoss.
NT_XENT = [
    ((0, 1, 4), 0.1, 0.0, 0.0, None, None),
    ((1, 2, 1), 0.07, 7.937370777130127, 7.937370777130127, 7.937370300292969, 7.4894304275512695),
    ((1, 2, 1), 0.5, 1.8013505935668945, 1.8013505935668945, 1.8013505935668945, 1.3556485176086426),
    ((1, 2, 1), 10.0, 1.1018681526184082, 1.1018681526184082, 1.1018681526184082, 0.6956430673599243),
    ((2, 4, 64), 0.07, 2.2773284912109375, 2.2773284912109375, 2.2773284912109375, 2.0742015838623047),
    ((2, 4, 64), 0.1, 1.9266655445098877, 1.9266655445098877, 1.9266655445098877, 1.7166962623596191),
    ((2, 4, 64), 0.5, 1.8083645105361938, 1.8083645105361938, 1.8083643913269043, 1.6271584033966064),
    ((2, 4, 64), 1.0, 1.8680278062820435, 1.868027925491333, 1.868027925491333, 1.6997554302215576),
    ((2, 4, 64), 10.0, 1.9373165369033813, 1.9373164176940918, 1.937316656112671, 1.7817213535308838),
    ((4, 32, 8), 0.07, 9.582991600036621, 9.582991600036621, 9.582991600036621, 9.573387145996094),
    ((4, 32, 8), 0.1, 7.198517799377441, 7.198517799377441, 7.198517799377441, 7.184338569641113),
    ((4, 32, 8), 1.0, 4.089329719543457, 4.089329719543457, 4.089329719543457, 4.0715227127075195),
    ((4, 32, 8), 10.0, 4.132313251495361, 4.132313251495361, 4.1323137283325195, 4.116128921508789),
]


def views(seed, n, d):
    return np.random.default_rng(seed).normal(size=(2, n, d)).astype(np.float32)


@pytest.mark.parametrize('case, temperature, lightly, metric_learning, optax, lightly_decoupled', NT_XENT)
def test_nt_xent(case, temperature, lightly, metric_learning, optax, lightly_decoupled):
    pair = views(*case)
    for loss in LOSSES:
        for value in filter(lambda value: value is not None, (lightly, metric_learning, optax)):
            np.testing.assert_allclose(loss(*pair, temperature=temperature)[0], value, rtol=2e-6, atol=1e-6)
        if lightly_decoupled is not None:
            decoupled = loss(*pair, temperature=temperature, decoupled=True)[0]
            np.testing.assert_allclose(decoupled, lightly_decoupled, rtol=2e-6)


@pytest.mark.parametrize('case, lightly', [((5, 6, 4), -0.05794255807995796), ((6, 3, 32), 0.07183853536844254)])
def test_cosine_regression(case, lightly):
    np.testing.assert_allclose(cosine_regression(*views(*case)).mean(), 2 + 2 * lightly, rtol=1e-6)


# (seed, N, K, D), temperature: Lightly's NTXentLoss with K keys in its memory bank.
@pytest.mark.parametrize('case, temperature, lightly', [
    ((7, 4, 8, 5), 0.07, 12.019207000732422), ((8, 3, 16, 8), 0.2, 3.716575860977173),
    ((9, 6, 8, 16), 1.0, 2.2893011569976807)])
def test_info_nce(case, temperature, lightly):
    seed, n, k, d = case
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(count, d)).astype(np.float32) for count in (n, n, k)]
    query, positive, negatives = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)
    loss, _ = info_nce(query, positive, negatives, temperature=temperature)
    np.testing.assert_allclose(loss, lightly, rtol=2e-6)
