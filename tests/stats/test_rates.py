"""Intervals, tests and the correction for choosing, against closed forms, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from steerlens.errors import SteerlensError
from steerlens.stats.rates import (
    best_of_many,
    holm,
    mcnemar_exact,
    median_ratio_bootstrap,
    paired_difference,
    wilson,
)


@given(st.integers(1, 400), st.data())
def test_wilson_is_scipys_score_interval(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    found = wilson(successes, n)
    assert found.value == successes / n
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_gives_the_values_of_newcombes_table() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(successes, n)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilson_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for rate, n in ((0.05, 40), (0.3, 25), (0.5, 60), (0.9, 30)):
        # the chance that the interval covers, summed exactly over all outcomes
        weights = stats.binom.pmf(np.arange(n + 1), n, rate)
        covers = [wilson(k, n).low <= rate <= wilson(k, n).high for k in range(n + 1)]
        assert 0.92 <= float(weights @ covers) <= 0.99, (rate, n)
        # and by drawing
        drawn = rng.binomial(n, rate, size=4000)
        assert np.mean([covers[k] for k in drawn]) == pytest.approx(weights @ covers, abs=0.02)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(SteerlensError, match="at least one prompt"):
        wilson(0, 0)
    with pytest.raises(SteerlensError, match="between 0 and 3"):
        wilson(4, 3)


def verdicts(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[bool], list[bool]]:
    counts = {(True, True): both, (True, False): only_a, (False, True): only_b}
    pairs = [pair for pair, n in {**counts, (False, False): neither}.items() for _ in range(n)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_the_paired_difference_has_the_published_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17:2635–2650, table II, method 10.
    found = paired_difference(*verdicts(20, 12, 2, 16))
    assert [round(x, 4) for x in (found.value, found.low, found.high)] == [0.2, 0.0562, 0.3292]


@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize(
    "cells", [(0.5, 0.2, 0.1, 0.2), (0.1, 0.8, 0.02, 0.08), (0.9, 0.05, 0, 0.05)]
)
def test_the_paired_difference_covers_the_truth_about_as_often_as_it_says(cells, n: int) -> None:
    drawn = np.random.default_rng(0).multinomial(n, cells, size=1000)
    found = [paired_difference(*verdicts(*row)) for row in drawn.tolist()]
    truth = cells[1] - cells[2]
    assert np.mean([one.low - 1e-12 <= truth <= one.high + 1e-12 for one in found]) > 0.92


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_exchanging_the_conditions_turns_the_interval_round(pairs) -> None:
    a, b = [one for one, _ in pairs], [other for _, other in pairs]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert (there.value, there.low, there.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )


def test_conditions_that_agree_leave_some_doubt() -> None:
    # A bootstrap of ten equal verdicts would claim certainty.
    same = paired_difference([True] * 10, [True] * 10)
    assert same.value == 0.0 and same.low < -0.2 and same.high > 0.2


def test_conditions_over_other_prompts_are_refused() -> None:
    with pytest.raises(SteerlensError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([True, False], [True, False, True])
    with pytest.raises(SteerlensError, match="at least one"):
        paired_difference([], [])


def test_the_ratio_of_medians_leaves_out_pairs_without_a_number() -> None:
    a = [2.0, 4.0, 8.0, None, 100.0]
    b = [1.0, 2.0, 4.0, 9.0, None]
    found = median_ratio_bootstrap(a, b, n_resamples=500)
    assert found is not None
    # the medians of 2, 4, 8 and of 1, 2, 4; every resample has the ratio 2
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert median_ratio_bootstrap([None, 1.0], [1.0, None]) is None
    with pytest.raises(SteerlensError, match="positive"):
        median_ratio_bootstrap([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(SteerlensError, match="1 and 2"):
        median_ratio_bootstrap([1.0], [1.0, 1.0])


def test_the_ratio_of_medians_of_scaled_perplexities_is_the_scale() -> None:
    b = np.random.default_rng(0).lognormal(3, 1, 60)
    found = median_ratio_bootstrap((1.5 * b).tolist(), b.tolist())
    assert found is not None
    assert [found.value, found.low, found.high] == pytest.approx([1.5, 1.5, 1.5])


def test_mcnemar_is_the_binomial_test_on_discordant_prompts() -> None:
    # given: 9 prompts pass under a only, 2 under b only, 20 under both, 5 under neither
    a = [True] * 9 + [False] * 2 + [True] * 20 + [False] * 5
    b = [False] * 9 + [True] * 2 + [True] * 20 + [False] * 5
    # then: twice the lower tail of Binomial(11, ½), by hand
    tail = sum(math.comb(11, k) for k in range(3)) / 2**11
    assert mcnemar_exact(a, b) == pytest.approx(2 * tail)
    assert mcnemar_exact(b, a) == pytest.approx(2 * tail)
    assert mcnemar_exact(a, a) == 1.0


def test_samples_of_a_prompt_are_no_further_prompts() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 9, 3)) < [[[0.7]], [[0.3]]]
    # The test is over all 2⁹ signs of the prompts' differences.
    differences = a.sum(-1).astype(int) - b.sum(-1)
    sums = [sum(np.multiply(signs, differences)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()))
    assert mcnemar_exact(a.ravel(), b.ravel(), samples=3) == pytest.approx(expected)
    # The same answer three times says no more than once.
    once = a[:, 0], b[:, 0]
    thrice = [np.repeat(side, 3) for side in once]
    assert mcnemar_exact(*thrice, samples=3) == pytest.approx(mcnemar_exact(*once))
    found, single = paired_difference(*thrice, samples=3), paired_difference(*once)
    assert [found.value, found.low, found.high] == pytest.approx(
        [single.value, single.low, single.high]
    )


def test_holm_gives_the_textbook_values() -> None:
    # Holm (1979) as R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm") computes it
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.04, 0.0005, 0.9]) == pytest.approx([0.08, 0.0015, 0.9])
    assert holm([]) == []
    with pytest.raises(SteerlensError, match="between 0 and 1"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_values_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for own, found in zip(p_values, adjusted, strict=True):
        assert own <= found <= 1.0
        assert found <= len(p_values) * own + 1e-12
    # and they keep the order
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert all(x[1] <= y[1] for x, y in itertools.pairwise(pairs))


def test_the_first_of_settings_that_tie_is_chosen() -> None:
    passes = np.array([[True, False, True], [True, True, False], [False, False, True]])
    found = best_of_many(passes, n_resamples=200)
    assert found.chosen == 0
    assert found.rate == pytest.approx(2 / 3)
    assert sum(found.chosen_share) == pytest.approx(1)


def test_with_one_setting_there_is_nothing_to_correct() -> None:
    passes = np.random.default_rng(0).random((1, 50)) < 0.4
    found = best_of_many(passes)
    assert found.corrected.value == pytest.approx(found.rate, abs=0.01)
    assert found.corrected.low == pytest.approx(wilson(int(passes.sum()), 50).low, abs=0.01)
    assert found.corrected.high == pytest.approx(wilson(int(passes.sum()), 50).high, abs=0.01)


def test_the_best_of_equal_settings_is_corrected_to_what_they_all_are() -> None:
    # given: 30 settings that all pass half of the prompts
    rng = np.random.default_rng(0)
    found = [best_of_many(rng.random((30, 32)) < 0.5, n_resamples=200, seed=i) for i in range(150)]
    corrected = np.array([one.corrected.value for one in found])
    # then: the winner shows far more, the corrected rate does not
    assert np.mean([one.rate for one in found]) > 0.65
    error = corrected.std() / math.sqrt(len(corrected))
    assert abs(corrected.mean() - 0.5) < 3 * error < 0.03
    assert np.mean([one.corrected.low <= 0.5 <= one.corrected.high for one in found]) >= 0.93


def test_the_corrected_interval_covers_the_chosen_settings_true_rate() -> None:
    # given: settings that differ, or one that stands out
    rng = np.random.default_rng(1)
    for rates in (np.linspace(0.1, 0.6, 20), np.r_[np.full(19, 0.2), 0.6]):
        covered = []
        for i in range(120):
            found = best_of_many(rng.random((20, 30)) < rates[:, None], n_resamples=200, seed=i)
            truth = rates[found.chosen]
            covered.append(found.corrected.low <= truth <= found.corrected.high)
        # then: three standard errors below 0.95 at most
        assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 120)


def test_choosing_needs_settings_and_prompts() -> None:
    for shape in ((0, 5), (3, 1)):
        with pytest.raises(SteerlensError, match="at least 1 × 2"):
            best_of_many(np.zeros(shape, dtype=bool))


def test_settings_can_be_chosen_by_worth_and_reported_by_rate():
    passes = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=bool)
    costly = passes - 2.0 * np.array([[0], [1], [0]])
    found = best_of_many(passes, worth=costly)
    assert (found.chosen, found.rate) == (2, 0.5)
    with pytest.raises(SteerlensError, match="worth has shape"):
        best_of_many(passes, worth=costly[:2])
