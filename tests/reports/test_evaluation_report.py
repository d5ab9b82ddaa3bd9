"""Claims about the page of an evaluation: its numbers are the summary's, and text stays text."""

import re

import pytest
from evaluation_example import HOSTILE_RESPONSE, evaluation_example

from steerlens.errors import SteerlensError
from steerlens.reports.evaluation import render_evaluation


def test_the_page_tells_every_rate_with_its_interval():
    result = evaluation_example()
    page = render_evaluation(result.summary, result.responses)
    for record in result.summary["conditions"].values():
        loose = record["all"]["loose"]
        told = f"{100 * loose['rate']:.0f} [{100 * loose['low']:.0f}, {100 * loose['high']:.0f}]"
        assert told in page
    assert "x:y: 2" in page and "last_prompt at layer 24" in page


def test_texts_of_models_reach_the_page_only_escaped():
    result = evaluation_example(HOSTILE_RESPONSE)
    page = render_evaluation(result.summary, result.responses)
    assert HOSTILE_RESPONSE not in page and "<img src=x" not in page
    scripts = re.findall(r"<script\b([^>]*)>", page.split("<body>")[1])
    assert scripts and all("nonce=" in one for one in scripts)


def test_nothing_is_fetched_and_the_page_is_the_same_for_the_same_data():
    result = evaluation_example()
    page = render_evaluation(result.summary, result.responses)
    assert page == render_evaluation(result.summary, result.responses)
    assert not re.search(r'(src|href)="(?!#)', page.split("<body>")[1])


def test_the_table_and_the_picture_hold_the_rates_of_the_summary():
    result = evaluation_example()
    table = result.table
    assert list(table["instruction"][:3]) == ["all prompts"] * 3
    row = table[(table.instruction == "all prompts") & (table.condition == "instructed")].iloc[0]
    assert row.rate == result.summary["conditions"]["instructed"]["all"]["loose"]["rate"]
    [drawn] = [trace for trace in result.plot().data if trace.name == "instructed"]
    assert drawn.x[0] == pytest.approx(row.rate)
    assert drawn.x[0] + drawn.error_x.array[0] == pytest.approx(row.high, abs=1e-3)
    assert "instructed" in result._repr_html_()


def test_what_is_no_summary_is_refused():
    with pytest.raises(SteerlensError, match="no conditions"):
        render_evaluation({"conditions": {}}, [])
