"""Claims about the report, its data and files, on the real model at a small size."""

import json

import pytest
import torch

from steerlens.behaviour.plans import Plan
from steerlens.engine.generation import generate
from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.models.loading import model_info
from steerlens.reports import SCHEMA, ReportSettings, report
from steerlens.tasks import base_queries
from steerlens.vectors import SteeringVector

NAMES = ["detectable_format:title", "change_case:english_lowercase"]
SMALL = ReportSettings(
    n_pairs=8,
    n_recovery=4,
    n_samples=1,
    recovery_every=12,
    max_new_tokens=12,
    evidence=("separability", "components"),
)


@pytest.fixture(scope="module")
def result(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report(model, NAMES, out, settings=SMALL, command="steerlens report")


def test_the_data_hold_every_layer_and_instruction_as_plain_json(result):
    data = json.loads(result.page.with_name("report.json").read_text())
    assert data == json.loads(json.dumps(result.data))
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


def test_the_page_and_the_vectors_are_written(result):
    page = result.page.read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(name in page for name in NAMES)
    assert page.count("All evidence side by side") == 2
    for name in NAMES:
        file = result.page.parent / "vectors" / f"{name.replace(':', '-')}.safetensors"
        saved = SteeringVector.load(file)
        assert torch.equal(saved.directions, result.vectors[name].directions)


def test_the_table_has_a_row_per_task_with_the_recovery_where_it_was_steered(result):
    assert result.table.task.tolist() == NAMES
    for row, data in zip(result.table.itertuples(), result.data["instructions"], strict=True):
        recovery = {one["layer"]: one["recovery"] for one in data["recovery"]}
        assert row.recovery == recovery[row.steered_layer] == max(recovery.values())
    assert len(result.plot().data[0].z) == 2
    assert "2 tasks" in repr(result) and NAMES[0] in result._repr_html_()


def test_no_or_unknown_tasks_are_refused(model, tmp_path):
    with pytest.raises(SteerlensError, match="no instruction"):
        report(model, [], tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean"):
        report(model, "detectable_format:titel", tmp_path)


def test_sizes_out_of_range_are_refused_before_the_model_runs():
    for wrong in ({"n_samples": 0}, {"recovery_every": 0}, {"max_new_tokens": 0}, {"seed": -1}):
        with pytest.raises(SteerlensError, match=next(iter(wrong))):
            ReportSettings(**wrong)
    with pytest.raises(UnknownNameError, match="casual"):
        ReportSettings(evidence=("casual",))


def test_more_pairs_than_the_last_task_has_are_refused_at_once(tiny_model, monkeypatch, tmp_path):
    def too_late(*_args):
        raise AssertionError("attributed before the settings were checked")

    monkeypatch.setattr("steerlens.reports.layer_selection.measure_task", too_late)
    names = [*NAMES, "detectable_format:constrained_response"]
    with pytest.raises(SteerlensError, match="gives 2 to 160"):
        report(tiny_model, names, tmp_path, settings=ReportSettings(n_pairs=161))


def test_with_a_plan_samples_are_steered_as_it_says(model, result, tmp_path):
    # given a plan with a choice for the first task, and none for the second
    part = {"estimator": "last_prompt", "layer": 20, "operation": "add", "strength": 0.5}
    chosen = [{**part, "scope": "response"}]
    info = model_info(model)
    data = {
        "model": {"reference": info.reference, "weights_hash": info.weights_hash},
        "recipe": {"n_pairs": 8},
        "instructions": {
            name: {"uninstructed": {"parts": parts}, "instructed": {"parts": []}}
            for name, parts in zip(NAMES, (chosen, []), strict=True)
        },
    }
    plan = Plan(data, {(NAMES[0], "last_prompt"): result.vectors[NAMES[0]]})
    # when a report is made with it
    planned = report(model, NAMES, tmp_path, plan, SMALL)
    first, second = planned.data["instructions"]
    # then the first task's samples are what steering by hand gives, and the second's say why not
    assert first["steering"]["layer"] == 20 and "plan" in first["steering"]["rule"]
    sample = first["samples"][0]
    steering = result.vectors[NAMES[0]].at(20, "add", 0.5, "response")
    expected = generate(model, sample["prompt"], steering, max_new_tokens=SMALL.max_new_tokens)
    assert sample["steered"]["text"] == expected.texts[0]
    steered = {token["role"] for token in sample["steered"]["tokens"] if token["steered"]}
    assert steered == {"response"}
    assert "the plan chose no steering" in second["steering"]["rule"]
    with pytest.raises(UnknownNameError, match="instruction of this plan"):
        report(model, "detectable_format:json_format", tmp_path, plan, SMALL)
