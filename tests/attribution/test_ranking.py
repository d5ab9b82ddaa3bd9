"""Claims about the ranking: evidence joined, layers chosen by it, agreement between kinds."""

import numpy as np
import pandas as pd
import pytest
from planted_activations import planted
from scipy.stats import spearmanr

from steerlens.attribution import rank_layers
from steerlens.errors import ActivationError, SteerlensError, UnknownNameError


def recovery(layers=(0, 2, 3, 4), values=(0.1, 0.2, 0.9, 0.4)):
    frame = pd.DataFrame({"layer": layers, "recovery": values})
    return frame.assign(low=frame.recovery - 0.1, high=frame.recovery + 0.1)


@pytest.fixture(scope="module")
def ranking():
    return rank_layers(planted(), n_resamples=100)


def test_joined_evidence_stands_beside_its_interval_and_leaves_other_layers_empty(ranking):
    both = ranking.with_evidence("recovery", recovery())
    table = both.table.set_index("layer")
    assert table.recovery[3] == 0.9
    assert (table.recovery_low[3], table.recovery_high[3]) == pytest.approx((0.8, 1.0))
    assert np.isnan(table.recovery[1]) and np.isnan(table.recovery_low[1])
    assert both.kinds == (*ranking.kinds, "recovery")
    # The ranking it came from, and its choice, stay as they were.
    assert "recovery" not in ranking.table and both.best_layer == ranking.best_layer


def test_a_frame_may_name_its_columns_otherwise_and_bring_no_interval(ranking):
    frame = pd.DataFrame({"layer": [1, 0], "first": [0.5, 0.25], "l": [0.4, 0.2], "h": [1.0, 0.3]})
    table = ranking.with_evidence("causal", frame, value="first", low="l", high="h").table
    assert table.causal[:2].tolist() == [0.25, 0.5]
    assert table.causal_high[:2].tolist() == [0.3, 1.0]
    assert "bare_low" not in ranking.with_evidence("bare", frame, value="first").table


def test_the_layer_can_be_chosen_by_another_kind_and_the_rule_says_so(ranking):
    by_recovery = ranking.with_evidence("recovery", recovery()).best_by("recovery")
    assert by_recovery.best_layer == 3
    assert by_recovery.rule == "highest recovery"
    assert by_recovery.selection_frequency == {}
    assert "by highest recovery" in repr(by_recovery)


def test_selection_frequency_is_counted_again_where_samples_come_with_the_kind(ranking):
    samples = np.array([[0.1, 0.9], [0.2, 0.1], [0.9, 0.2], [0.8, 0.3]])
    both = ranking.with_evidence("recovery", recovery(), samples=samples).best_by("recovery")
    assert both.selection_frequency == {0: 0.5, 1: 0.0, 2: 0.0, 3: 0.5, 4: 0.0}
    assert both.table.selection_frequency.tolist() == [0.5, 0.0, 0.0, 0.5, 0.0]


def test_agreement_is_spearmans_correlation_over_the_layers_both_have(ranking):
    both = ranking.with_evidence("recovery", recovery())
    row = both.agreement(["auroc", "recovery"]).iloc[0]
    layers = [0, 2, 3, 4]
    expected = spearmanr(both.table.set_index("layer").auroc[layers], recovery().recovery)
    assert row.spearman == pytest.approx(expected.statistic)
    assert row.n_layers == 4


def test_the_interval_of_agreement_is_narrow_for_one_trend_and_wide_for_two_unrelated():
    rng = np.random.default_rng(0)
    many = rank_layers(planted(n_layers=30, n_pairs=16), n_resamples=1)
    trend = pd.DataFrame({"layer": range(30), "one": np.arange(30.0)})
    same = trend.rename(columns={"one": "same"}).assign(same=lambda f: f.same + rng.random(30))
    other = pd.DataFrame({"layer": range(30), "other": rng.standard_normal(30)})
    kinds = many.with_evidence("one", trend).with_evidence("same", same)
    kinds = kinds.with_evidence("other", other)
    table = kinds.agreement(["one", "same", "other"], seed=1).set_index(["one", "other"])
    related, unrelated = table.loc[("one", "same")], table.loc[("one", "other")]
    assert related.low > 0.9
    assert unrelated.low < 0 < unrelated.high
    assert unrelated.high - unrelated.low > 0.5
    assert (table.low <= table.spearman).all() and (table.spearman <= table.high + 0.05).all()


def test_a_kind_that_is_the_same_everywhere_has_no_agreement(ranking):
    flat = pd.DataFrame({"layer": range(5), "flat": 1.0})
    row = ranking.with_evidence("flat", flat).agreement(["auroc", "flat"]).iloc[0]
    assert np.isnan([row.spearman, row.low, row.high]).all()


@pytest.mark.parametrize(
    ("frame", "arguments", "words"),
    [
        (recovery().drop(columns="layer"), {}, "lacks a column 'layer'"),
        (recovery(), {"value": "first"}, "lacks a column 'first'"),
        (recovery((0, 0, 3, 4)), {}, "repeats a layer"),
        (recovery((0, 2, 3, 40)), {}, "has layer 40, which is not ranked"),
        (recovery(), {"samples": np.zeros((2, 9))}, "2 rows of samples do not fit the 4 layers"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(ranking, frame, arguments, words):
    with pytest.raises(ActivationError, match=words):
        ranking.with_evidence("recovery", frame, **arguments)


def test_names_that_are_taken_or_unknown_are_refused(ranking):
    frame = pd.DataFrame({"layer": range(5), "auroc": 1.0})
    with pytest.raises(ActivationError, match="already has a column 'auroc'"):
        ranking.with_evidence("auroc", frame)
    with pytest.raises(ActivationError, match="already has a column 'auroc'"):
        ranking.with_columns(frame)
    with pytest.raises(ActivationError, match="one row for each ranked layer"):
        ranking.with_columns(frame.iloc[1:])
    with pytest.raises(UnknownNameError, match="auroc"):
        ranking.best_by("aurock")
    empty = pd.DataFrame({"layer": range(5), "empty": np.nan})
    with pytest.raises(ActivationError, match="no value at any layer"):
        ranking.with_evidence("empty", empty).best_by("empty")


def test_agreement_needs_two_kinds_and_four_layers(ranking):
    with pytest.raises(SteerlensError, match="at least two kinds"):
        ranking.agreement(["auroc"])
    few = ranking.with_evidence("recovery", recovery().iloc[:3])
    with pytest.raises(ActivationError, match="share 3 layers"):
        few.agreement(["auroc", "recovery"])
