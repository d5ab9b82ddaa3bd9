"""Claims about intervals of held-out scores: formulas, and coverage on synthetic runs."""

import numpy as np
import pytest
from planted_activations import correlated_runs
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from steerlens.attribution.held_out import difference_scores
from steerlens.stats.separability import (
    auroc_of,
    d_prime_of,
    fit_noise_share,
    held_out_measures,
    newcombe_auroc,
)


def test_measures_equal_scikit_learn_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 5, size=(2, 40)).astype(float) + np.array([[0.5], [0.0]])
    scores[0, :10] -= 0.5
    labels = np.repeat([1, 0], 40)
    measures = held_out_measures(scores, np.arange(40), 0.0)
    assert measures["auroc"][0] == pytest.approx(roc_auc_score(labels, scores.ravel()))
    decided = scores[:, (scores != 0).all(axis=0)]
    n = decided.shape[1]
    accuracy = held_out_measures(decided, np.arange(n), 0.0)["accuracy"][0]
    expected = balanced_accuracy_score(np.repeat([1, 0], n), decided.ravel() > 0)
    assert accuracy == pytest.approx(expected)


def test_counted_measures_equal_those_of_repeated_pairs():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((2, 1, 30)) + np.array([1.0, 0.0])[:, None, None]
    counts = rng.integers(0, 4, size=(1, 30)).astype(float)
    repeated = np.repeat(scores[:, 0], counts[0].astype(int), axis=1)
    auroc = auroc_of(scores[0], scores[1], counts)[0]
    labels = np.repeat([1, 0], repeated.shape[1])
    assert auroc == pytest.approx(roc_auc_score(labels, repeated.ravel()))
    spread = np.sqrt(repeated.var(axis=1, ddof=1).mean())
    expected = (repeated[0].mean() - repeated[1].mean()) / spread
    assert d_prime_of(scores, counts)[0] == pytest.approx(expected)


def test_newcombe_equals_solving_his_equation():
    # Given the Hanley-McNeil variance at each candidate value (Newcombe 2006, method 5),
    def variance(theta, n):
        q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
        return (theta * (1 - theta) + (n - 1) * (q1 - theta**2) + (n - 1) * (q2 - theta**2)) / n**2

    estimate, n = 0.85, 50
    z = norm.ppf(0.975)

    def refuted(theta):
        return (estimate - theta) ** 2 - z**2 * variance(theta, n)

    # when the variance given is that of the estimate, the sample size is n itself.
    low, high = newcombe_auroc(estimate, variance(estimate, n), n)
    assert low == pytest.approx(brentq(refuted, 1e-6, estimate))
    assert high == pytest.approx(brentq(refuted, estimate, 1 - 1e-6))


def test_perfect_separation_is_not_certainty():
    scores = np.stack([np.arange(30.0) + 50, np.arange(30.0) - 50])
    measures = held_out_measures(scores, np.arange(30), 0.0)
    assert measures["auroc"][0] == 1.0 and 0.85 < measures["auroc"][1] < 0.97
    assert measures["accuracy"][0] == 1.0 and 0.85 < measures["accuracy"][1] < 0.97


def test_pairs_of_one_query_widen_the_intervals():
    rng = np.random.default_rng(2)
    once = rng.standard_normal((2, 20)) + np.array([[1.0], [0.0]])
    groups = np.repeat(np.arange(20), 4)
    repeated = np.repeat(once, 4, axis=1)

    def width(measures, name):
        return measures[name][2] - measures[name][1]

    as_queries = held_out_measures(repeated, groups, 0.0)
    as_pairs = held_out_measures(repeated, np.arange(80), 0.0)
    for name in ("auroc", "d_prime", "accuracy"):
        assert width(as_queries, name) > 1.6 * width(as_pairs, name)


def test_fit_noise_is_all_without_a_signal_and_little_with_a_strong_one():
    rng = np.random.default_rng(3)
    noise, _, _ = correlated_runs(rng, 0.0)
    signal, _, _ = correlated_runs(rng, 6.0)
    shares = [fit_noise_share(runs[0] - runs[1], np.arange(64), 5) for runs in (noise, signal)]
    assert shares[0] > 0.6 and shares[1] < 0.1


@pytest.mark.parametrize("d_prime", [0.0, 1.0, 2.0, 4.0])
def test_95_percent_intervals_cover_what_fitted_directions_reach_on_new_queries(d_prime):
    # Given runs like residuals, whose directions' true performance is known by formula,
    n_seeds, groups = 200, np.arange(64)
    held = {"auroc": 0, "d_prime": 0, "accuracy": 0}
    for seed in range(n_seeds):
        runs, variances, shift = correlated_runs(np.random.default_rng(seed), d_prime)
        folds = list(
            GroupKFold(5, shuffle=True, random_state=seed).split(np.zeros(64), groups=groups)
        )
        share = fit_noise_share(runs[0] - runs[1], groups, 5)
        measures = held_out_measures(difference_scores(runs, folds)[:, 0], groups, share)
        reached = []
        for train, _ in folds:
            means = runs[:, train].mean(axis=1)
            direction, middle = means[0] - means[1], means.mean(axis=0)
            spread = np.sqrt(direction**2 @ variances)
            ends = np.array([shift - middle, middle]) @ direction / spread
            d = direction @ shift / spread
            reached.append((norm.cdf(d / np.sqrt(2)), d, norm.cdf(ends).mean()))
        truth = dict(zip(("auroc", "d_prime", "accuracy"), np.mean(reached, axis=0), strict=True))
        for name, (_, low, high) in measures.items():
            held[name] += low <= truth[name] <= high
    # then they cover at least nearly what they promise (200 seeds: standard error 1.5 %).
    for name, count in held.items():
        assert 0.92 * n_seeds <= count, (name, count)
