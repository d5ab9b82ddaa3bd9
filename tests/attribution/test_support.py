"""Claims about layers that no interval supports: they are not named as the best anywhere."""

import html
import json

import numpy as np
import pandas as pd
import pytest
import torch
from report_example import evidence_example, report_example

import steerlens as sl
from steerlens.activations.cache import ResidualCache
from steerlens.attribution import LayerRanking, RecoveryCurve, ResponseRecovery
from steerlens.attribution.evidence import Evidence
from steerlens.cli.rank import _print
from steerlens.reports import render_report
from steerlens.stats.support import caveat

NOTHING = "no layer's interval of first-token recovery is above 0"


def curve(shift: float) -> RecoveryCurve:
    """Recovery at 30 layers, highest at layer 24, with intervals 0.4 wide."""
    recovery = 0.1 * np.cos((np.arange(30) - 24) / 10) + shift
    table = pd.DataFrame(
        {"layer": range(30), "recovery": recovery, "low": recovery - 0.2, "high": recovery + 0.2}
    )
    return RecoveryCurve(table, 24, 16)


def test_a_curve_of_noise_names_no_best_layer_in_any_view() -> None:
    noise, found = curve(0.0), curve(0.5)
    assert noise.best_layer == found.best_layer == 24, "programs find the highest"
    assert noise.caveat == NOTHING and found.caveat is None
    assert repr(found).startswith("RecoveryCurve(best layer 24: 0.60 [0.40, 0.80]")
    for view in (repr(noise), noise._repr_html_()):
        assert "best layer" not in view
        assert NOTHING in view.replace("&#x27;", "'") and "highest at layer 24: 0.10" in view
    marked = [curve.plot().layout.shapes for curve in (noise, found)]
    assert [sum(s.x0 == s.x1 == 24 for s in shapes) for shapes in marked] == [0, 1]


def test_one_interval_above_nothing_is_enough_and_gaps_count_for_nothing() -> None:
    assert caveat("first_token_recovery", [-0.1, 0.01]) is None
    assert caveat("first_token_recovery", [np.nan, np.nan]) == NOTHING
    assert caveat("auroc", [0.1, 0.5]) == "no layer's interval of AUROC is above 0.5"
    assert caveat("unseen_kind", [0.51]) is None
    assert caveat("my_score", [-1.0]) is None, "what nothing is, is not known of every evidence"


def test_recovery_of_responses_says_so_over_its_longest_horizon() -> None:
    grid = [(layer, horizon) for layer in range(3) for horizon in (1, 32)]
    table = pd.DataFrame(
        [
            {"layer": layer, "operation": "add", "strength": 1.0, "scope": "all",
             "horizon": horizon, "recovery": 0.1 * layer,
             # the first token is recovered, the response is not
             "low": 0.05 if horizon == 1 else -0.3, "high": 0.5}
            for layer, horizon in grid
        ]
    )  # fmt: skip
    best = table[table.horizon == 32].iloc[-1].to_dict()
    found = ResponseRecovery(table, best, pd.DataFrame(), 8, np.zeros((6, 2)))
    assert found.caveat == "no layer's interval of recovery over 32 tokens is above 0"
    assert "best" not in repr(found) and found.caveat in repr(found)
    assert found.best_layer == 2


@pytest.fixture(scope="module")
def unseparated() -> LayerRanking:
    """A ranking of residuals that no layer tells apart."""
    sides = torch.randn(2, 12, 12, 8, generator=torch.Generator().manual_seed(4))
    return sl.rank_layers(ResidualCache.from_tensors(sides[0], sides[1]))


def test_a_ranking_of_noise_says_so_in_text_html_json_and_on_the_command_line(
    unseparated: LayerRanking, capsys: pytest.CaptureFixture[str]
) -> None:
    # given: independently of the class, no lower end is above one half
    assert unseparated.table.auroc_low.max() <= 0.5
    sentence = "no layer's interval of AUROC is above 0.5"
    assert unseparated.caveat == sentence
    assert "best layer" not in repr(unseparated)
    assert sentence in unseparated._repr_html_().replace("&#x27;", "'")
    record = json.loads(json.dumps(unseparated.to_json()))
    assert record["best_layer_caveat"] == sentence
    assert record["best_layer"] == unseparated.best_layer, "there for programs"
    _print(Evidence(unseparated), "noise")
    assert f"best layer: none, {sentence}; the highest is layer" in capsys.readouterr().out


def test_a_layer_chosen_by_other_evidence_is_judged_by_that(unseparated: LayerRanking) -> None:
    layers = range(12)
    table = {"layer": layers, "recovery": np.linspace(0, 0.6, 12), "high": np.full(12, 1.0)}
    for low, expected in ((np.linspace(-1, -0.1, 12), NOTHING), (np.linspace(-1, 0.3, 12), None)):
        frame = pd.DataFrame({**table, "low": low})
        ranking = unseparated.with_evidence("first_token_recovery", frame, value="recovery")
        chosen = ranking.best_by("first_token_recovery")
        assert (chosen.best_layer, chosen.caveat) == (11, expected)


def test_a_report_names_no_layer_that_no_interval_supports() -> None:
    data = report_example()
    first = data["instructions"][0]
    first["evidence"] = evidence_example()
    first["best_layer_caveat"] = "no layer's interval of AUROC is above 0.5"
    first["steering"]["caveat"] = first["evidence"]["best_layer_caveat"] = NOTHING

    page = html.unescape(render_report({**data, "instructions": [first]}))

    assert "No layer's interval of AUROC is above 0.5; the highest is layer" in page
    assert f"N{NOTHING[1:]}; the highest is layer" in page, "in the evidence side by side"
    assert f"N{NOTHING[1:]}: nothing shows that steering works better" in page
    assert f">({first['best_layer']})</td>" in page
    assert f">({first['steering']['layer']})</td>" in page
    assert "Best layer by separability:" not in page
