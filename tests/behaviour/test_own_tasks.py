"""A task of one's own goes through search, evaluation and report; a changed one is not resumed."""

import json

import pytest

import steerlens as sl
from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.plans.fitting import FitRecipe
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search.settings import Stage
from steerlens.cli.main import main
from steerlens.errors import SteerlensError, SteerlensWarning
from steerlens.reports.settings import ReportSettings
from steerlens.tasks import Task

QUERIES = [f"What is {word}?" for word in ("tea", "rain", "snow", "bread", "light", "glass")]
QUERIES += [f"Why {word}?" for word in ("sing", "swim", "read", "sleep", "dance", "cook")]
SMALL = SearchSettings(
    broad=Stage(2, 4, 2), narrow=Stage(2, 4, 1), final=Stage(2, 6, 1), n_evidence=2,
    recipe=FitRecipe(4, 4, 4, response_tokens=4, least_own=2),
)  # fmt: skip


def pirate(check=lambda text: len(text) % 2 == 0) -> Task:
    phrasings = ["Like a pirate!", "Be a pirate.", "Pirate speech.", "As a pirate."]
    return Task("pirate", phrasings, QUERIES, check)


def test_search_evaluation_and_plan_take_it(tiny_model, tmp_path):
    task = pirate()
    plan = sl.search(tiny_model, [task], tmp_path / "plan", SMALL, show_progress=False)
    assert plan.instructions == ("pirate",)
    prompts = catalogue_prompts([task], 2)
    result = sl.evaluate(
        tiny_model, prompts, tmp_path / "evaluation", Plan.load(tmp_path / "plan"),
        EvaluationSettings(max_new_tokens=4), show_progress=False,
    )  # fmt: skip
    # what was counted is what the check says of each response
    assert {row["strict"] for row in result.responses} <= {True, False}
    for row in result.responses:
        passes = bool(row["response"].strip()) and len(row["response"]) % 2 == 0
        assert row["strict"] == row["loose"] == passes
    assert result.summary["data"]["tasks"] == {"pirate": task.hash}


def test_a_changed_task_is_not_resumed(tiny_model, tmp_path):
    sl.search(tiny_model, [pirate()], tmp_path, SMALL, show_progress=False)
    changed = pirate(check=lambda text: "arr" in text)
    with pytest.raises(SteerlensError, match="instructions"):
        sl.search(tiny_model, [changed], tmp_path, SMALL, resume=True, show_progress=False)


@pytest.mark.parametrize(
    ("check", "sentence"),
    [(lambda text: True, "passes all"), (lambda text: False, "passes none")],
)
def test_a_check_that_tells_nothing_apart_is_said_before_the_search(
    tiny_model, tmp_path, check, sentence
):
    with pytest.warns(SteerlensWarning, match=f"check of task 'pirate' {sentence}"):
        sl.search(tiny_model, [pirate(check)], tmp_path, SMALL, show_progress=False)


def test_a_report_has_it_with_or_without_a_check(tiny_model, tmp_path):
    pairs = sl.contrast_pairs(pirate(), n=12)
    tasks = [pirate(), Task.from_pairs(pairs, id="from-pairs")]
    settings = ReportSettings(n_samples=1, max_new_tokens=4)
    result = sl.report(tiny_model, tasks, tmp_path, settings=settings, show_progress=False)
    assert result.table["task"].tolist() == ["pirate", "from-pairs"]
    data = json.loads((tmp_path / "report.json").read_text())
    assert [row["group"] for row in data["instructions"]] == ["own", "pairs"]


def test_a_report_steers_its_samples_as_the_plan_of_a_task_of_ones_own_says(tiny_model, tmp_path):
    plan = sl.search(tiny_model, [pirate()], tmp_path / "plan", SMALL, show_progress=False)
    data = {**plan.data["instructions"]["pirate"]}
    part = {"estimator": "last_prompt", "layer": 1, "operation": "add", "strength": 1.0}
    data["uninstructed"] = {**data["uninstructed"], "parts": [{**part, "scope": "all"}]}
    chosen = Plan({**plan.data, "instructions": {"pirate": data}}, plan.vectors)
    settings = ReportSettings(n_samples=1, max_new_tokens=4)
    result = sl.report(
        tiny_model, [pirate()], tmp_path / "report", chosen, settings, show_progress=False
    )
    assert result.table["steered_layer"].tolist() == [1]


def test_a_plan_refuses_another_definition_of_its_task(tiny_model, tmp_path):
    plan = sl.search(tiny_model, [pirate()], tmp_path / "plan", SMALL, show_progress=False)
    changed = pirate(check=lambda text: "arr" in text)
    with pytest.raises(SteerlensError, match="another definition of task 'pirate'"):
        sl.evaluate(tiny_model, catalogue_prompts([changed], 2), tmp_path / "evaluation", plan)
    assert not (tmp_path / "evaluation").exists()


def test_two_different_tasks_of_one_id_are_refused(tiny_model, tmp_path):
    with pytest.raises(SteerlensError, match="two different tasks have the id 'pirate'"):
        sl.search(tiny_model, [pirate(), pirate(check=bool)], tmp_path, SMALL)


def test_choices_on_the_command_line(tiny_folder, tmp_path, capsys):
    lines = [
        {
            "question": f"Do you like {word}?",
            "answer_matching_behavior": "Yes",
            "answer_not_matching_behavior": "No",
        }
        for word in ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk")
    ]
    path = tmp_path / "likes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["rank", "--model", str(tiny_folder), "--task", str(path)]
    out = tmp_path / "out"
    assert main([*common, "--evidence", "choices", "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["n_items"] == 2
    assert {each.name for each in out.iterdir()} >= {"likes.csv", "likes.html", "choices.json"}
    content = (out / "choices.csv").read_bytes()
    command = [*common, "--evidence", "choices", "--out", str(out), "--json"]
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert (out / "choices.csv").read_bytes() == content
    assert json.loads(capsys.readouterr().out) == record
    assert main([*common, "--evidence", "separability", "--scope", "all"]) == 2
    assert "--scope is for --evidence choices" in capsys.readouterr().err
    assert main([*common, "--evidence", "causal"]) == 2
    assert "--evidence choices" in capsys.readouterr().err
