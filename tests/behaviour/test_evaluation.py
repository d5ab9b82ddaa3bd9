"""Evaluation of a plan: small runs on a tiny model, and what their summary counts."""

import json

import pytest
from small_search import TITLE

import steerlens as sl
from steerlens.behaviour.evaluation import catalogue_prompts, read_prompts, verdict
from steerlens.behaviour.evaluation.run import EvaluationSettings, evaluate
from steerlens.behaviour.evaluation.summary import summarise
from steerlens.behaviour.plans import (
    Plan,
)
from steerlens.errors import SteerlensError


def test_an_evaluation_answers_under_every_condition_and_counts_right(
    roomy_model, plan_folder, tmp_path
) -> None:
    prompts = catalogue_prompts([TITLE], 2)
    settings = EvaluationSettings(max_new_tokens=8)
    plan = Plan.load(plan_folder)
    result = evaluate(roomy_model, prompts, tmp_path / "e", plan, settings, show_progress=False)
    lines = (tmp_path / "e" / "responses.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2 * 5
    for row in rows:
        again = verdict(row["response"], row["instruction_id_list"], row["kwargs"])
        assert (row["strict"], row["loose"]) == (again.all_strict, again.all_loose)
    plain = [row for row in rows if row["condition"] == "uninstructed"]
    expected = sl.generate(roomy_model, [row["prompt"] for row in plain], max_new_tokens=8)
    assert [row["response"] for row in plain] == list(expected.texts)
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["conditions"]["uninstructed"]["all"]["n"] == 2
    assert result.summary["conditions"].keys() == summary["conditions"].keys()


def test_rows_a_plan_cannot_steer_are_named_or_left_out(roomy_model, plan_folder, tmp_path) -> None:
    plan = Plan.load(plan_folder)
    prompts = catalogue_prompts([TITLE, "punctuation:no_comma"], 1)
    with pytest.raises(SteerlensError, match=r"punctuation:no_comma \(1 rows\).*--skip-unknown"):
        evaluate(roomy_model, prompts, tmp_path / "e", plan, show_progress=False)
    settings = EvaluationSettings(max_new_tokens=4, skip_unknown=True)
    result = evaluate(roomy_model, prompts, tmp_path / "e", plan, settings, show_progress=False)
    assert result.summary["data"]["left_out"] == {"punctuation:no_comma": 1}


def test_differences_are_over_the_same_prompts() -> None:
    def row(name: str, condition: str, loose: bool, loops: bool = False) -> dict[str, object]:
        return {
            "row": name,
            "condition": condition,
            "strict": loose,
            "loose": loose,
            "degenerate": loops,
            "judge_perplexity": None,
            "n_words": 5,
            "instruction_id_list": [TITLE],
        }

    passed = [True, True, True, False]
    records = [row(str(i), "uninstructed", False) for i in range(4)]
    # The first of the steered responses loops: it passes, but not cleanly.
    records += [row(str(i), "uninstructed+steering", one, i == 0) for i, one in enumerate(passed)]
    summary = summarise(records)
    [difference] = summary["differences"]
    assert difference["loose"]["difference"] == pytest.approx(0.75)
    assert difference["clean"]["difference"] == pytest.approx(0.5)
    assert summary["conditions"]["uninstructed+steering"]["all"]["clean"]["rate"] == 0.5
    assert difference["p"] == pytest.approx(0.25)  # 3 against 0: 2 · (1/2)³
    assert difference["n"] == 4


def test_an_evaluation_file_without_the_instructions_apart_is_answered_as_it_stands(
    roomy_model, tmp_path
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(
        json.dumps(
            {
                "key": 1,
                "prompt": "Name a city. No commas.",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
            }
        )
        + "\n"
    )
    settings = EvaluationSettings(max_new_tokens=4)
    result = evaluate(
        roomy_model, read_prompts(file), tmp_path / "e", None, settings, show_progress=False
    )
    assert list(result.summary["conditions"]) == ["instructed"]
