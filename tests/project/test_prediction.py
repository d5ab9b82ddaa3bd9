"""Which evidence predicts steerability: regret and agreement against direct computations."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from analyses.prediction import compare_evidence
from steerlens.errors import ActivationError

LAYERS = [0, 2, 4, 6]


def passes(rates, n=16, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([rng.permuted(np.arange(n) < round(rate * n)) for rate in rates])


def a_table(**kinds):
    return pd.DataFrame({"layer": LAYERS, **kinds})


def two_instructions():
    steered = {"a": passes([0, 0.25, 0.75, 0.5]), "b": passes([0, 0.5, 1.0, 0.5], seed=1)}
    plain = {"a": np.zeros(16, bool), "b": np.zeros(16, bool)}
    table = a_table(good=[0.1, 0.2, 0.9, 0.5], bad=[0.9, 0.5, 0.2, 0.1])
    return {"a": table, "b": table}, steered, plain


def test_evidence_that_peaks_where_behaviour_does_has_less_regret():
    # given evidence that follows the rates and evidence that is highest where nothing works
    evidence, steered, plain = two_instructions()
    # when they are compared
    found = compare_evidence(evidence, steered, plain, LAYERS, ["bad", "good"])
    # then the first comes first, and loses nothing, while the other loses about the whole rate
    by_kind = found.table.set_index("kind")
    assert list(found.table.kind) == ["good", "bad"]
    assert abs(by_kind.regret["good"]) < 0.05
    assert by_kind.regret["bad"] > 0.75
    difference, low, high = found.difference("bad", "good")
    assert low <= difference <= high
    assert found.difference("bad", "good", times=0.0)[0] == pytest.approx(by_kind.regret["bad"])


def test_agreement_is_scipys_rank_correlation():
    evidence, steered, plain = two_instructions()
    found = compare_evidence(evidence, steered, plain, LAYERS, ["bad"])
    for row in found.by_instruction.itertuples():
        expected = spearmanr([0.9, 0.5, 0.2, 0.1], steered[row.instruction].mean(axis=1))
        assert row.spearman == pytest.approx(expected.statistic)


def test_regret_is_that_of_every_prompt_left_out_counted_by_hand():
    # given two prompts: the best layer on each is known, on the second there are none but one
    steered = {"a": np.array([[1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)}
    plain = {"a": np.zeros(2, bool)}
    evidence = {"a": a_table(kind=[0.0, 1.0, 0.0, 0.0])}
    # when regret is measured at layer 2, which passes the first prompt only
    found = compare_evidence(evidence, steered, plain, LAYERS, ["kind"])
    # then: without the first prompt layer 0 is best, and both pass it; without the second layers 0
    # and 2 are equally good, so half of that prompt is had, and none at layer 2
    assert found.table.regret[0] == pytest.approx((0 + 0.5) / 2)
    assert np.isnan(found.table.regret_low[0])


def test_regret_is_that_of_a_plain_loop():
    evidence, steered, plain = two_instructions()
    found = compare_evidence(evidence, steered, plain, LAYERS, ["good", "bad"])
    for row in found.by_instruction.itertuples():
        counts = steered[row.instruction].astype(float)
        lost = []
        for prompt in range(counts.shape[1]):
            others = np.delete(counts, prompt, axis=1).mean(axis=1)
            best = [i for i, rate in enumerate(others) if np.isclose(rate, others.max())]
            chosen = counts[LAYERS.index(row.layer), prompt]
            lost.append(np.mean([counts[i, prompt] for i in best]) - chosen)
        assert row.regret == pytest.approx(np.mean(lost))


def test_among_equals_the_column_named_decides():
    _, steered, plain = two_instructions()
    table = a_table(good=[0.5, 1.0, 1.0, 1.0], other=[9.0, 1.0, 3.0, 2.0])
    for ties, layer in ((None, 2), ({"good": "other"}, 4)):
        found = compare_evidence(
            {"a": table, "b": table}, steered, plain, LAYERS, ["good"], ties=ties
        )
        assert set(found.by_instruction.layer) == {layer}


def test_the_best_of_noise_is_not_counted_as_regret():
    # given rates that are equal at all layers, so that any layer is as good as another
    rng = np.random.default_rng(0)
    layers = list(range(15))
    names = [f"instruction {i}" for i in range(60)]
    steered = {name: rng.random((15, 16)) < 0.5 for name in names}
    evidence = {name: pd.DataFrame({"layer": layers, "kind": rng.random(15)}) for name in names}
    plain = {name: np.zeros(16, bool) for name in names}
    # when the regret of any evidence is measured
    found = compare_evidence(evidence, steered, plain, layers, ["kind"])
    # then it holds 0, while the naive difference of best and chosen rate does not
    row = found.table.iloc[0]
    assert row.regret_low < 0 < row.regret_high
    naive = (found.by_instruction.best_rate - found.by_instruction.rate).mean()
    assert naive > 0.1


def test_an_instruction_that_no_layer_steers_is_named_and_left_out():
    evidence, steered, plain = two_instructions()
    steered["b"] = np.zeros((4, 16), bool)
    found = compare_evidence(evidence, steered, plain, LAYERS, ["good"])
    assert found.left_out == ("b",)
    assert set(found.by_instruction.instruction) == {"a"}
    with pytest.raises(ActivationError, match="nothing to predict"):
        compare_evidence(
            {"b": evidence["b"]}, {"b": steered["b"]}, {"b": plain["b"]}, LAYERS, ["good"]
        )


def test_evidence_without_a_value_never_wins():
    _, steered, plain = two_instructions()
    table = a_table(good=[np.nan, 0.2, 0.9, np.nan])
    found = compare_evidence({"a": table, "b": table}, steered, plain, LAYERS, ["good"])
    assert set(found.by_instruction.layer) == {4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e, s, p: (e, {"a": s["a"]}, p), "same instructions"),
        (lambda e, s, p: (e, s | {"a": s["a"][:3]}, p), "does not fit 4 layers"),
        (lambda e, s, p: (e | {"a": e["a"].drop(columns="good")}, s, p), "no evidence 'good'"),
        (lambda e, s, p: (e | {"a": a_table(good=[np.nan] * 4)}, s, p), "is empty"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises(ActivationError, match=said):
        compare_evidence(*change(*two_instructions()), LAYERS, ["good"])


def test_the_comparison_draws_regret_with_its_interval():
    found = compare_evidence(*two_instructions(), LAYERS, ["good", "bad"])
    [points] = found.plot().data
    assert list(points.y) == ["good", "bad"]
    assert points.x[1] == pytest.approx(100 * found.table.regret[1], rel=1e-3)
    assert "<table" in found._repr_html_()
