"""Claims about the page's part on specificity, from made-up numbers."""

import random

import pytest
from report_example import report_example

from steerlens.errors import SteerlensError
from steerlens.reports import render_report
from steerlens.reports.specific import specific_overview, specific_panel
from steerlens.views.specific import HOW_TO_READ, specific_curves

MEASURES = ("auroc", "specific_auroc", "first_token_recovery", "other_task_recovery", "own_share")


def evidence(n_layers=6, seed=0, notices=()):
    """Evidence of one task as ``report.json`` has it."""
    rng = random.Random(seed)
    layers = []
    for layer in range(n_layers):
        row = {"layer": layer, "specific_p": 0.01}
        for name in (*MEASURES, "off_mean_share"):
            value = rng.uniform(0.5, 0.85) if layer != 4 else 0.95
            row |= {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
        layers.append(row)
    return {
        "kinds": list(MEASURES),
        "layers": layers,
        "best_layer": 4,
        "best_layer_rule": "highest first_token_recovery",
        "agreement": [],
        "notices": list(notices),
    }


def test_one_panel_has_what_any_and_what_this_instruction_does():
    panel = specific_panel(evidence())
    lines = [trace for trace in panel["figure"].data if trace.mode == "lines+markers"]
    assert [line.line.dash for line in lines] == ["dot", "solid", "dot", "solid"]
    assert lines[0].line.color == lines[1].line.color != lines[2].line.color
    assert panel["how_to_read"] == HOW_TO_READ


def test_layers_without_a_measure_leave_it_out():
    rows = [{"layer": layer, "specific_auroc": 0.7} for layer in range(3)]
    assert len(specific_curves(rows).data) == 1
    with pytest.raises(SteerlensError, match="needs one of auroc"):
        specific_curves([{"layer": 0, "d_prime": 1.0}])


def test_the_overview_has_a_row_per_task_that_was_measured():
    tasks = [
        {"id": "first", "evidence": evidence()},
        {"id": "second", "evidence": None},
        {"id": "third", "evidence": {**evidence(), "layers": [{"layer": 0, "auroc": 1.0}]}},
    ]
    overview = specific_overview(tasks)
    [(name, cells)] = overview["rows"]
    assert name == "first"
    assert [cell.text for cell in cells] == [
        "4",
        "4",
        "0.95 [0.85, 1.05]",
        "0.95 [0.85, 1.05]",
        "0.95 [0.85, 1.05]",
        "0.01",
    ]
    assert specific_overview(tasks[1:]) is None


def test_the_page_shows_both_and_escapes_notices():
    data = report_example(n_instructions=2, n_layers=6, n_samples=1, n_tokens=6)
    assert "Which instruction?" not in render_report(data)
    data["instructions"][0]["evidence"] = evidence(notices=["beware of <b>this</b>"])
    page = render_report(data)
    assert page.count("<h3>Which instruction?</h3>") == 1
    assert page.count('id="specific"') == 1
    assert HOW_TO_READ in page
    assert "Beware of &lt;b&gt;this&lt;/b&gt;." in page
