"""Claims about the d′ of a layer's true direction, against sums written out and planted values."""

import numpy as np
import pytest
from planted_activations import correlated_runs

from steerlens.attribution.held_out import difference_scores
from steerlens.attribution.sensitivity import sensitivity
from steerlens.stats.separability import d_prime_of


def written_out(runs, groups):
    """The module's two means, pair by pair and run by run."""
    difference = runs[0] - runs[1]
    n = len(groups)
    distinct = [(i, j) for i in range(n) for j in range(n) if groups[i] != groups[j]]
    gap = np.mean([difference[i] @ difference[j] for i, j in distinct])
    variances = []
    for i, j in distinct:
        others = [k for k in range(n) if groups[k] not in (groups[i], groups[j])]
        variances.append(
            np.mean(
                [
                    np.cov(side[others] @ difference[i], side[others] @ difference[j])[0, 1]
                    for side in runs
                ]
            )
        )
    return gap / np.sqrt(np.mean(variances))


@pytest.mark.parametrize(
    "groups",
    [list(range(12)), [0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7]],
    ids=["one pair a query", "several"],
)
def test_the_estimate_equals_its_sums_written_out(groups):
    runs = np.random.default_rng(0).standard_normal((2, 12, 5))
    runs[0] += 1.0
    estimate, _, _ = sensitivity(runs, np.array(groups))
    assert estimate == pytest.approx(written_out(runs, groups))


def test_the_interval_is_the_delete_one_jackknife():
    runs = np.random.default_rng(1).standard_normal((2, 15, 4))
    runs[0] += 1.0
    everything = np.arange(15)
    leave_one = [
        written_out(np.delete(runs, i, axis=1), np.delete(everything, i)) for i in everything
    ]
    error = np.sqrt(14 / 15 * ((leave_one - np.mean(leave_one)) ** 2).sum())
    estimate, low, high = sensitivity(runs, everything)
    assert (high - low) / 2 == pytest.approx(2.1447867 * error)  # t, 14 degrees of freedom
    assert (high + low) / 2 == pytest.approx(estimate)


def test_the_jackknife_leaves_out_whole_queries_also_where_one_has_half_of_the_pairs():
    groups = np.array([0, 0, 1, 2, 3, 4])
    runs = np.random.default_rng(1).standard_normal((2, 6, 4))
    runs[0] += 2.0
    leave_one = [written_out(runs[:, groups != left], groups[groups != left]) for left in range(5)]
    error = np.sqrt(4 / 5 * ((leave_one - np.mean(leave_one)) ** 2).sum())
    _, low, high = sensitivity(runs, groups)
    assert (high - low) / 2 == pytest.approx(2.7764451 * error)  # t, 4 degrees of freedom


@pytest.mark.parametrize(
    ("d_prime", "d_model", "alike", "decay"),
    [(2.0, 32, 0.8, 0.0), (2.0, 576, 0.8, 1.0), (4.0, 576, 0.0, 0.0)],
)
def test_a_planted_d_prime_lies_in_its_interval_in_at_least_93_of_100_seeds(
    d_prime, d_model, alike, decay
):
    inside, estimates = 0, []
    for seed in range(100):
        runs, _, _ = correlated_runs(
            np.random.default_rng(seed), d_prime, d_model=d_model, alike=alike, decay=decay
        )
        estimate, low, high = sensitivity(runs, np.arange(64))
        inside += low <= d_prime <= high
        estimates.append(estimate)
    assert inside >= 93
    assert np.median(estimates) == pytest.approx(d_prime, rel=0.06)


def test_held_out_d_prime_falls_short_where_the_space_is_wide_and_this_one_does_not():
    # Given a d′ of 4 in 576 dimensions of equal noise,
    rng = np.random.default_rng(0)
    runs, _, _ = correlated_runs(rng, 4.0, d_model=576, alike=0.0, decay=0.0)
    folds = [(np.delete(np.arange(64), part), part) for part in np.arange(64).reshape(4, 16)]
    scores = difference_scores(runs, folds)
    # then the fitted directions' d′ is far below it.
    assert d_prime_of(scores, np.ones((1, 64)))[0] < 3.2
    assert sensitivity(runs, np.arange(64))[0] > 3.3


def test_noise_reads_low_and_its_interval_holds_zero():
    runs, _, _ = correlated_runs(np.random.default_rng(2), 0.0, d_model=576)
    estimate, low, high = sensitivity(runs, np.arange(64))
    assert abs(estimate) < 1.5
    assert low < 0 < high


def test_few_queries_and_runs_that_do_not_vary_give_no_interval():
    few = sensitivity(np.random.default_rng(0).standard_normal((2, 4, 3)), np.arange(4))
    assert np.isnan(few).all()
    still = np.zeros((2, 8, 3))
    still[0] += 1.0
    estimate, low, high = sensitivity(still, np.arange(8))
    assert estimate == np.inf and np.isnan([low, high]).all()


def test_more_than_64_queries_are_put_into_blocks():
    runs, _, _ = correlated_runs(np.random.default_rng(3), 2.0, n_pairs=150, d_model=20)
    estimate, low, high = sensitivity(runs, np.arange(150))
    assert low < 2.0 < high
    assert estimate == pytest.approx(written_out(runs[:, ::3], list(range(50))), rel=0.3)
