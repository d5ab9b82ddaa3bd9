"""Tasks without a check go the whole way; what is measured equals an independent computation."""

import json

import numpy as np
import pytest

import steerlens as sl
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.plans.fitting import FitRecipe
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search.settings import Stage
from steerlens.behaviour.unchecked import measure_of, measured
from steerlens.cli.main import main
from steerlens.cli.options import OwnTaskOptions
from steerlens.errors import SteerlensError
from steerlens.reports.evaluation import render_evaluation
from steerlens.stats.queries import best_ratio
from steerlens.tasks import Task

WORDS = ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk", "iron", "wool", "ice")
PAIRS = [{"instructed": f"Sing: {w}!", "uninstructed": f"What is {w}?"} for w in WORDS]
LIKES = [
    {
        "question": f"Do you like {word}?",
        "answer_matching_behavior": "Yes",
        "answer_not_matching_behavior": "No",
    }
    for word in WORDS
]
SMALL = SearchSettings(
    broad=Stage(2, 4, 4), narrow=Stage(2, 4, 2), final=Stage(3, 6, 1), n_evidence=2, horizon=4,
    recipe=FitRecipe(4, 4, 4, response_tokens=4, least_own=2),
)  # fmt: skip


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return Task.from_pairs(jsonl(tmp_path_factory.mktemp("pairs") / "songs.jsonl", PAIRS))


@pytest.fixture(scope="module")
def song_plan(tiny_model, songs, tmp_path_factory):
    """A search by recovery; the confirmation is left to the search itself."""
    out = tmp_path_factory.mktemp("plan") / "plan"
    return sl.search(tiny_model, [songs], out, SMALL, show_progress=False), out


def steered(plan, name, spec):
    """The plan with this choice, so that there is steering to measure."""
    record = {**plan.data["instructions"][name]}
    record["uninstructed"] = {**record["uninstructed"], "parts": [spec]}
    return Plan({**plan.data, "instructions": {name: record}}, plan.vectors)


def test_recovery_of_a_setting_is_what_causal_recovery_gives(tiny_model, songs):
    fit, pairs = (sl.contrast_pairs(songs, split=split) for split in ("fit", "report"))
    vector = sl.difference_of_means(sl.cache_residuals(tiny_model, fit))
    steering = vector.at(1, "set_projection", 1.0, "all")
    effects = measured(
        Answerer(tiny_model), songs, list(pairs), lambda _: [({}, steering)], horizon=4
    )
    expected = sl.causal_recovery(
        tiny_model, pairs, vector, layers=[1], scopes=("all",), horizons=(4,), show_progress=False
    ).table.iloc[0]
    interval = effects.interval(0, pairs.query_groups)
    # The same sums, taken in another order.
    assert interval.value == pytest.approx(expected.recovery, abs=1e-6)
    assert interval.low == pytest.approx(expected.low, abs=1e-6)


def test_the_plan_says_that_recovery_was_measured_and_on_what(song_plan, songs):
    plan, out = song_plan
    record = json.loads((out / "plan.json").read_text())["instructions"]["songs"]
    assert record["measure"] == measure_of(songs) == "recovery"
    assert {row["stage"] for row in record["table"]} >= {"broad", "narrow"}
    assert all("recovery" in row and "passed" not in row for row in record["table"])
    assert plan.table["measure"].tolist() == ["recovery"]
    assert "no rate of passing" in plan.described("songs")
    assert plan.candidate("songs", "instructed") == ()
    assert Plan.load(out).data == plan.data


def test_a_resumed_search_by_recovery_scores_nothing_again(
    tiny_model, songs, song_plan, monkeypatch
):
    def again(*_args, **_options):
        raise AssertionError("scored again")

    monkeypatch.setattr("steerlens.behaviour.unchecked.kl_to_instructed", again)
    settings = {"resume": True, "show_progress": False}
    resumed = sl.search(tiny_model, [songs], song_plan[1], SMALL, **settings)
    assert resumed.data == song_plan[0].data


def test_an_evaluation_without_a_check_reports_recovery_beside_its_placebo(
    tiny_model, songs, song_plan, tmp_path
):
    spec = {"estimator": "last_prompt", "layer": 1, "operation": "set_projection"}
    plan = steered(song_plan[0], "songs", {**spec, "strength": 1.0, "scope": "all"})
    prompts = catalogue_prompts([songs], 3)
    settings = EvaluationSettings(max_new_tokens=4, horizon=4)
    result = sl.evaluate(tiny_model, prompts, tmp_path, plan, settings, show_progress=False)
    vector = plan.vectors["songs", "last_prompt"]
    pairs = songs.pairs(3, split="report")
    expected = sl.causal_recovery(
        tiny_model, pairs, vector, layers=[1], scopes=("all",), horizons=(4,), show_progress=False
    ).table.iloc[0]
    shown = result.summary["conditions"]["uninstructed+steering"]["all"]["effects"]["recovery"]
    # Steering on the way in differs in the last bits from one batch to another.
    assert shown["value"] == pytest.approx(expected.recovery, abs=1e-5)
    assert shown["low"] == pytest.approx(expected.low, abs=1e-5)
    assert "effects" in result.summary["conditions"]["uninstructed+placebo"]["all"]
    conditions = {row["condition"] for row in result.responses}
    assert "instructed+steering" not in conditions
    assert {row["loose"] for row in result.responses} == {None}
    assert "recovery" in repr(result) and result.plot().data
    page = render_evaluation(result.summary, result.responses)
    assert "no rate of passing was measured" in " ".join(page.split())
    assert f"{shown['value']:.2f}".replace("-", "−") in page


@pytest.mark.parametrize("scope", ["answer", "all", "prompt"])
def test_choices_are_searched_and_evaluated_by_the_change_of_their_log_odds(
    tiny_model, tmp_path, scope
):
    task = Task.from_choices(LIKES, id="likes")
    plan = sl.search(tiny_model, [task], tmp_path / "plan", SMALL, show_progress=False)
    record = plan.data["instructions"]["likes"]
    assert record["measure"] == "log_odds_change" and record["vectors"] == ["answer"]
    # A search tries the scope that `rank` shows; a plan may name another.
    assert {part["scope"] for row in record["table"] for part in row["parts"]} == {"answer"}
    spec = {"estimator": "answer", "layer": 1, "operation": "add", "strength": 2.0, "scope": scope}
    plan = steered(plan, "likes", spec)
    assert f"on {scope}" in plan.described("likes")
    settings = EvaluationSettings(max_new_tokens=4)
    result = sl.evaluate(
        tiny_model, catalogue_prompts([task], 3), tmp_path / "out", plan, settings,
        show_progress=False,
    )  # fmt: skip
    vector = plan.vectors["likes", "answer"]
    measured = sl.choice_curve(tiny_model, task, vector, [1], [2], scope=scope, show_progress=False)
    curve = measured.table
    expected = curve[curve["strength"] == 2].iloc[0]
    by_condition = result.summary["conditions"]
    shown = by_condition["uninstructed+steering"]["all"]["effects"]["log_odds_change"]
    assert shown["value"] == pytest.approx(expected.change, abs=1e-5)
    assert set(by_condition) == {"uninstructed", "uninstructed+steering", "uninstructed+placebo"}
    assert len(result.plot().data)


def test_without_a_plan_there_is_nothing_to_measure(tiny_model, songs, tmp_path):
    with pytest.raises(SteerlensError, match=r"'songs' has no check.*give a plan"):
        sl.evaluate(tiny_model, catalogue_prompts([songs], 2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_to_the_same_prompts_need_a_check(tiny_model, tmp_path):
    pairs = [
        {"instructed": p["uninstructed"], "uninstructed": p["uninstructed"]}
        | {"instructed_response": "La", "uninstructed_response": "It is"}
        for p in PAIRS
    ]
    task = Task.from_pairs(jsonl(tmp_path / "same.jsonl", pairs))
    with pytest.raises(SteerlensError, match=r"'same' has no check.*give it a check"):
        sl.search(tiny_model, [task], tmp_path / "plan", SMALL)
    assert not (tmp_path / "plan").exists()


def test_pairs_are_evaluated_on_the_command_line(
    tiny_model, song_plan, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("steerlens.models.loading.load_model", lambda *_, **__: tiny_model)
    path = jsonl(tmp_path / "songs.jsonl", PAIRS)
    words = ["evaluate", "--judge", "none", "--pairs", str(path)]
    words += ["--plan", str(song_plan[1]), "--max-new-tokens", "4"]
    assert main([*words, "--out", str(tmp_path / "evaluation")]) == 0
    assert "causal recovery" in capsys.readouterr().out
    assert (tmp_path / "evaluation" / "evaluation.html").exists()


def test_the_corrected_effect_of_the_best_of_equal_settings_is_not_that_of_the_best():
    rng = np.random.default_rng(0)
    # 40 settings that do nothing on 12 pairs: the best of them seems to do something.
    above = rng.normal(size=(40, 12))
    chosen, corrected = best_ratio(above, np.ones(12), list(range(12)))
    assert chosen == int(above.mean(axis=1).argmax())
    assert above[chosen].mean() > 0.4 and abs(corrected) < 0.25


@pytest.mark.parametrize(
    ("check", "sentence"),
    [
        ("contians: la", "unknown kind of check 'contians'; did you mean 'contains'"),
        ("python:nowhere:check", "the module 'nowhere' cannot be imported"),
        ("!!python/object/apply:os.getcwd []", "a YAML tag that is not allowed"),
    ],
)
def test_a_check_on_the_command_line_is_read_before_the_model(tmp_path, capsys, check, sentence):
    path = jsonl(tmp_path / "songs.jsonl", PAIRS)
    words = ["search", "--pairs", str(path), "--check", check, "--out", str(tmp_path / "plan")]
    assert main([*words, "--model", "no-such-model"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_check_turns_pairs_into_a_task_that_is_counted(tmp_path):
    path = jsonl(tmp_path / "songs.jsonl", PAIRS)
    [task] = OwnTaskOptions(pairs=path, check="contains: la").tasks()
    assert measure_of(task) == "rate" and task.check("La, la!") and not task.check("No.")
