"""Claims about intervals over base queries, against scipy and simulations of known truth."""

import numpy as np
import pytest
from scipy import stats

from steerlens.errors import SteerlensError
from steerlens.stats.queries import mean_interval, query_draws, recovery_interval


def test_with_one_pair_a_query_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(0).normal(size=(12, 3))
    mean, low, high = mean_interval(values, range(12))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert np.allclose(mean, values.mean(0))
    assert np.allclose(low, expected.low) and np.allclose(high, expected.high)


def test_pairs_of_one_query_count_as_one():
    values = np.random.default_rng(0).normal(size=(12, 1))
    once = mean_interval(values, range(12))
    thrice = mean_interval(np.repeat(values, 3, axis=0), np.repeat(range(12), 3).tolist())
    assert np.allclose(once, thrice)


def test_the_interval_of_a_recovery_covers_the_truth():
    rng = np.random.default_rng(1)
    whole = rng.gamma(4.0, size=(400, 24))
    remaining = whole * rng.uniform(0.1, 0.5, size=whole.shape)
    queries = list(range(24))
    ends = [
        recovery_interval(r[:, None], w, queries) for r, w in zip(remaining, whole, strict=True)
    ]
    covered = np.mean([low[0] <= 0.7 <= high[0] for _, low, high in ends])
    assert 0.92 <= covered <= 0.98


def test_the_interval_of_a_recovery_is_that_of_the_delete_one_jackknife():
    rng = np.random.default_rng(2)
    whole, remaining = rng.lognormal(size=10), rng.lognormal(size=10)
    queries = list("aabcdefghh")
    recovery, low, high = recovery_interval(remaining[:, None], whole, queries)
    without = []
    for query in sorted(set(queries)):
        rest = [i for i, each in enumerate(queries) if each != query]
        without.append(1 - remaining[rest].sum() / whole[rest].sum())
    expected = 1 - remaining.sum() / whole.sum()
    variance = 7 / 8 * sum((value - expected) ** 2 for value in without)
    reach = stats.t.ppf(0.975, 7) * variance**0.5
    assert np.isclose(recovery[0], expected)
    assert np.allclose([low[0], high[0]], [expected - reach, expected + reach])


def test_a_query_with_all_the_weight_says_nothing_about_others():
    recovery, low, high = recovery_interval(np.array([[1.0], [0.0]]), np.array([2.0, 0.0]), "ab")
    assert recovery[0] == 0.5 and np.isnan([low[0], high[0]]).all()


def test_recovery_is_one_when_nothing_remains_and_zero_when_all_does():
    whole = np.array([1.0, 2.0, 3.0])
    recovery, low, high = recovery_interval(np.stack([0 * whole, whole], 1), whole, "abc")
    assert recovery.tolist() == [1, 0]
    assert np.allclose(low, recovery) and np.allclose(high, recovery)


def test_draws_take_whole_queries_and_depend_on_the_seed_alone():
    queries = ["a", "b", "a", "c", "b"]
    draws = query_draws(queries, n_resamples=50, seed=3)
    assert (draws[:, 0] == draws[:, 2]).all() and (draws[:, 1] == draws[:, 4]).all()
    assert (draws[:, [0, 1, 3]].sum(1) == 3).all()
    assert np.array_equal(draws, query_draws(queries, n_resamples=50, seed=3))
    assert not np.array_equal(draws, query_draws(queries, n_resamples=50, seed=4))


def test_one_base_query_says_nothing_about_others():
    with pytest.raises(SteerlensError, match="all 3 pairs come from one base query"):
        mean_interval(np.ones((3, 1)), ["a", "a", "a"])
    with pytest.raises(SteerlensError, match="add pairs of other base queries"):
        query_draws(["a", "a"])
