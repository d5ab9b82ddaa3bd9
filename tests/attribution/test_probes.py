"""Claims about probes: each equals scikit-learn's estimator in the full space on the same folds."""

import numpy as np
import pytest
import torch
from planted_activations import correlated_runs, planted
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.probes import PROBES, probe_layers, probe_scores
from steerlens.errors import ActivationError, UnknownNameError

GROUPS = np.repeat(np.arange(20), 2)
LABELS = np.repeat([1, 0], 40)


def folds(seed=0):
    split = GroupKFold(5, shuffle=True, random_state=seed).split(np.zeros(40), groups=GROUPS)
    return list(split)


def wide_runs(d_model=120, decay=1.0):
    runs, _, _ = correlated_runs(
        np.random.default_rng(0), 1.5, n_pairs=40, d_model=d_model, decay=decay
    )
    return runs + 3.0


def decisions_of(runs, fit):
    """Held-out decision values of a scikit-learn estimator, divided by the training gap."""
    scores = np.empty((2, 40))
    for train, test in folds():
        decide = fit(runs[:, train])
        gap = decide(runs[0, train]).mean() - decide(runs[1, train]).mean()
        scores[:, test] = decide(runs[:, test].reshape(-1, runs.shape[-1])).reshape(2, -1) / gap
    return scores


def logistic(train):
    flat = train.reshape(-1, train.shape[-1])
    scale = np.sqrt(flat.var(axis=0).mean())
    labels = np.repeat([1, 0], train.shape[1])
    probe = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(flat / scale, labels)
    return lambda runs: probe.decision_function(runs / scale)


def lda(train):
    flat = train.reshape(-1, train.shape[-1])
    labels = np.repeat([1, 0], train.shape[1])
    probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(flat, labels)
    return probe.decision_function


def first_component(train):
    difference = train[0] - train[1]
    axis = PCA(1, svd_solver="full").fit(np.concatenate([difference, -difference])).components_[0]
    axis = axis * np.sign(axis @ difference.mean(axis=0))
    middle = train.mean(axis=(0, 1))
    return lambda runs: (runs - middle) @ axis


@pytest.mark.parametrize(("d_model", "decay"), [(120, 1.0), (120, 0.0), (10, 1.0)])
@pytest.mark.parametrize(
    ("estimator", "fit"),
    [("logistic", logistic), ("lda", lda), ("first_component", first_component)],
)
def test_held_out_decisions_equal_scikit_learns_in_the_full_space(estimator, fit, d_model, decay):
    # Given more dimensions than runs, and fewer,
    runs = wide_runs(d_model, decay)
    # when the work is done in the smaller space, the result is that of the full one.
    expected = decisions_of(runs, fit)
    np.testing.assert_allclose(probe_scores(runs, folds(), estimator), expected, atol=5e-5)


def test_the_table_holds_scikit_learns_measures_of_those_decisions():
    runs = wide_runs()
    sides = torch.from_numpy(runs[:, :, None]).float()
    cache = ResidualCache.from_tensors(sides[0], sides[1], layers=[7], groups=GROUPS.tolist())
    table = probe_layers(cache, seed=0).set_index("probe")
    assert list(table.index) == list(PROBES) and (table.layer == 7).all()
    for estimator, fit in (("logistic", logistic), ("lda", lda)):
        scores = decisions_of(runs, fit)
        row = table.loc[estimator]
        assert row.auroc == pytest.approx(roc_auc_score(LABELS, scores.ravel()))
        expected = balanced_accuracy_score(LABELS, scores.ravel() > 0)
        assert row.balanced_accuracy == pytest.approx(expected)
        spread = np.sqrt(scores.var(axis=1, ddof=1).mean())
        assert row.d_prime == pytest.approx((scores[0] - scores[1]).mean() / spread, rel=1e-4)
        for name in ("auroc", "d_prime", "balanced_accuracy"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_lda_finds_what_large_shared_variation_hides_from_the_difference_of_means():
    # Given a shift along an axis of little variance, and a larger one where runs vary most,
    rng = np.random.default_rng(1)
    sides = rng.standard_normal((2, 64, 1, 30)) * np.array([30.0] + [1.0] * 29)
    sides[0, :, 0, 0] += 12.0
    sides[0, :, 0, 1] += 4.0
    tensors = torch.from_numpy(sides).float()
    table = probe_layers(ResidualCache.from_tensors(tensors[0], tensors[1]))
    auroc = table.set_index("probe").auroc
    assert auroc["difference_of_means"] < 0.75 < 0.95 < auroc["lda"]


def test_constant_dimensions_do_not_break_shrinkage():
    runs = wide_runs()
    runs[:, :, 5] = 1.0
    expected = decisions_of(runs, lda)
    np.testing.assert_allclose(probe_scores(runs, folds(), "lda"), expected, atol=2e-5)


def test_unknown_estimators_and_unrankable_caches_are_refused():
    with pytest.raises(UnknownNameError, match="logistic"):
        probe_layers(planted(), probes=["logistics"])
    with pytest.raises(ActivationError, match="cannot fill 5 folds"):
        probe_layers(planted(n_pairs=4))
