"""Claims about the survey behind the report, on the real model at a small size."""

import json

import pytest

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.reports import SCHEMA, render_report
from steerlens.reports.evidence_for_tasks import SurveySettings, survey
from steerlens.tasks import base_queries

NAMES = ["detectable_format:title", "change_case:english_lowercase"]
SMALL = SurveySettings(
    n_pairs=8,
    n_recovery=4,
    n_samples=1,
    recovery_every=12,
    max_new_tokens=12,
    evidence=("separability", "components"),
)


@pytest.fixture(scope="module")
def result(model):
    return survey(model, NAMES, SMALL, command="steerlens report", progress=False)


def test_the_survey_holds_every_layer_and_instruction_as_plain_json(result):
    data = json.loads(json.dumps(result.data))
    assert data["schema"] == SCHEMA
    assert [one["id"] for one in data["instructions"]] == NAMES
    for one in data["instructions"]:
        assert [row["layer"] for row in one["layers"]] == list(range(30))
        assert [row["layer"] for row in one["recovery"]] == [0, 12, 24]
        assert one["steering"]["layer"] in (0, 12, 24)
        assert one["evidence"]["kinds"][-1] == "writing"
        assert one["evidence"]["components"]
    assert [row[i] for i, row in enumerate(data["cosines"]["matrix"])] == [1.0, 1.0]


def test_samples_come_from_queries_that_choice_and_vector_have_not_seen(result):
    unseen = {query.text for query in base_queries("report")}
    for one in result.data["instructions"]:
        for sample in one["samples"]:
            assert sample["prompt"] in unseen
            for name in ("steered", "placebo"):
                tokens = sample[name]["tokens"]
                assert {token["role"] for token in tokens} <= {"prompt", "response"}
                assert all(token["steered"] for token in tokens)


def test_strips_mark_the_end_of_the_prompt_as_where_the_vector_was_read_but_no_placebo(result):
    for one in result.data["instructions"]:
        for sample in one["samples"]:
            tokens = sample["steered"]["tokens"]
            last = max(i for i, token in enumerate(tokens) if token["role"] == "prompt")
            assert [i for i, token in enumerate(tokens) if token["read"]] == [last]
            assert not any(token.get("read") for token in sample["placebo"]["tokens"])


def test_the_survey_renders_as_a_page(result):
    page = render_report(result.data)
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(name in page for name in NAMES)
    assert page.count("All evidence side by side") == 2


def test_no_or_unknown_instructions_are_refused(model):
    with pytest.raises(SteerlensError, match="no instruction"):
        survey(model, [])
    with pytest.raises(UnknownNameError, match="did you mean"):
        survey(model, ["detectable_format:titel"])


def test_sizes_out_of_range_are_refused_before_the_model_runs():
    for wrong in ({"n_samples": 0}, {"recovery_every": 0}, {"max_new_tokens": 0}, {"seed": -1}):
        with pytest.raises(SteerlensError, match=next(iter(wrong))):
            SurveySettings(**wrong)
    with pytest.raises(UnknownNameError, match="casual"):
        SurveySettings(evidence=("casual",))


def test_more_pairs_than_the_last_instruction_has_are_refused_at_once(tiny_model, monkeypatch):
    def too_late(*_args):
        raise AssertionError("attributed before the settings were checked")

    monkeypatch.setattr("steerlens.reports.evidence_for_tasks._attribute", too_late)
    names = [*NAMES, "detectable_format:constrained_response"]
    with pytest.raises(SteerlensError, match="gives 2 to 160"):
        survey(tiny_model, names, SurveySettings(n_pairs=161))
